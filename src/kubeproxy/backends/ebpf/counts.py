"""Counts of new connections: of sockets by the programs, of all others by the table of nftables mode.

The programs always count; the table does with `nftables.counters`.
"""

from collections.abc import Collection

from kubeproxy.backends.base import ConnectionCounter, EndpointCounts
from kubeproxy.backends.ebpf import layout
from kubeproxy.backends.ebpf.compile import FrontCompiler
from kubeproxy.backends.ebpf.layout import PASS, STICKY
from kubeproxy.backends.ebpf.prepare import left_ports, pinned
from kubeproxy.backends.ebpf.tables import FrontMaps
from kubeproxy.backends.nftables import mode as nftables
from kubeproxy.backends.shared.totals import Totals
from kubeproxy.machine.base import Machine
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, PortId, ServicePlan


class SocketCounter:
    """See `ConnectionCounter`.

    Attributes:
        partial: the table does not count.
    """

    by_service = True

    def __init__(self, maps: FrontMaps, compiler: FrontCompiler, packets: ConnectionCounter) -> None:
        """Makes it.

        Args:
            maps: the maps of the programs.
            compiler: compiles plans.
            packets: counts what is not connected by a socket of this node.
        """
        self._maps = maps
        self._compiler = compiler
        self._packets = packets
        self._totals = Totals()
        self.partial = packets.read() is None
        self._plans: dict[Key, ServicePlan] = {}

    def set(self, key: Key, plan: ServicePlan | None) -> None:
        """See `ConnectionCounter`."""
        self._packets.set(key, plan)
        if plan is None:
            self._plans.pop(key, None)
        else:
            self._plans[key] = plan

    def read(self, only: Collection[Key] = ()) -> EndpointCounts | None:
        """See `ConnectionCounter`."""
        for key in only or self._plans:
            plan = self._plans.get(key)
            if plan is not None:
                self._take(plan)
        packets = self._packets.read(only)
        self.partial = packets is None
        return _sum(self._totals.counts, packets)

    def close(self) -> None:
        """See `ConnectionCounter`."""
        self._maps.close()
        self._packets.close()

    def _take(self, plan: ServicePlan) -> None:
        for port in self._compiler.ports(plan):
            name: PortId = port.name, port.protocol
            indexes = {
                layout.index_of(value)
                for key in self._compiler.fronts(port)
                if (value := self._maps.fronts.get(key)) is not None
            }
            # Both words may name one block.
            blocks = {
                self._maps.words[index]: index for index in sorted(indexes) if index < len(self._maps.words)
            }
            taken = set()
            for word, index in blocks.items():
                base, count, flags = layout.parts(word)
                if flags & PASS or (base, count) in taken:
                    continue
                taken.add((base, count))
                for number, slot in enumerate(self._maps.endpoints(base, count), base):
                    endpoint = layout.read_slot(slot)
                    self._totals.take((number, slot), self._maps.counts[number], name, endpoint)
                    if flags & STICKY:
                        self._take_member(index, slot, name)

    def _take_member(self, index: int, slot: bytes, name: PortId) -> None:
        """The connections of clients that stayed with their endpoint."""
        key = layout.member(index, slot, self._maps.layout.family)
        value = self._maps.members.get(key)
        if value is not None:
            self._totals.take(key, int.from_bytes(value, "little"), name, layout.read_slot(slot))


def open_counter(machine: Machine, node: NodeConfig) -> ConnectionCounter:
    """Makes the counter of a family; where no programs are pinned, that of the table.

    Raises:
        OSError: the kernel refused.
    """
    assert nftables.MODE.counter is not None
    packets = nftables.MODE.counter(machine, node)
    maps = pinned(machine, node)
    if maps is None:
        return packets
    return SocketCounter(maps, FrontCompiler(node, left_ports(machine.release)), packets)


def _sum(sockets: EndpointCounts, packets: EndpointCounts | None) -> EndpointCounts:
    if not packets:
        return sockets
    found = {name: dict(counts) for name, counts in sockets.items()}
    for name, counts in packets.items():
        mine = found.setdefault(name, {})
        for endpoint, count in counts.items():
            mine[endpoint] = mine.get(endpoint, 0) + count
    return found
