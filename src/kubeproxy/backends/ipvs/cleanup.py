"""Removes what ipvs mode left, in this program or the reference: virtual servers, rules, sets, kube-ipvs0.

Virtual servers of other programs stay. Ours are those on addresses of kube-ipvs0, and those on ports in the
sets of node ports. From chains that iptables mode has, too, only the rules of ipvs mode are removed; iptables
mode deletes the chains. A kernel that has no IPVS loaded is not changed.
"""

import logging
from collections.abc import Callable, Mapping, Sequence

from kubeproxy import protocols
from kubeproxy.api.addresses import FAMILIES, Family
from kubeproxy.backends import programs
from kubeproxy.backends.base import SyncError
from kubeproxy.backends.ipvs import names
from kubeproxy.backends.ipvs.hold import hold
from kubeproxy.backends.ipvs.kernel import IPVSKernel, LinuxIPVSKernel, ServerChange
from kubeproxy.backends.programs import InputRefusedError, Tables, target
from kubeproxy.backends.shared.static_chains import removed
from kubeproxy.machine.base import Machine
from kubeproxy.netlink import ipset, route
from kubeproxy.netlink.ipvs import Virtual

log = logging.getLogger(__name__)

_MATCH = "--match-set "
_OWN_HOOK = '--comment "kube-proxy firewall rules"'
"""A rule of ours, and not of iptables mode, that leads to a chain both have."""


def serves(machine: Machine) -> bool:
    """Whether the virtual interface has the address of a Service.

    Raises:
        OSError: the kernel refused.
    """
    index = machine.interface(names.INTERFACE)
    return bool(index) and any(address.interface == index for address in machine.addresses())


def cleanup(machine: Machine) -> None:
    """Cleans up; a second time finds nothing to do.

    Raises:
        SyncError: something was refused; all else is removed.
    """
    sets = _sets_there(machine)
    if not sets and not machine.interface(names.INTERFACE):
        return
    troubles: list[str] = []

    def attempt(what: str, work: Callable[[], int]) -> None:
        try:
            count = work()
        except (OSError, InputRefusedError, SyncError) as e:
            troubles.append(f"{what}: {e}")
            return
        if count:
            log.info("Removed %(count)d %(removed)s of ipvs mode", {"count": count, "removed": what})

    if _has_servers(machine):
        for family in FAMILIES:
            attempt(
                f"{family} virtual servers",
                lambda: _clean_servers(machine, LinuxIPVSKernel(machine, family)),  # noqa: B023 called at once
            )
    for name, tables in programs.installed(machine):
        attempt(f"rules through {name}", lambda: clean(tables))  # noqa: B023
    if sets:
        attempt("sets", lambda: _clean_sets(machine, sets))
    attempt("interface", lambda: int(route.delete_interface(machine, names.INTERFACE)))
    if troubles:
        raise SyncError("; ".join(troubles))


def own_servers(kernel: IPVSKernel, sets: Mapping[str, str]) -> list[Virtual]:
    """The virtual servers that are ours.

    Args:
        kernel: the kernel under one family.
        sets: the full names of the sets that hold node ports, each with their protocol.

    Raises:
        OSError: the kernel refused.
    """
    headers = kernel.headers()
    ports = {
        (protocols.NUMBERS[protocol], element.port)
        for name, protocol in sets.items()
        if name in headers
        for element in kernel.elements(name)
    }
    addresses = kernel.addresses()
    return [v for v in kernel.servers() if v.address in addresses or (v.protocol, v.port) in ports]


def clean(tables: Tables) -> int:
    """Removes our rules and chains from some tables; returns how many were removed.

    Raises:
        InputRefusedError: it was refused.
        SyncError: it could not be tried.
    """
    count = 0
    for table, (chains, rules) in programs.by_table(tables.save()).items():
        ours = [c for c in chains if c in names.OWN_CHAINS]
        single = [(c, rule) for c, rule in rules if c not in ours and _is_ours(rule, ours)]
        if ours or single:
            tables.restore(table, removed(single, ours))
            count += len(ours) + len(single)
    return count


def _is_ours(rule: str, ours: Sequence[str]) -> bool:
    """Whether a rule is of ipvs mode. There may be 100,000 others, so the cheapest is tried first."""
    looks = _MATCH in rule and any(f"{_MATCH}{name} " in rule for name in _all_sets())
    return looks or _OWN_HOOK in rule or bool(ours and target(rule) in ours)


def _all_sets() -> list[str]:
    return [names.set_name(short, family) for family in FAMILIES for short in (*names.SETS, "GROWING")]


def node_port_sets(family: Family) -> dict[str, str]:
    """The full names of the sets of node ports, each with its protocol."""
    return {names.set_name(short, family): protocol for protocol, short in names.NODE_PORTS.items()}


def _clean_servers(machine: Machine, kernel: LinuxIPVSKernel) -> int:
    try:
        found = own_servers(kernel, node_port_sets(kernel.family))
        with hold(machine, found):
            refused = kernel.change_servers([ServerChange("delete", v) for v in found])
        for error in refused.values():
            raise error
        return len(found)
    finally:
        kernel.close()


def _has_servers(machine: Machine) -> bool:
    """Whether the kernel has IPVS."""
    try:
        machine.net("ip_vs").close()
    except OSError:
        return False
    return True


def _sets_there(machine: Machine) -> list[str]:
    """Our sets. A kernel that has never been asked for sets is not asked."""
    try:
        machine.module("ip_set", "")
        with ipset.Sets(machine) as kernel:
            return sorted(kernel.headers().keys() & set(_all_sets()))
    except OSError:
        return []


def _clean_sets(machine: Machine, found: list[str]) -> int:
    with ipset.Sets(machine) as kernel:
        for name in found:
            try:
                kernel.destroy(name)
            except OSError as e:
                raise OSError(e.errno, f"{name}: {e.strerror}") from e
    return len(found)
