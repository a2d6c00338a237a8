"""Makes the plan of a Service: which fronts it owns, and which endpoints serve them.

The caller provides the owners of fronts (`model.claims`), so that the plan of a Service needs no other
Service.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from kubeproxy.api.addresses import IPV6, Family, family_of, join
from kubeproxy.api.rows import Condition, EndpointRow, PortRow, ServiceRow, SliceRow
from kubeproxy.model.distribution import Divider, supported
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Front, FrontKind, Key, LostFront, PortPlan, ServicePlan
from kubeproxy.model.ranges import without
from kubeproxy.model.select import Endpoint, Selection, select
from kubeproxy.model.spill import used_now

_READY = int(Condition.READY)
_SERVING = int(Condition.SERVING)
_TERMINATING = int(Condition.TERMINATING)
_KEPT = _READY | _SERVING

Address = tuple[str, int]
"""The address and port of an endpoint."""

Owners = Callable[[Front], Key | None]
"""Returns the owner of a front; None if it has none."""


def plan(
    service: ServiceRow,
    slices: Iterable[SliceRow],
    node: NodeConfig,
    owner: Owners = lambda _: None,
    silent: Sequence[Address] = (),
    full: Collection[tuple[str, Address]] = (),
) -> ServicePlan | None:
    """Makes the plan of a Service for one family; None when it has no ClusterIP of that family.

    Args:
        service: the Service.
        slices: all its EndpointSlices, in a stable order (by name); those of another family are ignored.
        node: the node of the plan.
        owner: returns the owner of a front. A front that another Service owns is left out and listed in
            `lost`.
        silent: the endpoints of the Service that do not answer, those that have not for longest first.
        full: near endpoints that have as many connections as their limit, each with the name of the port as
            in the plan.
    """
    family = node.family
    cluster_ip = next((ip for ip in service.cluster_ips if family_of(ip) == family), None)
    if cluster_ip is None:
        return None
    mine = [s for s in slices if s.family == family]
    served = _by_port(mine)
    fronts = _ServiceFronts(service, cluster_ip, node, owner)
    base = f"{service.namespace}/{service.name}"
    denied = _of_family(service.denied_sources, family)
    ranges = without(_of_family(service.source_ranges, family), denied, family)
    outside = without(_of_family(service.allowed_sources, family), denied, family)
    balancing = None if service.balancing is None else supported(service.balancing, node.balancing)
    ports = []
    for port in service.ports:
        at = fronts.of(port)
        external = bool(at.node_port or at.external_ips or at.load_balancer_ips)
        if not (at.cluster_ip or external):
            continue
        internal_local = service.internal_local and bool(at.cluster_ip)
        preserve_destination = service.preserve_destination and node.hns is not None
        groups: dict[Endpoint, str] = {}
        candidates = _candidates(served.get((port.name, port.protocol), ()), node.name, groups)
        chosen = select(
            candidates,
            cluster=not internal_local or external,
            local=internal_local or (external and (service.external_local or preserve_destination)),
            node=node.name,
            zone=node.zone,
        )
        divider: Divider | None = None
        if balancing is not None:
            rows = {endpoint: (row, groups.get(endpoint, "")) for row, endpoint in candidates}
            divider = Divider(balancing, rows, zone=node.zone, own_tables=node.balancing.own_tables)
            chosen = replace(chosen, cluster=divider.used(chosen.cluster), local=divider.used(chosen.local))
        cluster, local = chosen.cluster, chosen.local
        skipped: tuple[Endpoint, ...] = ()
        if silent and port.protocol == "TCP":
            cluster, local = answering(cluster, silent), answering(local, silent)
            skipped = _left_out(chosen, cluster, local)
        cluster, of_cluster = (cluster, None) if divider is None else divider.divide(cluster)
        local, of_local = (local, None) if divider is None else divider.divide(local)
        name, steered = f"{base}:{port.name}" if port.name else base, None
        if of_cluster is not None and of_cluster.preferred and node.balancing.steered:
            steered = of_cluster
            cluster, of_cluster = used_now(cluster, steered, [at for of, at in full if of == name])
        ports.append(
            PortPlan(
                name=name,
                protocol=port.protocol,
                port=port.port,
                cluster_ip=at.cluster_ip,
                node_port=at.node_port,
                node_port_except=at.node_port_except,
                external_ips=at.external_ips,
                load_balancer_ips=at.load_balancer_ips,
                source_ranges=ranges if at.load_balancer_ips else (),
                external_ranges=outside if at.node_port or at.external_ips else (),
                affinity=service.affinity,
                internal_local=internal_local,
                external_local=service.external_local,
                cluster=cluster,
                local=local,
                any=chosen.any,
                topology=chosen.topology,
                known_endpoints=len(candidates),
                serving=() if port.protocol == "TCP" else _serving(candidates, chosen.cluster),
                near=tuple([b for _, b in candidates if b.local]) if node.ipvs else (),
                present=tuple([endpoint for _, endpoint in candidates])
                if service.ends_connections and port.protocol == "TCP"
                else None,
                silent=skipped,
                preserve_destination=preserve_destination,
                at_connect=service.at_connect
                and all(each is None or each.by_weight for each in (of_cluster, of_local))
                and steered is None,
                cluster_distribution=of_cluster,
                local_distribution=of_local,
                preferred=() if steered is None else steered.preferred,
                bound=0 if steered is None else steered.bound,
            )
        )
    health_check_port = fronts.health_check_port(service.health_check_port)
    return ServicePlan(
        namespace=service.namespace,
        name=service.name,
        ports=tuple(ports),
        health_check_port=health_check_port,
        local_ready=_local_ready(mine, node.name) if health_check_port else 0,
        proxy_protocol=service.proxy_protocol,
        lost=tuple(fronts.lost),
        skips_silent=service.skips_silent,
    )


def answering(endpoints: tuple[Endpoint, ...], silent: Sequence[Address]) -> tuple[Endpoint, ...]:
    """Endpoints without those that do not answer: at most half of them are left out, and never the last.

    Args:
        endpoints: the endpoints that would be used.
        silent: those that do not answer; the first ones are left out first.
    """
    there = {(endpoint.address, endpoint.port) for endpoint in endpoints}
    out = frozenset([each for each in silent if each in there][: len(endpoints) // 2])
    if not out:
        return endpoints
    return tuple([endpoint for endpoint in endpoints if (endpoint.address, endpoint.port) not in out])


def _left_out(
    chosen: Selection, cluster: tuple[Endpoint, ...], local: tuple[Endpoint, ...]
) -> tuple[Endpoint, ...]:
    """The endpoints that were chosen and are in neither list."""
    left = {*cluster, *local}
    return tuple(dict.fromkeys([e for e in (*chosen.cluster, *chosen.local) if e not in left]))


class _PortFronts(NamedTuple):
    """The fronts of a Service port that its Service owns."""

    cluster_ip: str
    node_port: int = 0
    node_port_except: tuple[str, ...] = ()
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()


class _ServiceFronts:
    """Divides the fronts that a Service names into those that it owns and those that another Service owns.

    Attributes:
        lost: those that another Service owns.
    """

    def __init__(self, service: ServiceRow, cluster_ip: str, node: NodeConfig, owner: Owners) -> None:
        self._key = service.namespace, service.name
        self._cluster_ip = cluster_ip
        self._external_ips = self._others(service.external_ips, node.family) if node.external_ips else {}
        self._load_balancer_ips = self._others(service.load_balancer_ips, node.family)
        self._named: dict[str, FrontKind] = {}
        if self._external_ips or self._load_balancer_ips:
            self._named.update(dict.fromkeys(self._external_ips, "external IP"))
            self._named.update(dict.fromkeys(self._load_balancer_ips, "load balancer IP"))
        self._named[cluster_ip] = "ClusterIP"
        self._own_addresses = node.node_port_addresses if node.follows_addresses else (node.address,)
        self._owner = owner
        self._taken: set[Front] = set()
        self.lost: list[LostFront] = []

    def of(self, port: PortRow) -> _PortFronts:
        """The fronts of a port.

        An address that is the ClusterIP and is also named otherwise counts only as the ClusterIP.
        """
        if len(self._named) == 1 and not port.node_port:  # a faster path for most ports
            front: Front = (self._cluster_ip, port.protocol, port.port)
            return _PortFronts(self._cluster_ip if self._takes("ClusterIP", front) else "")
        got = {
            address
            for address, kind in self._named.items()
            if self._takes(kind, (address, port.protocol, port.port))
        }
        front = ("", port.protocol, port.node_port)
        node_port = port.node_port if port.node_port and self._takes("node port", front) else 0
        return _PortFronts(
            cluster_ip=self._cluster_ip if self._cluster_ip in got else "",
            node_port=node_port,
            node_port_except=tuple(self._overruled(port)) if node_port else (),
            external_ips=tuple([ip for ip in self._external_ips if ip in got]),
            load_balancer_ips=tuple([ip for ip in self._load_balancer_ips if ip in got]),
        )

    def _others(self, addresses: tuple[str, ...], family: Family) -> dict[str, None]:
        """Addresses of a family, each once, without the ClusterIP."""
        if not addresses:
            return {}
        return {ip: None for ip in addresses if family_of(ip) == family and ip != self._cluster_ip}

    def health_check_port(self, port: int) -> int:
        """The health-check node port if the Service owns it, else 0.

        Must be called after all calls of `of`.
        """
        return port if port and self._takes("health check node port", ("", "TCP", port)) else 0

    def _takes(self, kind: FrontKind, front: Front) -> bool:
        owner = self._owner(front)
        if front in self._taken or (owner is not None and owner != self._key):
            self.lost.append(LostFront(kind, *front, owner or self._key))
            return False
        self._taken.add(front)
        return True

    def _overruled(self, port: PortRow) -> Iterator[str]:
        """The addresses of the node at which another front has the number of a node port."""
        for address in self._own_addresses:
            owner = self._owner((address, port.protocol, port.node_port))
            if owner is not None:
                yield address
                if owner != self._key:
                    self.lost.append(LostFront("node port", address, port.protocol, port.node_port, owner))


def _of_family(addresses: tuple[str, ...], family: str) -> tuple[str, ...]:
    ipv6 = family == IPV6
    return tuple([a for a in addresses if (":" in a) == ipv6]) if addresses else ()


def _by_port(slices: list[SliceRow]) -> dict[tuple[str, str], list[tuple[SliceRow, int]]]:
    """By name and protocol of a port, the slices that have it and its number there.

    There may be thousands of both.
    """
    found: dict[tuple[str, str], list[tuple[SliceRow, int]]] = {}
    for piece in slices:
        for port in piece.ports:
            found.setdefault((port.name, port.protocol), []).append((piece, port.port))
    return found


def _candidates(
    served: Iterable[tuple[SliceRow, int]], node: str, groups: dict[Endpoint, str]
) -> list[tuple[EndpointRow, Endpoint]]:
    """The endpoints of a Service port in the order of their addresses.

    Of two with equal address and port, the better one. The groups of their EndpointSlices are added to
    `groups`, if these have any.
    """
    found: dict[str, tuple[EndpointRow, Endpoint]] = {}
    for piece, number in served:
        for row in piece.endpoints:
            at = join(row.address, number)
            candidate = (row, Endpoint(row.address, number, row.node == node))
            other = found.get(at)
            if other is None or merit(row, local=candidate[1].local) > merit(other[0], local=other[1].local):
                found[at] = candidate
                if piece.group or groups:
                    groups[candidate[1]] = piece.group
    return [found[at] for at in sorted(found)]


def _serving(
    candidates: list[tuple[EndpointRow, Endpoint]], cluster: tuple[Endpoint, ...]
) -> tuple[Endpoint, ...]:
    """The endpoints that are ready or still serve while they terminate.

    If they equal `cluster`, that tuple, to save memory.
    """
    serving = tuple([endpoint for row, endpoint in candidates if row.conditions & _KEPT])
    return cluster if serving == cluster else serving


def merit(row: EndpointRow, *, local: bool) -> tuple[bool, bool, bool, bool]:
    """The rank of endpoints with equal address and port: not terminating, then ready, serving, local.

    There are two when a Pod gets the address of a Pod that terminates, and while an endpoint moves between
    slices.

    Args:
        row: the endpoint.
        local: it is on this node.
    """
    conditions = row.conditions
    return (
        not conditions & _TERMINATING,
        bool(conditions & _READY),
        bool(conditions & _SERVING),
        local,
    )


def _local_ready(slices: list[SliceRow], node: str) -> int:
    ready = (
        e.address for s in slices if s.ports for e in s.endpoints if e.node == node and e.conditions & _READY
    )
    return len(set(ready))
