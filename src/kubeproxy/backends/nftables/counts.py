"""Counts of new connections, from the counters in the elements of the maps of endpoints.

They are there if the daemon runs with `nftables.counters`. Only the first packet of a connection passes the
chains of type nat, so the packets of a counter are connections. A Service with session affinity has counters
in the rules of its own chains.

To read all elements costs most, so a reading keeps them as they are and decodes only those that changed.
"""

from collections.abc import Collection, Iterator
from itertools import islice
from typing import Final

from kubeproxy.api.addresses import BITS, IPV4, unpack
from kubeproxy.backends.base import EndpointCounts
from kubeproxy.backends.nftables import layout, packing
from kubeproxy.backends.nftables.compile import Compiler, Element
from kubeproxy.backends.nftables.held import KEY_AT
from kubeproxy.backends.nftables.own import own_objects
from kubeproxy.backends.shared.totals import Totals
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, PortId, PortPlan, ServicePlan
from kubeproxy.netlink import wire
from kubeproxy.netlink.nft import messages, objects
from kubeproxy.netlink.nft.kernel import NftKernel
from kubeproxy.netlink.nft.messages import IP, IP6, TableName

_TRIED: Final = 20
"""So many elements are looked at to find out whether there are counters."""

_NODE_PORT_BYTES: Final = 8
_SLOT_BYTES, _HEADERS_BYTES, _PORT_BYTES = 4, 8, 4


class MapCounter:
    """See `ConnectionCounter`."""

    by_service = True
    partial = False

    def __init__(self, kernel: NftKernel, node: NodeConfig) -> None:
        self._kernel = kernel
        self._table = TableName(IP if node.family == IPV4 else IP6, layout.TABLE)
        self._address = BITS[node.family] // 8
        self._compiler = Compiler(node)
        self._totals = Totals()
        self._plans: dict[Key, ServicePlan] = {}
        self._fronts: dict[bytes, PortId] = {}
        self._chains: dict[str, PortId] = {}
        self._tables: dict[str, PortId] = {}
        self._last: dict[str, set[bytes]] = {}
        self._handles: set[tuple[str, int]] = set()  # rules of session affinity

    def set(self, key: Key, plan: ServicePlan | None) -> None:
        """See `ConnectionCounter`."""
        before = self._plans.pop(key, None)
        for port in before.ports if before is not None else ():
            for front in _fronts(port):
                self._fronts.pop(front, None)
            chains, tables = self._own(port)
            for chain in chains:
                self._chains.pop(chain, None)
            for table in tables:
                self._tables.pop(table, None)
        if plan is None:
            return
        self._plans[key] = plan
        for port in plan.ports:
            named = (port.name, port.protocol)
            self._fronts.update(dict.fromkeys(_fronts(port), named))
            chains, tables = self._own(port)
            self._chains.update(dict.fromkeys(chains, named))
            self._tables.update(dict.fromkeys(tables, named))

    def read(self, only: Collection[Key] = ()) -> EndpointCounts | None:
        """See `ConnectionCounter`."""
        if not self._last and not self._counted():
            return None
        if only:
            self._read_some(only)
        else:
            self._read_all()
        return self._totals.counts

    def close(self) -> None:
        """See `ConnectionCounter`."""
        self._kernel.close()

    def _counted(self) -> bool:
        """Whether elements or rules have counters."""
        if self._chains and any(True for _ in self._rules(next(iter(self._chains)))):
            return True
        slots = (element for plan in self._plans.values() for element in self._slots(plan))
        for name, element in islice(slots, _TRIED):
            found = objects.element(self._kernel, self._table, name, _only_key(element))
            if found is not None:
                return objects.packets(found, self._end_of(name)) is not None
        return False

    def _read_all(self) -> None:
        for name in objects.sets(self._kernel, self._table):
            if layout.SLOTS.fullmatch(name) is None and name not in self._tables:
                continue
            now = set(objects.counted_elements(self._kernel, self._table, name))
            for element in now - self._last.get(name, set()):
                self._take(name, element)
            self._last[name] = now
        if self._chains:
            self._take_rules("")
        self._totals.prune(
            sum(map(len, self._last.values())) + len(self._handles),
            lambda: (
                *(
                    (name, element[: self._end_of(name)])
                    for name, held in self._last.items()
                    for element in held
                ),
                *self._handles,
            ),
        )

    def _read_some(self, only: Collection[Key]) -> None:
        for key in only:
            plan = self._plans.get(key)
            if plan is None:
                continue
            for name, element in self._slots(plan):
                found = objects.element(self._kernel, self._table, name, _only_key(element), counted=True)
                if found is not None:
                    self._take(name, found)
            for port in plan.ports:
                for chain in self._own(port)[0]:
                    self._take_rules(chain)

    def _take(self, name: str, element: bytes) -> None:
        """Takes in the counter of an element."""
        end = self._end_of(name)
        packets = objects.packets(element, end)
        front_end = end - _PORT_BYTES - self._address - _HEADERS_BYTES - _SLOT_BYTES
        port = self._tables.get(name) or self._fronts.get(element[KEY_AT:front_end])
        if packets is None or port is None:
            return
        at = end - _PORT_BYTES - self._address
        endpoint = unpack(element[at : at + self._address]), int.from_bytes(element[end - 4 : end - 2])
        self._totals.take((name, element[:end]), packets, port, endpoint)

    def _take_rules(self, only: str) -> None:
        """Takes in the counters of rules of a chain, "" for all."""
        if not only:
            self._handles.clear()
        for chain, handle, values, packets in self._rules(only):
            self._handles.add((chain, handle))
            port = self._chains.get(chain)
            if port is not None and len(values) >= 2:
                endpoint = unpack(values[-2]), int.from_bytes(values[-1])
                self._totals.take((chain, handle), packets, port, endpoint)

    def _rules(self, only: str) -> Iterator[tuple[str, int, list[bytes], int]]:
        """Rules with counters: chain, handle, the constants they load, the packets."""
        asked = wire.text(1, self._table.name) + (wire.text(2, only) if only else b"")
        for body in list(self._kernel.dump(messages.GETRULE, self._table.family, asked)):
            a = wire.attributes(body)
            if wire.string(a[1]) != self._table.name or wire.string(a[2]) not in self._chains:
                continue
            values: list[bytes] = []
            packets: int | None = None
            for _, expression in wire.attribute_list(a[4]):
                parts = wire.attributes(expression)
                kind, data = wire.string(parts[1]), wire.attributes(parts[2])
                if kind == "immediate":
                    values.append(bytes(wire.attributes(data[2]).get(1, b"")))
                elif kind == "counter":
                    packets = int.from_bytes(data[2])
            if packets is not None:
                yield wire.string(a[2]), int.from_bytes(a[3]), values, packets

    def _slots(self, plan: ServicePlan) -> Iterator[Element]:
        """The elements of a Service that have counters."""
        compiled = self._compiler.compile(plan)
        return (e for e in compiled.elements if layout.SLOTS.fullmatch(e[0]) or e[0] in compiled.own_maps)

    def _own(self, port: PortPlan) -> tuple[Collection[str], Collection[str]]:
        """The chains with counted rules, and the tables, that a Service port has for itself."""
        own = own_objects(port, self._compiler.statements)
        return own.chains if port.affinity else (), own.tables

    def _end_of(self, name: str) -> int:
        """Where in an element of a map its counter is."""
        if name in self._tables:
            front = 0
        else:
            front = _NODE_PORT_BYTES if name.startswith("nodeport-") else self._address + _NODE_PORT_BYTES
        return KEY_AT + front + _SLOT_BYTES + _HEADERS_BYTES + self._address + _PORT_BYTES


def _fronts(port: PortPlan) -> Iterator[bytes]:
    for address in (port.cluster_ip, *port.external_ips, *port.load_balancer_ips):
        if address:
            yield packing.front(address, port.protocol, port.port)
    if port.node_port:
        yield packing.node_port(port.protocol, port.node_port)


def _only_key(element: bytes) -> bytes:
    """An element without what it maps to."""
    return wire.attribute(1, objects.key_of(element))
