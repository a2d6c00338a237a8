"""Compares rules in the kernel with plans, for every kind of packet that either distinguishes.

A kind is a front and a kind of source: a process of the node, each endpoint of the front on this node, and
one address of each region that the ranges in the plan and in the rules divide all addresses into. Which
ranges the rules look at is seen while they are evaluated. Fronts are those of the plans and those that the
rules name, with a port of each ClusterIP that no Service has, and an address of each ServiceCIDR that no
Service has.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final, Protocol

from msgspec import Struct

from kubeproxy.api.addresses import contains, family_of, is_loopback, join
from kubeproxy.api.rows import Protocol as Transport
from kubeproxy.insight.reference.outcome import Outcome, UnknownRuleError, of_verdict, same
from kubeproxy.insight.reference.sources import representatives
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import PortPlan, ServicePlan
from kubeproxy.model.verdict import Book, Packet

_OTHER_PORT: Final = 9
"""Of the discard protocol (RFC 863); the next free one if a Service has it."""

_FOREIGN_INTERFACE: Final = "eth0"


class Evaluated(Protocol):
    """Rules that can be evaluated."""

    def outcome(self, packet: Packet) -> Outcome:
        """The outcome for a packet."""

    def asked(self) -> Collection[str]:
        """The ranges with which the rules have compared sources since the last call."""


class Front(Struct, frozen=True):
    """A destination.

    Attributes:
        address: its address.
        protocol: its protocol.
        port: its port.
        kind: what it is.
        service: namespace/name of its Service, "" if no plan has it.
        endpoints: the addresses of its endpoints on this node; packets of others do not pass this node.
        ranges: the ranges of sources that the plan distinguishes there.
    """

    address: str
    protocol: Transport
    port: int
    kind: str
    service: str = ""
    endpoints: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} {join(self.address, self.port)}/{self.protocol}"


class Difference(Struct, frozen=True):
    """A kind of packet to which rules and plan do different things.

    Attributes:
        front: the destination, and what it is.
        service: namespace/name of its Service, "" if no plan has it.
        source: the kind of source.
        address: the source address that was tried.
        rules: what the rules do.
        plan: the outcome of the plan.
    """

    front: str
    service: str
    source: str
    address: str
    rules: str
    plan: str


class Comparison(Struct, frozen=True):
    """What was compared.

    Attributes:
        kinds: how many kinds of packets were compared.
        differences: those to which rules and plan do different things.
        unknown: rules that could not be evaluated, each once; packets that meet them were not compared.
    """

    kinds: int
    differences: tuple[Difference, ...]
    unknown: tuple[str, ...] = ()


def compare(
    rules: Evaluated,
    plans: Sequence[ServicePlan],
    book: Book,
    node: NodeConfig,
    local_addresses: Collection[str],
    *,
    named: Iterable[tuple[str, Transport, int]] = (),
    own_source: str = "",
    bound: Collection[str] = (),
) -> Comparison:
    """Compares rules with plans.

    Args:
        rules: the rules.
        plans: the plans of all Services.
        book: the same plans, to look packets up in.
        node: the node.
        local_addresses: its addresses.
        named: fronts that the rules name: address ("" for a node port), protocol and port.
        own_source: the address from which the node sends; "" for the one of its Node.
        bound: addresses of Services that the node has on an interface of its own, as in ipvs mode: a
            process of the node sends to such an address from that address.
    """
    kinds = 0
    differences: list[Difference] = []
    unknown: dict[str, None] = {}
    for front in _fronts(plans, node, local_addresses, named):
        own = front.address if front.address in bound else own_source or node.address
        for what, packet in _packets(rules, front, node, local_addresses, own):
            try:
                found = rules.outcome(packet)
            except UnknownRuleError as e:
                unknown[str(e)] = None
                continue
            kinds += 1
            planned = of_verdict(packet, book.verdict(packet))
            if not same(found, planned, packet, local_addresses):
                differences.append(
                    Difference(str(front), front.service, what, packet.source, str(found), str(planned))
                )
    return Comparison(kinds, tuple(differences), tuple(unknown))


def _packets(
    rules: Evaluated, front: Front, node: NodeConfig, local_addresses: Collection[str], own_source: str
) -> Iterator[tuple[str, Packet]]:
    """A packet of each kind of source to a front."""

    def packet(source: str, interface: str) -> Packet:
        return Packet(source, front.address, front.port, front.protocol, interface)

    local = front.address in local_addresses
    yield "a process of the node", packet(front.address if local else own_source, "")
    if is_loopback(front.address):
        return
    interface = _pod_interface(node)
    for address in front.endpoints:
        if address not in local_addresses:
            yield "an endpoint of it", packet(address, interface)
    rules.asked()
    ranges = set(front.ranges)
    tried: set[str] = set()
    while True:
        family = node.family
        chosen = [a for a in representatives(ranges, family) if a not in tried and a not in local_addresses]
        for address in chosen:
            tried.add(address)
            inside = sorted((cidr for cidr in ranges if contains(cidr, address)), key=_length, reverse=True)
            what = f"a client in {inside[0]}" if inside else "a client in none of the ranges"
            yield what, packet(address, _FOREIGN_INTERFACE)
            if interface != _FOREIGN_INTERFACE:
                yield f"{what}, received on {interface}", packet(address, interface)
        more = {cidr for cidr in rules.asked() if family_of(cidr) == family} - ranges
        if not more:
            return
        ranges |= more


def _length(cidr: str) -> int:
    return int(cidr.partition("/")[2])


def _pod_interface(node: NodeConfig) -> str:
    """An interface of local Pods, if they are recognised by it."""
    local = node.local_traffic
    if local is None or local.by == "range":
        return _FOREIGN_INTERFACE
    return local.value if local.by == "interface" else f"{local.value}0"


def _fronts(
    plans: Iterable[ServicePlan],
    node: NodeConfig,
    local_addresses: Collection[str],
    named: Iterable[tuple[str, Transport, int]],
) -> Iterator[Front]:
    found: dict[tuple[str, Transport, int], Front] = {}
    used: dict[str, set[int]] = {}
    for plan in plans:
        for port in plan.ports:
            for front in _of_port(plan, port, node, local_addresses):
                found.setdefault((front.address, front.protocol, front.port), front)
            if port.cluster_ip:
                used.setdefault(port.cluster_ip, set()).add(port.port)
    yield from found.values()
    for address, protocol, number in named:
        for at in [address] if address else local_addresses:
            if (at, protocol, number) not in found:
                found[at, protocol, number] = front = Front(at, protocol, number, "address and port")
                yield front
    for address, ports in used.items():
        free = next(number for number in range(_OTHER_PORT, 1 << 16) if number not in ports)
        yield Front(address, "TCP", free, "other port of ClusterIP")
    for cidr in node.service_cidrs:
        unused = next(
            (a for a in representatives([cidr], node.family) if contains(cidr, a) and a not in used), ""
        )
        if unused:
            yield Front(unused, "TCP", _OTHER_PORT, "unused address of ServiceCIDR")


def _of_port(
    plan: ServicePlan, port: PortPlan, node: NodeConfig, local_addresses: Collection[str]
) -> Iterator[Front]:
    service = f"{plan.namespace}/{plan.name}"
    ranges = [node.local_traffic.value] if node.local_traffic and node.local_traffic.by == "range" else []
    near = (each.address for each in (*port.cluster, *port.local) if each.local)
    endpoints = tuple(dict.fromkeys(near))
    limited = (
        *ranges,
        *port.source_ranges,
        *(f"{ip}/{128 if ':' in ip else 32}" for ip in port.load_balancer_ips),
    )

    def front(address: str, number: int, kind: str, cidrs: Iterable[str] = ranges) -> Front:
        return Front(address, port.protocol, number, kind, service, endpoints, tuple(cidrs))

    if port.cluster_ip:
        yield front(port.cluster_ip, port.port, "ClusterIP")
    for address in port.external_ips:
        yield front(
            address, port.port, "external IP", limited if address in port.load_balancer_ips else ranges
        )
    for address in port.load_balancer_ips:
        yield front(address, port.port, "load balancer IP", limited)
    if port.node_port:
        for address in local_addresses:
            if address not in port.node_port_except:
                yield front(address, port.node_port, "node port")
