"""Services and their EndpointSlices: what is valid, and yet probably not meant."""

from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Final

from kubeproxy.api import types
from kubeproxy.api.addresses import contains, unpack
from kubeproxy.api.rows import Condition, EndpointRow
from kubeproxy.insight.doctor.check import ERROR, NOTE, WARNING, Symptom, check, of_module
from kubeproxy.insight.doctor.facts import Facts
from kubeproxy.model.findings import Finding, Reason
from kubeproxy.model.plan import Key

_GROUP: Final = "Services"
_READY: Final = int(Condition.READY)
_DRAINING: Final = int(Condition.SERVING | Condition.TERMINATING)
_MOST: Final = 5


def _found(facts: Facts, reason: Reason) -> Iterator[tuple[str, Finding]]:
    """The Services with a finding."""
    for key, found in facts.findings().known.items():
        for finding in found:
            if finding.reason == reason:
                yield "/".join(key), finding


def _of(finding: Finding) -> str:
    """The family and ports that a finding is limited to."""
    return "".join(f" ({part})" for part in (finding.family, finding.ports) if part)


@check(
    "KP060",
    "Services have endpoints",
    group=_GROUP,
    severity=WARNING,
    looks_at="EndpointSlices of each Service",
)
def no_endpoints(facts: Facts) -> Iterator[Symptom]:
    """The selector matches no Pod, or no controller wrote EndpointSlices."""
    for name, finding in _found(facts, "NoEndpoints"):
        namespace, _, service = name.partition("/")
        other = f" of its families; it has endpoints of {finding.detail}" if finding.detail else ""
        yield Symptom(
            f"{name} has no endpoints{_of(finding)}: connections are rejected",
            f"no EndpointSlice of it has an endpoint{other}",
            f"compare its selector with the labels of its Pods: kubectl -n {namespace} get service {service} -o wide; get pods --show-labels",
            service=name,
        )


@check(
    "KP061", "Services have ready endpoints", group=_GROUP, severity=ERROR, looks_at="conditions of endpoints"
)
def no_ready(facts: Facts) -> Iterator[Symptom]:
    """There are Pods, and none is ready."""
    for name, finding in _found(facts, "NoReadyEndpoints"):
        namespace, _, _ = name.partition("/")
        yield Symptom(
            f"{name} has endpoints and none is ready{_of(finding)}: connections are rejected",
            f"not ready: {_addresses(facts, name, lambda e: not e.conditions & _READY)}",
            f"see why its Pods are not ready: kubectl -n {namespace} describe pods",
            service=name,
        )


@check("KP062", "ports of Services have endpoints", group=_GROUP, severity=ERROR, looks_at="names of ports")
def port_names(facts: Facts) -> Iterator[Symptom]:
    """Ports of a Service and of its EndpointSlices belong together by name and protocol."""
    for name, finding in _found(facts, "PortWithoutEndpoints"):
        yield Symptom(
            f"{name} has a port without endpoints{_of(finding)}",
            f"its EndpointSlices have the ports {finding.detail}",
            "make the names and protocols of the ports equal; a named targetPort must be a port of the container",
            service=name,
        )


@check(
    "KP063",
    "ports of EndpointSlices are those of the Service",
    group=_GROUP,
    severity=WARNING,
    looks_at="names of ports",
)
def unknown_ports(facts: Facts) -> Iterator[Symptom]:
    """A port of an EndpointSlice that the Service does not have."""
    for name, finding in _found(facts, "UnknownEndpointPort"):
        yield Symptom(
            f"EndpointSlices of {name} have ports that it does not have{_of(finding)}",
            "nothing is sent to these ports",
            "make the names and protocols of the ports equal, or remove the port",
            service=name,
        )


@check(
    "KP064",
    "internal policy Local has endpoints here",
    group=_GROUP,
    severity=WARNING,
    looks_at="internalTrafficPolicy",
)
def internal_local(facts: Facts) -> Iterator[Symptom]:
    """Packets of this node to the ClusterIP are dropped."""
    for name, finding in _found(facts, "NoLocalEndpointsInternal"):
        yield Symptom(
            f"{name}: connections from this node are dropped{_of(finding)}",
            "internalTrafficPolicy is Local, and all usable endpoints are on other nodes",
            "run its Pods on every node (DaemonSet), or set internalTrafficPolicy to Cluster",
            service=name,
        )


@check(
    "KP065",
    "external policy Local has endpoints here",
    group=_GROUP,
    severity=NOTE,
    looks_at="externalTrafficPolicy",
)
def external_local(facts: Facts) -> Iterator[Symptom]:
    """A load balancer knows this from the health check; clients of a node port do not."""
    for name, finding in _found(facts, "NoLocalEndpointsExternal"):
        yield Symptom(
            f"{name}: external connections to this node are dropped{_of(finding)}",
            "externalTrafficPolicy is Local, and all usable endpoints are on other nodes",
            "use a node that has an endpoint; load balancers must use the health check node port",
            service=name,
        )


@check(
    "KP066",
    "EndpointSlices have a Service",
    group=_GROUP,
    severity=WARNING,
    looks_at="label kubernetes.io/service-name, in manifests",
)
def no_service(facts: Facts) -> Iterator[Symptom]:
    """Reported for manifests only: in a cluster this is normal for a moment."""
    for name, finding in _found(facts, "NoService"):
        yield Symptom(
            f"Service {name} does not exist, and EndpointSlices name it",
            finding.detail,
            "correct the label kubernetes.io/service-name, or add the Service",
            service=name,
        )


@check(
    "KP067",
    "each front has one Service",
    group=_GROUP,
    severity=ERROR,
    looks_at="addresses and node ports that several Services name",
)
def contested(facts: Facts) -> Iterator[Symptom]:
    """One Service owns a front (`model.claims`); the other one is not served there."""
    seen: dict[tuple[Key, str], None] = {}
    for _, key, plan in facts.all_plans():
        for lost in plan.lost:
            if (key, str(lost)) in seen:
                continue
            seen[key, str(lost)] = None
            own = lost.owner == key
            yield Symptom(
                f"{'/'.join(key)} is not served at {lost}",
                "it names this front twice" if own else f"Service {'/'.join(lost.owner)} has it",
                "give one of them another address or port (contested-fronts.md)",
                service="/".join(key),
            )


@check(
    "KP068",
    "topology hints are followed",
    group=_GROUP,
    severity=WARNING,
    looks_at="hints of ready endpoints",
)
def hints(facts: Facts) -> Iterator[Symptom]:
    """Hints that cannot be followed are ignored: traffic goes to all zones."""
    taken = facts.snapshot()
    seen: set[Key] = set()
    for family, key, plan in facts.all_plans():
        ready = [
            e
            for s in taken.state.slices(key)
            if s.family == family
            for e in s.endpoints
            if e.conditions & _READY
        ]
        hinted = [e for e in ready if e.zone_hints or e.node_hints]
        if (
            not hinted
            or key in seen
            or not any(port.uses_cluster and not port.topology for port in plan.ports)
        ):
            continue
        seen.add(key)
        zone = taken.nodes[0].zone
        if not zone:
            continue  # KP069
        missing = [e.address for e in ready if e not in hinted]
        reason = (
            f"{len(missing)} of {len(ready)} ready endpoints have no hint: {types.listed(missing, _MOST)}"
            if missing
            else f"no ready endpoint has a hint for zone {zone!r} or node {taken.name!r}"
        )
        yield Symptom(
            f"{'/'.join(key)}: topology hints are ignored",
            reason,
            "wait until the EndpointSlice controller has set all hints; if it does not, see its Events and whether each zone has enough endpoints",
            service="/".join(key),
        )


@check(
    "KP069",
    "the zone of this node is known",
    group=_GROUP,
    severity=WARNING,
    looks_at="label topology.kubernetes.io/zone of the Node",
)
def zone(facts: Facts) -> Iterator[Symptom]:
    """Without it hints for zones cannot be followed."""
    taken = facts.snapshot()
    if taken.nodes[0].zone:
        return
    hinted = [
        key
        for key in taken.state.services
        if facts.mine(key) and any(e.zone_hints for s in taken.state.slices(key) for e in s.endpoints)
    ]
    if hinted:
        yield Symptom(
            f"{len(hinted)} Services have hints for zones, and the zone of this node is not known",
            f"Node {taken.name} has no label topology.kubernetes.io/zone, or cannot be read; e.g. {'/'.join(hinted[0])}",
            "set the label, or the right to read the Node (api-access.md)",
        )


@check(
    "KP070",
    "endpoints are not all terminating",
    group=_GROUP,
    severity=WARNING,
    looks_at="conditions of endpoints",
)
def draining(facts: Facts) -> Iterator[Symptom]:
    """Only Pods that are being deleted are left; when they end, connections are rejected."""
    taken = facts.snapshot()
    for key in taken.state.services:
        if not facts.mine(key):
            continue
        rows = [e for s in taken.state.slices(key) for e in s.endpoints]
        left = [e.address for e in rows if e.conditions & _DRAINING == _DRAINING]
        if left and not any(e.conditions & _READY for e in rows):
            yield Symptom(
                f"{'/'.join(key)} is served by terminating endpoints only",
                f"they still serve: {types.listed(left, _MOST)}",
                "see why no new Pod is ready: kubectl describe the Deployment; use maxUnavailable: 0",
                service="/".join(key),
            )


@check(
    "KP071",
    "endpoints of policy Local name their node",
    group=_GROUP,
    severity=WARNING,
    looks_at="nodeName of endpoints",
)
def nameless(facts: Facts) -> Iterator[Symptom]:
    """An endpoint without nodeName is local on no node."""
    taken = facts.snapshot()
    for key, row in taken.state.services.items():
        if not facts.mine(key) or not (row.internal_local or row.external_local):
            continue
        if without := [e.address for s in taken.state.slices(key) for e in s.endpoints if not e.node]:
            yield Symptom(
                f"{'/'.join(key)} has policy Local and endpoints without a node",
                f"without nodeName: {types.listed(without, _MOST)}",
                "set nodeName in its EndpointSlices, or use policy Cluster",
                service="/".join(key),
            )


@check(
    "KP072",
    "ClusterIPs are not addresses of Pods or nodes",
    group=_GROUP,
    severity=ERROR,
    looks_at="clusterCIDR, addresses of this host, ClusterIPs",
)
def overlap(facts: Facts) -> Iterator[Symptom]:
    """An address that is both is translated wherever it is meant."""
    taken = facts.snapshot()
    ranges = facts.options().config.cluster_cidrs
    own = {unpack(a.packed) for a in facts.addresses()} if not _bound(facts) else set()
    for key, row in taken.state.services.items():
        for ip in row.cluster_ips if facts.mine(key) else ():
            where = next((c for c in ranges if (":" in c) == (":" in ip) and contains(c, ip)), "")
            if where or ip in own:
                yield Symptom(
                    f"{'/'.join(key)}: its ClusterIP is an address of {'Pods' if where else 'this host'}, too",
                    f"{ip} is in clusterCIDR {where}" if where else f"{ip} is on an interface of this host",
                    "use different ranges for Services and Pods, and correct clusterCIDR if it is wrong",
                    service="/".join(key),
                )


def _bound(facts: Facts) -> bool:
    """Whether the mode gives ClusterIPs to this host: ipvs mode does."""
    return any(node.ipvs is not None for node in facts.snapshot().nodes)


@check(
    "KP073",
    "Services do not take ports of this host",
    group=_GROUP,
    severity=ERROR,
    looks_at="external IPs, load balancer IPs, listening sockets",
)
def hijack(facts: Facts) -> Iterator[Symptom]:
    """A Service at an address of this host gets the connections to its processes, e.g. SSH or the kubelet."""
    if _bound(facts):
        return
    own = {unpack(a.packed) for a in facts.addresses()}
    listening = {(s.protocol, s.port): s.address for s in facts.listeners()}
    for _, key, plan in facts.all_plans():
        for port in plan.ports:
            for ip in {*port.external_ips, *port.load_balancer_ips} & own:
                if (address := listening.get((port.protocol, port.port))) and _covers(address, ip):
                    yield Symptom(
                        f"{'/'.join(key)} takes connections to a process of this host",
                        f"{ip} is an address of this host, and a process listens on port {port.port} {port.protocol}",
                        "remove the address from externalIPs, or use another port",
                        service="/".join(key),
                    )


@check(
    "KP074", "node ports are free", group=_GROUP, severity=ERROR, looks_at="node ports and listening sockets"
)
def taken_ports(facts: Facts) -> Iterator[Symptom]:
    """A process of this host that listens on a node port gets no connections."""
    taken = facts.snapshot()
    if not taken.mode.forwards or any(node.relayed or node.listens for node in taken.nodes):
        return
    listening = {(s.protocol, s.port): s.address for s in facts.listeners() if not _loopback(s.address)}
    seen: set[int] = set()
    for _, key, plan in facts.all_plans():
        for port in plan.ports:
            address = listening.get((port.protocol, port.node_port))
            if address and port.node_port and port.node_port not in seen:
                seen.add(port.node_port)
                yield Symptom(
                    f"{'/'.join(key)}: a process of this host listens on its node port {port.node_port}",
                    f"a {port.protocol} socket is bound to {address} port {port.node_port} (ss -lntup)",
                    "move the process to a port outside of the range of node ports (--service-node-port-range)",
                    service="/".join(key),
                )


def _covers(bound: str, address: str) -> bool:
    return ip_address(bound).is_unspecified or bound == address


def _loopback(address: str) -> bool:
    return ip_address(address).is_loopback


def _addresses(facts: Facts, name: str, wanted: Callable[[EndpointRow], bool]) -> str:
    namespace, _, service = name.partition("/")
    slices = facts.snapshot().state.slices((namespace, service))
    return types.listed([e.address for s in slices for e in s.endpoints if wanted(e)], _MOST)


CHECKS: Final = of_module(globals())
