"""How large maps must be for some Service ports, and what fits into maps that cannot be replaced."""

from collections.abc import Iterable, Mapping

from kubeproxy.backends.ebpf.compile import PortFronts
from kubeproxy.backends.ebpf.layout import FIRST, STICKY, Capacity
from kubeproxy.model.plan import PortId


def needed(ports: Iterable[PortFronts], hosts: int) -> Capacity:
    """What the maps must hold at least, with room for blocks that replace others.

    Args:
        ports: what each Service port needs.
        hosts: how many addresses of the node serve node ports.
    """
    fronts = count = slots = members = largest = 0
    for port in ports:
        internal, external = port.words
        inside, outside = len(internal.endpoints), len(external.endpoints)
        fronts += len(port.fronts)
        count += 1
        slots += inside
        if outside and external.endpoints != internal.endpoints:
            slots += outside
        largest = max(largest, inside + outside)
        if (internal.flags | external.flags) & STICKY:
            members += inside + outside
    return Capacity(fronts, count + FIRST, slots + slots // 4 + 2 * largest, members, hosts)


def grown(needed: Capacity, least: Capacity) -> Capacity:
    """Twice what is needed, as powers of two, and at least another one."""

    def more(count: int, least: int) -> int:
        return max(least, 1 << (2 * count - 1).bit_length())

    return Capacity(
        more(needed.fronts, least.fronts),
        more(needed.ports, least.ports),
        more(needed.slots, least.slots),
        more(needed.members, least.members),
        more(needed.hosts, least.hosts),
    )


def fitting(ports: Mapping[PortId, PortFronts], capacity: Capacity, hosts: int) -> dict[PortId, PortFronts]:
    """As many Service ports as maps can hold."""
    kept: dict[PortId, PortFronts] = {}
    total = needed((), hosts)
    for name, port in ports.items():
        one = needed([port], 0)
        more = Capacity(
            total.fronts + one.fronts,
            total.ports + one.ports - FIRST,
            total.slots + one.slots + 1,
            total.members + one.members,
            hosts,
        )
        if capacity.holds(more):
            kept[name], total = port, more
    return kept
