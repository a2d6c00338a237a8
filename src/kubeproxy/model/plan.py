"""The plan of a Service: for each of its fronts, what happens to a packet.

A `ServicePlan` is an immutable value for one Service and one IP family. It is complete: a driver needs no
other data of Kubernetes to program it. If a new plan equals the old one, nothing needs to be done. What all
modes need to know (where packets to the ClusterIP are sent, what happens if there is no endpoint) is computed
here, by properties.
"""

from collections.abc import Collection, Iterator
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from kubeproxy.api.addresses import join
from kubeproxy.api.rows import Protocol
from kubeproxy.model.distribution import Distribution
from kubeproxy.model.select import Endpoint, Topology

Key = tuple[str, str]
"""Namespace and name of a Service."""

Front = tuple[str, Protocol, int]
"""Address, protocol and port. A node port or a health-check node port has no address.

It is served at addresses of the node.
"""

FrontKind = Literal["ClusterIP", "external IP", "load balancer IP", "node port", "health check node port"]

Action = Literal["forward", "drop", "reject"]
"""Sent to an endpoint; dropped because all usable endpoints are elsewhere.

Rejected because there are none at all.
"""

FORWARD: Final[Action] = "forward"
DROP: Final[Action] = "drop"
REJECT: Final[Action] = "reject"


class PortPlan(Struct, frozen=True, gc=False):
    """One port of a Service under one IP family.

    Internal traffic goes to the ClusterIP; external traffic to external IPs, load balancer IPs and node
    ports.

    Attributes:
        name: "namespace/name:port", or "namespace/name" when the port has no name.
        cluster_ip: the ClusterIP; "" if another Service owns that front.
        node_port: the node port; 0 for none.
        node_port_except: addresses of the node at which another front has precedence over the node port.
        external_ips: the external IPs at which this Service owns the front, without its ClusterIP.
        load_balancer_ips: the same for load balancer IPs. An address may be in both.
        cluster: endpoints for traffic with the Cluster policy.
        local: endpoints for traffic with the Local policy.
        any: a usable endpoint exists on any node.
        source_ranges: the clients that may use the load balancer IPs; empty for all.
        external_ranges: the clients that may use the node port, and the external IPs that are not load
            balancer IPs, too; empty for all.
        affinity: seconds a client stays with its endpoint; 0 for no affinity.
        topology: which hints limited `cluster`.
        known_endpoints: the number of endpoints, usable or not.
        serving: for UDP and SCTP, all endpoints that keep their flows, whether they get new flows or not.
            Empty for TCP, whose connections end by themselves.
        near: in ipvs mode, all endpoints on this node, usable or not.
        present: of TCP ports of Services that end the connections of removed endpoints: all endpoints that
            were not removed, usable or not. None: connections to removed endpoints continue.
        silent: endpoints that are in neither `cluster` nor `local` only because they do not answer.
        preserve_destination: in kernelspace mode, packets to load balancer IPs and node ports go to endpoints
            on this node with their destination unchanged.
        at_connect: in ebpf mode, sockets are connected to endpoints; otherwise packets are translated, which
            is also so if the source address decides on the endpoint, which a socket has not got yet.
        cluster_distribution: how new connections are divided among `cluster`; None: at random, with equal
            shares.
        local_distribution: the same for `local`.
        preferred: in modes whose plans follow the connections: near endpoints that come first. `cluster` has
            only the endpoints that are used now.
        bound: up to how many open connections of each of them.
    """

    name: str
    protocol: Protocol
    port: int
    cluster_ip: str
    node_port: int = 0
    node_port_except: tuple[str, ...] = ()
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()
    affinity: int = 0
    internal_local: bool = False
    external_local: bool = False
    cluster: tuple[Endpoint, ...] = ()
    local: tuple[Endpoint, ...] = ()
    any: bool = False
    topology: Topology = ""
    known_endpoints: int = 0
    serving: tuple[Endpoint, ...] = ()
    near: tuple[Endpoint, ...] = ()
    present: tuple[Endpoint, ...] | None = None
    silent: tuple[Endpoint, ...] = ()
    external_ranges: tuple[str, ...] = ()
    preserve_destination: bool = False
    at_connect: bool = True
    cluster_distribution: Distribution | None = None
    local_distribution: Distribution | None = None
    preferred: tuple[Endpoint, ...] = ()
    bound: int = 0

    @property
    def external(self) -> bool:
        """Whether it has fronts for external traffic."""
        return bool(self.node_port or self.external_ips or self.load_balancer_ips)

    @property
    def external_only(self) -> tuple[str, ...]:
        """The external IPs that are not load balancer IPs, too."""
        others = frozenset(self.load_balancer_ips)
        return tuple([ip for ip in self.external_ips if ip not in others])

    @property
    def uses_cluster(self) -> bool:
        """Whether some traffic has the Cluster policy; external traffic from this node always has."""
        return not self.internal_local or self.external

    @property
    def uses_local(self) -> bool:
        """Whether some traffic has the Local policy."""
        return self.internal_local or (self.external and (self.external_local or self.preserve_destination))

    @property
    def internal_endpoints(self) -> tuple[Endpoint, ...]:
        """The endpoints for internal traffic."""
        return self.local if self.internal_local else self.cluster

    @property
    def external_endpoints(self) -> tuple[Endpoint, ...]:
        """The endpoints for external traffic that did not start on this node."""
        return self.local if self.external_local else self.cluster

    @property
    def internal_distribution(self) -> Distribution | None:
        """How internal traffic is divided among its endpoints; see `cluster_distribution`."""
        return self.local_distribution if self.internal_local else self.cluster_distribution

    @property
    def external_distribution(self) -> Distribution | None:
        """The same for external traffic that did not start on this node."""
        return self.local_distribution if self.external_local else self.cluster_distribution

    @property
    def internal_action(self) -> Action:
        """What happens to internal traffic."""
        return self._action(self.internal_endpoints)

    @property
    def external_action(self) -> Action:
        """What happens to external traffic that did not start on this node."""
        return self._action(self.external_endpoints)

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Every endpoint some traffic may use, in address order."""
        if not self.uses_local:
            return self.cluster
        if not self.uses_cluster:
            return self.local
        if set(self.local) <= set(self.cluster):
            return self.cluster
        return tuple(sorted({*self.cluster, *self.local}, key=lambda b: join(b.address, b.port)))

    def _action(self, endpoints: tuple[Endpoint, ...]) -> Action:
        return FORWARD if endpoints else DROP if self.any else REJECT


class LostFront(Struct, frozen=True, gc=False):
    """A front that a Service names and does not own (`model.claims`).

    Attributes:
        kind: the kind of the front in the Service that names it.
        address: the address; "" for all addresses of the node.
        owner: the Service that owns it; the same Service if it names the front twice.
    """

    kind: FrontKind
    address: str
    protocol: Protocol
    port: int
    owner: Key

    @property
    def front(self) -> Front:
        """Address, protocol and port."""
        return self.address, self.protocol, self.port

    def __str__(self) -> str:
        at = join(self.address, self.port) if self.address else str(self.port)
        return f"{self.kind} {at} {self.protocol}"


class ServicePlan(Struct, frozen=True, gc=False):
    """A Service under one IP family.

    Attributes:
        ports: its ports, except those without any front of their own.
        health_check_port: its health-check node port; 0 for none.
        local_ready: the number of distinct addresses of ready local endpoints, which that port reports.
        proxy_protocol: its endpoints expect PROXY protocol headers; only userspace mode can send them.
        lost: the fronts that it names and another Service owns; they are in none of the other attributes.
        skips_silent: endpoints that do not answer get no connections.
    """

    namespace: str
    name: str
    ports: tuple[PortPlan, ...]
    health_check_port: int = 0
    local_ready: int = 0
    proxy_protocol: bool = False
    lost: tuple[LostFront, ...] = ()
    skips_silent: bool = False

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return self.namespace, self.name


def fronts_of(plan: ServicePlan) -> Iterator[Front]:
    """Every front of a plan; those of the health-check node port, too."""
    for port in plan.ports:
        for address in (port.cluster_ip, *port.external_ips, *port.load_balancer_ips):
            if address:
                yield address, port.protocol, port.port
        if port.node_port:
            yield "", port.protocol, port.node_port
    if plan.health_check_port:
        yield "", "TCP", plan.health_check_port


def without_fronts(plan: ServicePlan, gone: Collection[Front]) -> ServicePlan:
    """A plan without some of its fronts; ports that have none left are left out."""

    def left(port: PortPlan) -> PortPlan:
        def stays(address: str, number: int) -> bool:
            return (address, port.protocol, number) not in gone

        return replace(
            port,
            cluster_ip=port.cluster_ip if stays(port.cluster_ip, port.port) else "",
            node_port=port.node_port if stays("", port.node_port) else 0,
            external_ips=tuple([ip for ip in port.external_ips if stays(ip, port.port)]),
            load_balancer_ips=tuple([ip for ip in port.load_balancer_ips if stays(ip, port.port)]),
        )

    if not gone:
        return plan
    ports = [left(port) for port in plan.ports]
    health = plan.health_check_port
    return replace(
        plan,
        ports=tuple([port for port in ports if port.cluster_ip or port.external]),
        health_check_port=0 if ("", "TCP", health) in gone else health,
    )


PortId = tuple[str, Protocol]
"""Name of a Service port as in `PortPlan`, and its protocol."""


def with_same_firewall(before: ServicePlan | None, after: ServicePlan | None) -> frozenset[PortId]:
    """The ports whose source ranges are equal in two plans, and apply to the same fronts.

    There may be thousands of ranges, which a driver can then skip.
    """
    if before is None or after is None:
        return frozenset()
    old = {
        (port.name, port.protocol): port
        for port in before.ports
        if port.source_ranges or port.external_ranges
    }
    return frozenset(
        [
            (port.name, port.protocol)
            for port in after.ports
            if (was := old.get((port.name, port.protocol))) is not None
            and was.source_ranges == port.source_ranges
            and was.load_balancer_ips == port.load_balancer_ips
            and was.external_ranges == port.external_ranges
            and was.external_only == port.external_only
            and (was.port, was.node_port, was.node_port_except, was.any)
            == (port.port, port.node_port, port.node_port_except, port.any)
        ]
    )
