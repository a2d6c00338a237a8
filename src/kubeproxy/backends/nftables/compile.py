"""A Service's plan becomes elements of sets and maps.

Two plans are compared by what they compile to: elements that are only in the old one are deleted, those only
in the new one added. Endpoints fill the slots of a front in the order of their addresses, so equal plans are
equal elements, whatever the plans were before; an endpoint that is replaced changes at most the slots between
its old place and its new one.

    ClusterIP with N <= 16 endpoints  endpoints-N: a slot each
    any other front                   service-ips: goto a chain; endpoints-N: a slot each
    policy Local                      goto local-M-N; endpoints-M: those of this node; here-endpoints-N: all
    source ranges                     firewall-fronts, firewall-sources; of node ports firewall-nodeports,
                                      firewall-nodeport-sources
    no endpoint                       no-endpoints-drop, no-endpoints-reject
    session affinity, Maglev          goto chains of its own (`own`)
    weights                           as many slots as the weight, N and M are the sums of the weights
"""

from collections.abc import Iterator
from typing import NamedTuple

from kubeproxy.api.addresses import BITS, pack
from kubeproxy.backends.nftables import layout, packing
from kubeproxy.backends.nftables.chains import SharedChain
from kubeproxy.backends.nftables.firewall import Firewall
from kubeproxy.backends.nftables.own import SlotTable, own_objects
from kubeproxy.backends.nftables.statements import Rule, Statements
from kubeproxy.model.distribution import Distribution
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import DROP, FORWARD, Action, PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint

Element = tuple[str, bytes]
"""The name of a set or map, and an element of it."""


class ServiceElements(NamedTuple):
    """What a Service needs in the table.

    Attributes:
        elements: its elements, each once, but for those of its firewalls.
        chains: shared chains that its elements lead to.
        own_chains: chains of its own, with their rules.
        own_sets: sets of its own, with the milliseconds their elements stay.
        own_maps: the names of maps of its own: tables of Maglev hashing.
        firewalls: the clients of each front that has source ranges; their elements are made when a difference
            needs them.
    """

    elements: dict[Element, None]
    chains: set[SharedChain]
    own_chains: dict[str, list[Rule]]
    own_sets: dict[str, int]
    own_maps: set[str]
    firewalls: dict[bytes, Firewall]

    @classmethod
    def nothing(cls) -> "ServiceElements":
        """What no Service needs."""
        return cls({}, set(), {}, {}, set(), {})


class Compiler:
    """Compiles the plans of one family."""

    def __init__(self, node: NodeConfig) -> None:
        address = BITS[node.family] // 8
        self._node = node
        self._statements = Statements(node)
        self._by_front = packing.EndpointElements(node.family, address + 8, counted=node.counters)
        self._by_port = packing.EndpointElements(node.family, 8, counted=node.counters)
        self._by_slot = packing.EndpointElements(node.family, 0, counted=node.counters)

    def compile(self, plan: ServicePlan | None) -> ServiceElements:
        """What a Service needs; nothing for None."""
        out = ServiceElements.nothing()
        if plan is not None:
            firewall: Firewall | None = None
            for port in plan.ports:
                firewall = self._firewall(port, firewall)
                _Port(port, self, out, firewall).compile()
        return out

    def _firewall(self, port: PortPlan, shared: Firewall | None) -> Firewall | None:
        """The firewall of a port: the previous port's if equal, so that its intervals are computed once."""
        if not port.source_ranges:
            return None
        mine = Firewall(port.source_ranges, port.load_balancer_ips, self._node.address)
        return shared if mine == shared else mine

    def fronts(self, plan: ServicePlan) -> Iterator[bytes]:
        """The keys of a Service's fronts."""
        for p in plan.ports:
            for address in (p.cluster_ip, *p.external_ips, *p.load_balancer_ips):
                if address:
                    yield packing.front(address, p.protocol, p.port)
            if p.node_port:
                yield packing.node_port(p.protocol, p.node_port)

    @property
    def statements(self) -> Statements:
        """The statements of this family."""
        return self._statements

    @property
    def node(self) -> NodeConfig:
        """The node compiled for."""
        return self._node

    def endpoints(self, *, node_port: bool) -> packing.EndpointElements:
        """Packs endpoints of fronts of one kind."""
        return self._by_port if node_port else self._by_front

    def slots(self, table: SlotTable) -> list[bytes]:
        """The elements of a table of Maglev hashing."""
        tails = [self._by_slot.tail(each.address, each.port) for each in table.endpoints]
        return self._by_slot.elements(b"", [tails[number] for number in table.slots])


def slots_of(endpoints: tuple[Endpoint, ...], distribution: Distribution | None) -> tuple[Endpoint, ...]:
    """The endpoint of each slot of a front: each endpoint has as many as its weight."""
    if distribution is None or not distribution.weights:
        return endpoints
    weighted = zip(endpoints, distribution.weights, strict=False)  # without endpoints, no slots
    return tuple([endpoint for endpoint, weight in weighted for _ in range(weight)])


class _Port:
    """Compiles one Service port."""

    def __init__(
        self, port: PortPlan, compiler: Compiler, out: ServiceElements, firewall: Firewall | None
    ) -> None:
        self._port = port
        self._compiler = compiler
        self._out = out
        self._firewall = firewall
        self._own = own_objects(port, compiler.statements)
        self._cluster = slots_of(port.cluster, port.cluster_distribution)
        self._local = slots_of(port.local, port.local_distribution)

    def compile(self) -> None:
        p = self._port
        self._out.own_chains.update(self._own.chains)
        self._out.own_sets.update(self._own.sets)
        self._out.own_maps.update(self._own.tables)
        for name, table in self._own.tables.items():
            self._add(name, self._compiler.slots(table))
        if p.cluster_ip:
            self._put(layout.CLUSTER_IPS, packing.member(pack(p.cluster_ip)))
            self._cluster_ip(packing.front(p.cluster_ip, p.protocol, p.port))
        outside = Firewall(p.external_ranges, (), "") if p.external_ranges else None
        for ip in p.external_ips:
            self._external(packing.front(ip, p.protocol, p.port))
        for ip in p.external_only if outside is not None else ():
            self._protect(packing.front(ip, p.protocol, p.port), layout.FIREWALL_IPS, outside)
        for ip in p.load_balancer_ips:
            key = packing.front(ip, p.protocol, p.port)
            self._external(key)
            # Also without endpoints: packets from other clients are dropped, not rejected.
            self._protect(key, layout.FIREWALL_IPS, self._firewall)
        if p.node_port:
            key = packing.node_port(p.protocol, p.node_port)
            self._external(key, node_port=True)
            self._protect(key, layout.FIREWALL_NODEPORTS, outside)
        for b in p.endpoints:
            if b.local:
                address = pack(b.address)
                self._put(
                    layout.HAIRPIN, packing.member(address + packing.front(b.address, p.protocol, b.port))
                )

    def _protect(self, key: bytes, name: str, firewall: Firewall | None) -> None:
        """Only some clients are let in at a front, which is put into the set of such fronts."""
        if firewall is not None:
            self._put(name, packing.member(key, self._port.name))
            self._out.firewalls[key] = firewall

    def _cluster_ip(self, key: bytes) -> None:
        p = self._port
        endpoints = self._local if p.internal_local else self._cluster
        if p.internal_action != FORWARD:
            self._refuse(key, p.internal_action)
        elif self._own.internal:
            self._goto(key, self._own.internal)
        else:
            if len(endpoints) > layout.DIRECT:
                self._shared(key, SharedChain("pick", node_port=False, endpoints=len(endpoints)))
            self._slots(key, endpoints)

    def _external(self, key: bytes, *, node_port: bool = False) -> None:
        p = self._port
        if p.external_action != FORWARD:
            self._refuse(key, p.external_action, node_port=node_port)
        if not p.any:
            return
        if self._own.external:
            self._goto(key, self._own.external, node_port=node_port)
            return
        count = len(self._cluster)
        if p.external_local:
            self._shared(key, SharedChain("local", node_port, count, len(self._local)))
            self._slots(key, self._cluster, here=True, node_port=node_port)
        else:
            self._shared(key, SharedChain("external", node_port, count))
        self._slots(key, self._local if p.external_local else self._cluster, node_port=node_port)

    def _refuse(self, key: bytes, action: Action, *, node_port: bool = False) -> None:
        if node_port:
            name = layout.DROP_NODEPORTS if action == DROP else layout.REJECT_NODEPORTS
        else:
            name = layout.DROP_SERVICES if action == DROP else layout.REJECT_SERVICES
        self._put(name, packing.member(key, self._port.name))

    def _shared(self, key: bytes, chain: SharedChain) -> None:
        self._out.chains.add(chain)
        self._goto(key, chain.name, node_port=chain.node_port)

    def _goto(self, key: bytes, chain: str, *, node_port: bool = False) -> None:
        name = layout.SERVICE_NODEPORTS if node_port else layout.SERVICE_IPS
        self._put(name, packing.goto(key, chain, self._port.name))

    def _slots(
        self, key: bytes, endpoints: tuple[Endpoint, ...], *, here: bool = False, node_port: bool = False
    ) -> None:
        family = self._compiler.statements.family
        name = layout.endpoints(family, len(endpoints), here=here, node_port=node_port).name
        packer = self._compiler.endpoints(node_port=node_port)
        tails = [packer.tail(b.address, b.port) for b in endpoints]
        self._add(name, packer.elements(key, tails))

    def _add(self, name: str, elements: list[bytes]) -> None:
        self._out.elements.update(dict.fromkeys([(name, each) for each in elements]))

    def _put(self, name: str, element: bytes) -> None:
        self._out.elements[name, element] = None
