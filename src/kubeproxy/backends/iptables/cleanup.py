"""Removes the rules and chains of iptables mode, of both variants; detects whether they serve Services.

It does not matter which program wrote them.

Rules of other programs in the same tables stay, and so do chains of ours that these rules lead to:
KUBE-MARK-MASQ is used by network plugins. KUBE-FIREWALL belongs to the kubelet where a kubelet has ever
written to the tables; elsewhere it is removed, too. Some chains are also used by ipvs mode: they stay while
ipvs mode is in use.
"""

import contextlib
import logging
from collections.abc import Callable

from kubeproxy.backends import programs
from kubeproxy.backends.base import SyncError
from kubeproxy.backends.iptables import names
from kubeproxy.backends.programs import FILTER, NAT, Held, InputRefusedError, Tables, target
from kubeproxy.backends.shared.static_chains import removed
from kubeproxy.machine.base import Machine

log = logging.getLogger(__name__)

_IPVS_HAS = {
    NAT: {names.SERVICES, names.POSTROUTING, names.MARK_MASQ},
    FILTER: {names.FORWARD, names.PROXY_FIREWALL},
}
_ONLY_OURS = '--comment "kubernetes load balancer firewall"'
"""A rule of ours, and not of ipvs mode, that leads to a chain both have."""

_FIREWALL_JUMPS = {(chain, f"-j {names.KUBELET_FIREWALL}") for chain in ("INPUT", "OUTPUT")}
_GUARD = '--comment "block incoming localnet connections"'
_ROUTE_LOCALNET = "net/ipv4/conf/all/route_localnet"


def serves(machine: Machine) -> bool:
    """Whether some iptables program finds a Service's chain.

    Raises:
        SyncError: the tables could not be read.
    """
    return any(
        names.is_owned(line[1:].partition(" ")[0])
        for _, tables in programs.installed(machine)
        for line in tables.save()
        if line.startswith(":")
    )


def cleanup(machine: Machine) -> None:
    """Cleans up through every iptables program there is.

    Raises:
        SyncError: a program failed; the other programs were run.
    """
    troubles = []
    for name, tables in programs.installed(machine):
        try:
            count = clean(tables, exposed=lambda: _warn_of_localnet(machine))
        except (InputRefusedError, SyncError) as e:
            troubles.append(str(e))
            continue
        if count:
            log.info(
                "Removed %(count)d chains of iptables mode through %(program)s",
                {"count": count, "program": name},
            )
    if troubles:
        raise SyncError("; ".join(troubles))


def clean(tables: Tables, *, exposed: Callable[[], None] = lambda: None) -> int:
    """Removes our rules and chains from some tables; returns how many chains were removed.

    Args:
        tables: the tables.
        exposed: called if KUBE-FIREWALL was removed.

    Raises:
        InputRefusedError: it was refused.
        SyncError: it could not be tried.
    """
    count = 0
    found = programs.by_table(tables.save())
    shared = _IPVS_HAS if programs.are_of_ipvs(found) else {}
    firewall = _own_firewall(found)
    for table, (chains, rules) in found.items():
        stay = shared.get(table, set())
        ours = {c for c in chains if c in names.STATIC - stay or (table == NAT and names.is_owned(c))}
        if table == FILTER:
            ours |= firewall
        hooks = [
            (c, rule)
            for c, rule in rules
            if c not in ours
            and (target(rule) in ours - {names.MARK_MASQ} or (target(rule) in stay and _ONLY_OURS in rule))
        ]
        for c, rule in rules:
            if c not in ours and (c, rule) not in hooks:
                ours.discard(target(rule))
        if ours or hooks:
            tables.restore(table, removed(hooks, sorted(ours)))
            count += len(ours)
    if firewall:
        exposed()
    return count


def _own_firewall(found: Held) -> set[str]:
    """KUBE-FIREWALL, if no kubelet needs it: no other program has rules in it, or rules that lead to it.

    The reference, too, removes the jumps to it.
    """
    chains, rules = found.get(FILTER, ([], []))
    if names.KUBELET_FIREWALL not in chains or programs.are_of_kubelet(found):
        return set()
    inside = (rule for chain, rule in rules if chain == names.KUBELET_FIREWALL)
    jumps = {(chain, rule) for chain, rule in rules if target(rule) == names.KUBELET_FIREWALL}
    own = all(_GUARD in rule for rule in inside) and jumps <= _FIREWALL_JUMPS
    return {names.KUBELET_FIREWALL} if own else set()


def _warn_of_localnet(machine: Machine) -> None:
    """Warns of the sysctl that KUBE-FIREWALL made safe: it stays, because another program may have set it."""
    with contextlib.suppress(OSError):
        if machine.sysctl(_ROUTE_LOCALNET) == "1":
            log.warning(
                "%(sysctl)s is 1, and the rule is gone that drops packets to 127.0.0.0/8 from other hosts:"
                " set it to 0 unless something else needs it",
                {"sysctl": _ROUTE_LOCALNET},
            )
