"""What plans do to a packet: to which endpoints it may be sent, whether it is masqueraded, and why.

These are the semantics of all modes. The rules of each mode are tested against them, and the command
`explain` reports them. `Manners` has the differences between modes.

A packet here is the first one of its connection; later ones are treated in the same way. Of several endpoints
one is chosen at random or as `Verdict.distribution` says, or with session affinity the one that the client
had before.
"""

from collections.abc import Collection, Iterable
from typing import Literal

from msgspec import Struct, structs

from kubeproxy.api.addresses import contains, join
from kubeproxy.api.rows import Protocol
from kubeproxy.model.distribution import Distribution, chosen, shares
from kubeproxy.model.manners import Manners
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import DROP, FORWARD, REJECT, Action, FrontKind, PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint, with_one_port


class Packet(Struct, frozen=True, gc=False):
    """The first packet of a connection.

    Attributes:
        source: its source address.
        destination: the address it is sent to.
        port: the port it is sent to.
        interface: the interface on which it arrives; "" if a process of this node sends it.
    """

    source: str
    destination: str
    port: int
    protocol: Protocol = "TCP"
    interface: str = ""


class Verdict(Struct, frozen=True, gc=False):
    """What happens to a packet.

    Attributes:
        action: forwarded to one of the endpoints, dropped, rejected; "pass" if its destination is not a
            front.
        reason: the reason, for messages.
        port: the Service port that it is sent to.
        endpoints: the endpoints to which it may be sent.
        masquerade: whether its source is translated to an address of the node, whichever endpoint is chosen.
        front: the kind of the front; "" if its destination is not a front.
        local: its traffic policy is Local: only endpoints on this node are used.
        at_connect: its socket is connected to the endpoint, so that it is not translated, or gets the error.
    """

    action: Action | Literal["pass"]
    reason: str
    port: PortPlan | None = None
    endpoints: tuple[Endpoint, ...] = ()
    masquerade: bool = False
    front: FrontKind | Literal[""] = ""
    local: bool = False
    at_connect: bool = False

    @property
    def distribution(self) -> Distribution | None:
        """How new connections are divided among the endpoints; None: at random, with equal shares."""
        if self.port is None:
            return None
        return self.port.local_distribution if self.local else self.port.cluster_distribution

    @property
    def shares(self) -> tuple[float, ...]:
        """The part of new connections from this source that each of the endpoints gets, from 0 to 1."""
        return (1.0,) if len(self.endpoints) == 1 else shares(self.endpoints, self.distribution)

    def masquerades(self, packet: Packet, endpoint: Endpoint) -> bool:
        """Whether the packet is masqueraded if it is sent to this endpoint.

        Always if the endpoint sent it, unless it is not translated.
        """
        return not self.at_connect and (self.masquerade or packet.source == endpoint.address)


class Book:
    """Plans of one family, in which packets are looked up."""

    def __init__(
        self,
        plans: Iterable[ServicePlan],
        node: NodeConfig,
        local_addresses: Collection[str],
        *,
        manners: Manners,
        service_cidrs: Collection[str] = (),
    ) -> None:
        """Indexes the plans.

        Args:
            plans: the plans, made with the owners of fronts.
            node: the node of the plans.
            local_addresses: all addresses of the node.
            manners: those of the mode.
            service_cidrs: the ranges of ClusterIPs.

        Raises:
            ValueError: a front is in two plans.
        """
        self._node = node
        self._local_addresses = frozenset(local_addresses)
        self._manners = manners
        self._service_cidrs = tuple(service_cidrs)
        self._fronts: dict[tuple[str, str, int], tuple[FrontKind, PortPlan]] = {}
        self._node_ports: dict[tuple[str, int], PortPlan] = {}
        self._cluster_ips: set[str] = set()
        self._addresses: set[str] = set()
        for p in (port for plan in plans for port in plan.ports):
            self._cluster_ips.add(p.cluster_ip)
            addresses: dict[str, FrontKind] = {
                **dict.fromkeys(p.load_balancer_ips, "load balancer IP"),
                **dict.fromkeys(p.external_ips, "external IP"),  # their rules are checked first
                p.cluster_ip: "ClusterIP",
            }
            self._addresses.update(addresses)
            for address, kind in addresses.items():
                if address and self._fronts.setdefault((address, p.protocol, p.port), (kind, p))[1] is not p:
                    raise ValueError(f"{join(address, p.port)} {p.protocol} is in two plans")
            if p.node_port and self._node_ports.setdefault((p.protocol, p.node_port), p) is not p:
                raise ValueError(f"node port {p.node_port} {p.protocol} is in two plans")

    def verdict(self, packet: Packet) -> Verdict:
        """The verdict on a packet."""
        found = self._verdict(packet)
        if found.action == FORWARD and found.distribution is not None:
            only = chosen(found.endpoints, found.distribution, packet.source)
            if only is not None:
                return structs.replace(found, endpoints=(only,))
        if found.action not in {FORWARD, REJECT} or not self._is_at_connect(packet, found):
            return found
        return structs.replace(
            found,
            masquerade=False,
            at_connect=True,
            reason=f"{found.reason}; decided when the socket is connected",
        )

    def _verdict(self, packet: Packet) -> Verdict:
        front = self._fronts.get((packet.destination, packet.protocol, packet.port))
        if front is not None:
            kind, port = front
            if kind == "ClusterIP":
                return self._internal(packet, port)
            firewalled = not self._manners.admits_all and self._is_firewalled(packet, port, kind)
            if firewalled and not self._admitted(packet, port):
                reason = f"{packet.source} is not in the loadBalancerSourceRanges"
                return Verdict(DROP, reason, port, front=kind)
            if packet.destination not in port.load_balancer_ips and not self._allowed(packet, port):
                return _denied(packet, port, kind)
            return self._external(packet, port, kind)
        if packet.destination in self._local_addresses:
            found = self._node_ports.get((packet.protocol, packet.port))
            if found is not None and self._node.serves_node_ports(packet.destination):
                if not self._allowed(packet, found):
                    return _denied(packet, found, "node port")
                return self._external(packet, found, "node port")
            if found is not None and self._manners.refuses_everywhere and found.external_action != FORWARD:
                return self._refused(found, found.external_action, "node port", local=found.external_local)
        if self._manners.owns_addresses and self._is_virtual(packet.destination):
            return Verdict(REJECT, "the Service's address has no such port")
        if self._manners.closed_cluster_ips:
            if packet.destination in self._cluster_ips:
                return Verdict(REJECT, "the ClusterIP has no such port")
            if any(contains(cidr, packet.destination) for cidr in self._service_cidrs):
                return Verdict(DROP, "the address is of a ServiceCIDR, but no Service has it")
        return Verdict("pass", "the address and port are no Service's")

    def _internal(self, packet: Packet, port: PortPlan) -> Verdict:
        action, local, endpoints = port.internal_action, port.internal_local, port.internal_endpoints
        if self._manners.falls_back:
            action, local, endpoints = _falling_back(port, local=local)
        if action != FORWARD:
            return self._refused(port, action, "ClusterIP", local=local)
        endpoints = self._with_one_port(endpoints)
        masquerade = False
        if self._node.masquerade_all:
            masquerade, why = True, "all is masqueraded"
        elif self._node.local_traffic is None and self._manners.owns_addresses and not packet.interface:
            masquerade, why = True, "from the ClusterIP, which is an address of this node"
        elif self._node.local_traffic is None:
            why = "it is not known which Pods are local"
        elif self._is_of_local_pod(packet):
            why = "from a local Pod"
        else:
            masquerade, why = True, "not from a local Pod"
        reason = f"ClusterIP, internalTrafficPolicy {'Local' if local else 'Cluster'}; {why}"
        return Verdict(FORWARD, reason, port, endpoints, masquerade, "ClusterIP", local)

    def _external(self, packet: Packet, port: PortPlan, kind: FrontKind) -> Verdict:
        if self._manners.falls_back or self._manners.by_policy_alone:
            return self._by_policy_alone(port, kind)
        if not port.any:
            own = not packet.interface and packet.destination not in self._local_addresses
            if own and self._manners.lets_own_out:
                reason = f"{kind}: no usable endpoint, but from this node"
                return Verdict("pass", reason, port, front=kind, local=port.external_local)
            return self._refused(port, REJECT, kind, local=port.external_local)
        if not port.external_local:
            reason = f"{kind}, externalTrafficPolicy Cluster"
            return Verdict(FORWARD, reason, port, port.cluster, True, kind)
        reason = f"{kind}, externalTrafficPolicy Local"
        if self._is_of_local_pod(packet):
            return Verdict(FORWARD, f"{reason}, but from a local Pod", port, port.cluster, front=kind)
        if packet.source in self._local_addresses:
            return Verdict(FORWARD, f"{reason}, but from this node", port, port.cluster, True, kind)
        if port.external_action != FORWARD:
            return self._refused(port, port.external_action, kind, local=True)
        return Verdict(FORWARD, reason, port, port.local, front=kind, local=True)

    def _by_policy_alone(self, port: PortPlan, kind: FrontKind) -> Verdict:
        """External traffic in a mode in which it does not matter who sends."""
        wants_local = port.external_local or (port.preserve_destination and kind != "external IP")
        if self._manners.falls_back:
            action, local, endpoints = _falling_back(port, local=wants_local)
        else:
            local, endpoints = wants_local, port.local if wants_local else port.cluster
            action = FORWARD if endpoints else DROP if port.any else REJECT
        if action != FORWARD:
            return self._refused(port, action, kind, local=local)
        endpoints = self._with_one_port(endpoints)
        reason = f"{kind}, externalTrafficPolicy {'Local' if port.external_local else 'Cluster'}"
        if wants_local and not port.external_local:
            reason += ", but its destination is preserved"
        if wants_local and not local:
            reason += ", but no endpoint is on this node"
        return Verdict(FORWARD, reason, port, endpoints, not wants_local, kind, local)

    def _with_one_port(self, endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
        return with_one_port(endpoints) if self._manners.one_port else endpoints

    def _is_virtual(self, address: str) -> bool:
        """Whether an address is the node's only because a Service has it."""
        return address in self._addresses and address not in self._local_addresses

    def _refused(self, port: PortPlan, action: Action, kind: FrontKind, *, local: bool) -> Verdict:
        where = "on this node" if action == DROP else "in the cluster"
        if self._manners.passes_unserved:
            reason = f"{kind}: no usable endpoint {where}, so it is no front"
            return Verdict("pass", reason, port, front=kind, local=local)
        return Verdict(action, f"{kind}: no usable endpoint {where}", port, front=kind, local=local)

    def _is_at_connect(self, packet: Packet, found: Verdict) -> bool:
        """Whether the socket of a packet that is forwarded is connected to the endpoint."""
        port, settings = found.port, self._node.connects
        if not self._manners.at_connect or settings is None or port is None or not port.at_connect:
            return False
        if port.protocol not in {"TCP", "UDP"}:
            return False
        if port.external_ranges and found.front != "ClusterIP":
            return False
        if packet.destination in port.load_balancer_ips and port.source_ranges:
            return False
        if not packet.interface:
            return True
        if found.front == "ClusterIP" and self._node.masquerade_all:
            return False
        return settings.everywhere and self._is_of_local_pod(packet)

    def _is_of_local_pod(self, packet: Packet) -> bool:
        by = self._node.local_traffic
        return by is not None and by.matches(packet.source, packet.interface)

    def _is_firewalled(self, packet: Packet, port: PortPlan, kind: str) -> bool:
        """Whether the source ranges apply to a packet to an external address."""
        if self._manners.owns_addresses and not packet.interface:
            return packet.destination in port.load_balancer_ips and port.any
        if self._manners.firewall_first:
            return packet.destination in port.load_balancer_ips
        return kind == "load balancer IP" and port.any

    def _allowed(self, packet: Packet, port: PortPlan) -> bool:
        """Whether a client may use a node port, or an external IP that is no load balancer IP."""
        manners, ranges, source = self._manners, port.external_ranges, packet.source
        own = manners.owns_addresses and not packet.interface
        if not ranges or manners.admits_all or not (port.any or (manners.firewall_first and not own)):
            return True
        if own:
            source = self._node.address
        return any(contains(cidr, source) for cidr in ranges)

    def _admitted(self, packet: Packet, port: PortPlan) -> bool:
        """Whether a client may use the load balancer.

        If the node may, packets from the load balancer's IP may as well.
        """
        ranges = port.source_ranges
        if ranges and self._manners.owns_addresses and not packet.interface:
            return any(contains(cidr, self._node.address) for cidr in ranges)
        return (
            not ranges
            or any(contains(cidr, packet.source) for cidr in ranges)
            or (
                packet.source in port.load_balancer_ips
                and any(contains(cidr, self._node.address) for cidr in ranges)
            )
        )


def _denied(packet: Packet, port: PortPlan, kind: FrontKind) -> Verdict:
    return Verdict(DROP, f"{packet.source} is not an allowed source", port, front=kind)


def _falling_back(port: PortPlan, *, local: bool) -> tuple[Action, bool, tuple[Endpoint, ...]]:
    """What happens in a mode that uses endpoints elsewhere where none is on this node.

    Args:
        port: the port.
        local: the policy is Local.

    Returns:
        The action, whether only endpoints on this node are used, and the endpoints.
    """
    local = local and bool(port.local)
    endpoints = port.local if local else port.cluster
    return FORWARD if endpoints else REJECT, local, endpoints
