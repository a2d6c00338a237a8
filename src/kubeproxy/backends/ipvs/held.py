"""What ipvs mode holds in the kernel, as a value."""

from msgspec import Struct

from kubeproxy.backends.base import HeldState
from kubeproxy.backends.ipvs import describe, names
from kubeproxy.backends.ipvs.kernel import IPVSKernel
from kubeproxy.backends.programs import Tables
from kubeproxy.backends.shared import held_rules
from kubeproxy.backends.shared.compared import flat
from kubeproxy.backends.shared.held_rules import HeldRules
from kubeproxy.netlink.ipset import Element, Header
from kubeproxy.netlink.ipvs import Load, Real, Settings, Virtual


class HeldServers(Struct, frozen=True, gc=False):
    """What one family has in the kernel.

    Attributes:
        servers: the virtual servers with their settings and their real servers, each with weight and
            connections; sorted.
        sets: the sets of ours with their headers and elements; sorted.
        addresses: the addresses of kube-ipvs0; sorted.
        rules: the tables of iptables.
    """

    servers: tuple[tuple[Virtual, Settings, tuple[tuple[Real, Load], ...]], ...]
    sets: tuple[tuple[str, Header, tuple[Element, ...]], ...]
    addresses: tuple[bytes, ...]
    rules: HeldRules

    @property
    def empty(self) -> bool:
        """See `HeldState`."""
        return not (self.servers or self.sets or self.addresses) and self.rules.empty

    def lines(self) -> list[str]:
        """See `HeldState`: of `ipvsadm -Sn`, `ipset save`, `ip` and `iptables-save`, without connections."""
        found: list[str] = []
        for virtual, settings, reals in self.servers:
            found += describe.server(virtual, settings, {real: load.weight for real, load in reals})
        for name, header, elements in self.sets:
            found.append(f"create {name} {header.type}")
            found += [f"add {name} {describe.element(element)}" for element in elements]
        found += [describe.address("add", address) for address in self.addresses]
        return found + self.rules.lines()

    def commands(self) -> list[str]:
        """See `HeldPart`."""
        return list(flat(self.lines()))


def read(kernel: IPVSKernel, tables: Tables) -> HeldServers:
    """Reads it.

    Raises:
        OSError: the kernel refused.
        SyncError: the tables could not be read.
    """
    settings, reals, headers = kernel.settings(), kernel.servers(), kernel.headers()
    ours = sorted(headers.keys() & {names.set_name(short, tables.family) for short in names.SETS})
    return HeldServers(
        tuple((v, settings[v], tuple(sorted(reals.get(v, {}).items()))) for v in sorted(settings)),
        tuple((name, headers[name], tuple(sorted(kernel.elements(name)))) for name in ours),
        tuple(sorted(kernel.addresses())),
        held_rules.read(tables),
    )


def as_servers(held: HeldState) -> HeldServers:
    """What `read` returned; anything else is a mistake of the caller."""
    assert isinstance(held, HeldServers)
    return held
