"""One Service: what it needs in the kernel. A pure function from its plan.

Every front is a virtual server: ClusterIP, external IPs, load balancer IPs and, on each of the node's
addresses, the node port. A front whose traffic policy is Local has the local endpoints or, where there are
none, all of them, as in the reference: other modes drop such packets. Addresses that are not the host's own
are given to kube-ipvs0.

iptables rules look up in sets what else is to happen to a packet: masquerading, source ranges.
"""

from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from kubeproxy import protocols
from kubeproxy.api.addresses import is_link_local, is_loopback, pack, unpack
from kubeproxy.backends.admission import Admission
from kubeproxy.backends.ipvs import names
from kubeproxy.backends.ipvs.schedulers import chosen
from kubeproxy.backends.shared import matches
from kubeproxy.model.node import IPVSSettings, NodeConfig
from kubeproxy.model.plan import PortId, PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint
from kubeproxy.netlink import ipvs
from kubeproxy.netlink.ipset import Element
from kubeproxy.netlink.ipvs import Real, Settings, Virtual

DEFAULT_SCHEDULER: Final = "rr"

PREFERENCE: Final = 1 << 20
"""How much larger the weight of an endpoint is that is preferred: as the most connections it may have."""

_MOST_WEIGHT: Final = (1 << 31) - 1
"""The largest weight that the kernel stores."""


class Target(NamedTuple):
    """What a virtual server is to be: its settings and its real servers.

    Attributes:
        reals: its real servers, sorted.
        weights: their weights; none if all are 1.
        staying: the endpoints that were not removed, if connections to those that were are to end; None:
            they continue.
        bounds: how many open connections each real server may have, 0 for any number; none if that is so
            for all.
    """

    settings: Settings
    reals: tuple[Real, ...]
    weights: tuple[int, ...] = ()
    staying: tuple[Real, ...] | None = None
    bounds: tuple[int, ...] = ()

    def limits(self) -> dict[Real, int]:
        """How many open connections real servers may have that have such a limit."""
        return {real: bound for real, bound in zip(self.reals, self.bounds, strict=False) if bound}

    def weighted(self) -> dict[Real, int]:
        """The weight of each real server."""
        if not self.weights:
            return dict.fromkeys(self.reals, 1)
        return dict(zip(self.reals, self.weights, strict=True))


class ServiceServers(NamedTuple):
    """A Service's needs.

    Attributes:
        virtuals: its virtual servers.
        entries: elements of sets, by the set's short name. Those of the set of addresses are also
            kube-ipvs0's.
        drops: rules of KUBE-IPVS-OUT-FILTER.
    """

    virtuals: dict[Virtual, Target]
    entries: dict[tuple[str, Element], None]
    drops: dict[str, None]


NOTHING: Final = ServiceServers({}, {}, {})


class ServerContext:
    """All that a Service's needs depend on besides its plan."""

    def __init__(self, node: NodeConfig) -> None:
        settings = node.ipvs or IPVSSettings()
        self.host = matches.host(node.family)
        self.scheduler = settings.scheduler or DEFAULT_SCHEDULER
        self.flags = ipvs.SCHEDULER_2 if self.scheduler == "mh" else 0
        self.admits_node = Admission(node.address)
        self.node_port_addresses = tuple(
            pack(a) for a in node.node_port_addresses if not (is_loopback(a) or is_link_local(a))
        )
        self.own = frozenset(map(pack, node.local_addresses))


def compile_service(
    plan: ServicePlan | None, d: ServerContext, without: Collection[PortId] = frozenset()
) -> ServiceServers:
    """The needs of a Service; none for None.

    Args:
        plan: its plan.
        d: what they depend on besides.
        without: ports whose source ranges are left out, because they are not to change.
    """
    if plan is None:
        return NOTHING
    out = ServiceServers({}, {}, {})
    for port in plan.ports:
        _compile_port(port, d, out, without)
    if plan.health_check_port:
        out.entries[names.HEALTH_CHECK, Element(port=plan.health_check_port)] = None
    return out


def _compile_port(p: PortPlan, d: ServerContext, out: ServiceServers, without: Collection[PortId]) -> None:
    protocol = protocols.NUMBERS[p.protocol]
    entries = out.entries
    inside = _target(p, d, local=p.internal_local)
    outside = inside
    if p.external and p.external_local != p.internal_local:
        outside = _target(p, d, local=p.external_local)

    def front(text: str, target: Target) -> bytes:
        address = pack(text)
        out.virtuals[Virtual(protocol, address, p.port)] = target
        if address not in d.own:
            entries[names.ADDRESSES, Element(address)] = None
        return address

    if p.cluster_ip:
        address = front(p.cluster_ip, inside)
        entries[names.CLUSTER_IP, Element(address, protocol, p.port)] = None
    for ip in p.external_ips:
        address = front(ip, outside)
        name = names.EXTERNAL_IP_LOCAL if p.external_local else names.EXTERNAL_IP
        entries[name, Element(address, protocol, p.port)] = None
    for ip in p.load_balancer_ips:
        address = front(ip, outside)
        element = Element(address, protocol, p.port)
        entries[names.BALANCER, element] = None
        if p.external_local:
            entries[names.BALANCER_LOCAL, element] = None
        if p.source_ranges:
            entries[names.BALANCER_FIREWALL, element] = None
            if (p.name, p.protocol) not in without:
                _firewall(p, ip, element, d, out)
    at_node = _node_port(p, protocol, outside, d, out) if p.node_port else ()
    if p.external_ranges and (p.name, p.protocol) not in without:
        fronts = (*(Element(pack(ip), protocol, p.port) for ip in p.external_only), *at_node)
        _limit(p.external_ranges, fronts, d, out)
    for b in p.near:
        address = pack(b.address)
        entries[names.LOOP_BACK, Element(address, protocol, b.port, address)] = None


def _target(p: PortPlan, d: ServerContext, *, local: bool) -> Target:
    """What the fronts with one of the policies are to be."""
    local = local and bool(p.local)
    endpoints = p.local if local else p.cluster
    by = p.local_distribution if local else p.cluster_distribution
    scheduler, flags = chosen(by, d.scheduler, d.flags)
    settings = Settings(scheduler, flags | (ipvs.PERSISTENT if p.affinity else 0), p.affinity)
    staying = None if p.present is None else _as_reals(p.present)
    weights = by.weights if by is not None and by.weights else (1,) * len(endpoints)
    reals = (Real(pack(b.address), b.port) for b in endpoints)
    if by is None or not by.preferred:
        return made_of(settings, dict(zip(reals, weights, strict=True)), staying)
    near = frozenset(by.preferred)
    first = min(PREFERENCE, _MOST_WEIGHT // max(weights))
    found = sorted(
        (real, weight * (first if b in near else 1), by.bound if b in near else 0)
        for real, b, weight in zip(reals, endpoints, weights, strict=True)
    )
    in_order, factors, bounds = zip(*found, strict=True)
    return Target(settings, in_order, factors, staying, bounds)


def made_of(settings: Settings, weights: dict[Real, int], staying: tuple[Real, ...] | None = None) -> Target:
    """A virtual server with real servers of these weights."""
    reals = tuple(sorted(weights))
    equal = all(weight == 1 for weight in weights.values())
    return Target(settings, reals, () if equal else tuple([weights[real] for real in reals]), staying)


def _as_reals(endpoints: Iterable[Endpoint]) -> tuple[Real, ...]:
    return tuple(sorted({Real(pack(b.address), b.port) for b in endpoints}))


def _firewall(p: PortPlan, ip: str, element: Element, d: ServerContext, out: ServiceServers) -> None:
    """Admits the clients. Packets of the host itself have their destination as source and skip INPUT."""
    _admit(p.source_ranges, element, out)
    if d.admits_node(p.source_ranges):
        out.entries[names.BALANCER_SOURCE_IP, element._replace(other=element.address)] = None
    else:
        rule = f"-s {ip}{d.host} -m ipvs --vproto {element.protocol} --vaddr {ip} --vport {p.port} -j DROP"
        out.drops[rule] = None


def _limit(ranges: tuple[str, ...], fronts: Iterable[Element], d: ServerContext, out: ServiceServers) -> None:
    """Limits the clients of external IPs and node ports, by the sets that limit those of load balancers.

    What the host itself sends skips INPUT, too. Its source may be any address of the host.
    """
    drops = not d.admits_node(ranges)
    for element in fronts:
        out.entries[names.BALANCER_FIREWALL, element] = None
        _admit(ranges, element, out)
        if drops:
            to = f"--vproto {element.protocol} --vaddr {unpack(element.address)} --vport {element.port}"
            out.drops[f"-m addrtype --src-type LOCAL -m ipvs {to} -j DROP"] = None


def _admit(ranges: tuple[str, ...], element: Element, out: ServiceServers) -> None:
    """Admits clients to a front whose clients are limited."""
    for cidr in ranges:
        network, _, length = cidr.partition("/")
        entry = element._replace(other=pack(network), prefix=int(length))
        out.entries[names.BALANCER_SOURCE_CIDR, entry] = None


def _node_port(
    p: PortPlan, protocol: int, target: Target, d: ServerContext, out: ServiceServers
) -> list[Element]:
    """Adds what a node port needs; returns its fronts."""
    sets = [names.NODE_PORTS[p.protocol]]
    if p.external_local:
        sets.append(names.NODE_PORTS_LOCAL[p.protocol])
    overruled = set(map(pack, p.node_port_except))
    addresses = [address for address in d.node_port_addresses if address not in overruled]
    for address in addresses:
        out.virtuals[Virtual(protocol, address, p.node_port)] = target
    fronts = [Element(address, protocol, p.node_port) for address in addresses]
    for name in sets:
        for element in fronts if p.protocol == "SCTP" else [Element(port=p.node_port)]:
            out.entries[name, element] = None
    return fronts
