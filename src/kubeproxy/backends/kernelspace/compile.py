"""One Service: the load balancers it needs in HNS. A pure function from its plan.

Every front is a load balancer with one port mapping and one address at most. A load balancer has one port for
all its endpoints, so it has the endpoints with the port that most of them have; the others are left out and
reported. A front without usable endpoints has no load balancer, because HNS refuses one without endpoints:
packets to it leave by the host's routes.

Endpoints are named by their addresses here; `view` has the ids that HNS gave them.
"""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from msgspec import Struct

from kubeproxy import protocols
from kubeproxy.api.addresses import IPV6, family_of
from kubeproxy.backends.kernelspace.names import PRESERVE, BalancerKey
from kubeproxy.backends.kernelspace.network import HnsFacts
from kubeproxy.model.plan import PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint, with_one_port
from kubeproxy.windows import values


class BalancerTarget(NamedTuple):
    """An endpoint of a load balancer.

    Attributes:
        address: its address; "" for the endpoint of the host itself.
        local: it is on this node, so a network plug-in makes it in HNS; otherwise this program does.
    """

    address: str
    local: bool


HOST: Final = BalancerTarget("", True)
"""The endpoint of the host, by the name that the configuration has."""


class FrontBalancer(Struct, frozen=True, gc=False):
    """A load balancer that a Service needs.

    Attributes:
        key: its address, protocol and port.
        internal_port: the port of its endpoints.
        targets: its endpoints, in the order of their addresses; never empty.
        flags: see `windows.values`.
        port_flags: those of its port mapping.
        distribution: how it distributes connections.
        source_vip: the source address of packets to endpoints on other nodes; "" for the clients' own.
        health: it is for health checks of a load balancer outside the cluster.
    """

    key: BalancerKey
    internal_port: int
    targets: tuple[BalancerTarget, ...]
    flags: int = 0
    port_flags: int = 0
    distribution: int = 0
    source_vip: str = ""
    health: bool = False


class ServiceBalancers(NamedTuple):
    """A Service's needs.

    Attributes:
        balancers: its load balancers.
        vips: on overlay networks, its ClusterIPs, each of which needs an endpoint.
        doubts: what HNS cannot do of what the Service asks for: a field, and what is done instead.
    """

    balancers: dict[BalancerKey, FrontBalancer]
    vips: tuple[str, ...]
    doubts: tuple[tuple[str, str], ...]


NOTHING: Final = ServiceBalancers({}, (), ())


def compile_service(plan: ServicePlan | None, facts: HnsFacts) -> ServiceBalancers:
    """The needs of a Service; none for None."""
    if plan is None:
        return NOTHING
    doubts: list[tuple[str, str]] = []
    found: dict[BalancerKey, FrontBalancer] = {}
    for port in plan.ports:
        for balancer in _of_port(port, facts, doubts):
            found.setdefault(balancer.key, balancer)  # an address may be an external and an ingress IP
    if facts.health_vips:
        for port in plan.ports:
            for balancer in _health_checks(plan, port, facts):
                found.setdefault(balancer.key, balancer)
    vips = tuple(dict.fromkeys(port.cluster_ip for port in plan.ports if port.cluster_ip))
    return ServiceBalancers(found, vips if facts.overlay else (), tuple(dict.fromkeys(doubts)))


def _of_port(p: PortPlan, facts: HnsFacts, doubts: list[tuple[str, str]]) -> Iterator[FrontBalancer]:
    """The load balancers of a Service port, without those of health checks."""
    external_local = p.external_local and facts.has_dsr
    preserve = p.preserve_destination and facts.has_dsr
    direct = values.DSR if external_local else 0
    outside = p.local if external_local else p.cluster
    ingress = p.local if external_local or preserve else p.cluster
    distribution = values.SOURCE_IP if p.affinity and facts.has_affinity else 0
    source_vip = facts.source_vip(p.endpoints)
    family = values.IPV6 if facts.family == IPV6 else 0
    protocol = protocols.NUMBERS[p.protocol]

    def front(
        vip: str, port: int, to: tuple[Endpoint, ...], flags: int, port_flags: int
    ) -> Iterator[FrontBalancer]:
        if not to:
            return
        used = with_one_port(to)
        number = used[0].port
        if len(used) < len(to):
            doubts.append((f"port {p.name}", _ports_differ(number, to)))
        targets = tuple([BalancerTarget(each.address, each.local) for each in used])
        key = BalancerKey(vip, protocol, port, facts.family == IPV6)
        yield FrontBalancer(
            key,
            number,
            targets,
            flags | family,
            port_flags,
            distribution,
            source_vip if facts.overlay else "",
        )

    if p.cluster_ip:
        to = p.internal_endpoints
        yield from front(p.cluster_ip, p.port, to, values.DSR if facts.dsr else 0, 0)
    if p.node_port:
        flags = values.VIP_EXTERNAL_IP | values.LOCAL_ROUTED_VIP
        yield from front("", p.node_port, ingress, direct, flags)
    for ip in p.external_ips:
        yield from front(ip, p.port, outside, direct, values.VIP_EXTERNAL_IP)
    for ip in p.load_balancer_ips:
        flags = values.VIP_EXTERNAL_IP | (PRESERVE if preserve else 0)
        yield from front(ip, p.port, ingress, values.DSR if preserve else direct, flags)
    if p.affinity and not facts.has_affinity:
        doubts.append(("spec.sessionAffinity", f"HNS {facts.version} has no session affinity; there is none"))
    if p.source_ranges:
        doubts.append(("spec.loadBalancerSourceRanges", "HNS cannot limit clients; all are admitted"))


def _health_checks(plan: ServicePlan, p: PortPlan, facts: HnsFacts) -> Iterator[FrontBalancer]:
    """The load balancers that lead health checks of load balancer IPs to this host's health server.

    While all endpoints on this node terminate, the health-check node port would report that there are none.
    """
    number = plan.health_check_port or facts.healthz_port
    external_local = p.external_local and facts.has_dsr
    preserve = p.preserve_destination and facts.has_dsr
    ready = p.local if external_local else p.cluster
    if not number or not ready or (external_local and plan.health_check_port and not plan.local_ready):
        return
    for ip in p.load_balancer_ips:
        ipv6 = family_of(ip) == IPV6
        yield FrontBalancer(
            BalancerKey(ip, protocols.TCP, number, ipv6),
            number,
            (HOST,),
            values.IPV6 if ipv6 else 0,
            PRESERVE if preserve else 0,
            health=True,
        )


def _ports_differ(number: int, endpoints: Iterable[Endpoint]) -> str:
    others = [each for each in endpoints if each.port != number]
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return (
        f"endpoint {others[0].address}{more} has port {others[0].port}, others {number}; HNS takes one port for each"
        " load balancer, so it is left out"
    )
