"""Whether endpoints answer: connections that are tried now, and those of clients in connection tracking."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from kubeproxy.api.addresses import join
from kubeproxy.insight.doctor.check import ERROR, WARNING, Symptom, check, of_module
from kubeproxy.insight.doctor.facts import Facts, FlowCount
from kubeproxy.insight.doctor.probe import TIMED_OUT
from kubeproxy.model.plan import FORWARD, Key, PortPlan

_GROUP: Final = "endpoints"
_REFUSED: Final = "Connection refused"
_EXPLAIN: Final = "kube-proxy explain"
_FEW: Final = 3
"""Less than so many unanswered connections are no finding: each one is unanswered at first."""


def _tried(facts: Facts, wanted: str) -> Iterator[tuple[str, str, str]]:
    """Endpoints by result: refused, no answer, or any other error. Address and port, Service, result."""
    probes = facts.probes()
    for place, seen in probes.endpoints.items():
        kind = seen if seen in {_REFUSED, TIMED_OUT} else "other"
        if seen and kind == wanted:
            services = [key for key in probes.services.get(place, ()) if facts.mine(key)]
            yield join(*place), "/".join(services[0]) if services else "", seen


@check(
    "KP080",
    "endpoints accept connections",
    group=_GROUP,
    severity=ERROR,
    looks_at="a connection from this node to each endpoint",
    costly="connections",
)
def refused(facts: Facts) -> Iterator[Symptom]:
    """The Pod is there and nothing listens."""
    for place, service, seen in _tried(facts, _REFUSED):
        yield Symptom(
            f"{service}: endpoint {place} refuses connections, yet is ready",
            f"connect from this node: {seen}",
            "see whether the process listens on this port of the Pod's address, not on 127.0.0.1, and add a readiness probe",
            service=service,
        )


@check(
    "KP081",
    "endpoints answer",
    group=_GROUP,
    severity=ERROR,
    looks_at="a connection from this node to each endpoint",
    costly="connections",
)
def silent(facts: Facts) -> Iterator[Symptom]:
    """Packets are lost, or dropped by a rule."""
    for place, service, _ in _tried(facts, TIMED_OUT):
        yield Symptom(
            f"{service}: endpoint {place} does not answer, yet is ready",
            "connect from this node: no answer within 2 s",
            f"{_EXPLAIN} --from node --to {place} --live --connect names the rule of this node that drops packets, if one does;"
            " otherwise check the network between the nodes, and NetworkPolicies that forbid connections of nodes",
            service=service,
        )


@check(
    "KP082",
    "endpoints can be reached",
    group=_GROUP,
    severity=ERROR,
    looks_at="a connection from this node to each endpoint",
    costly="connections",
)
def unreachable(facts: Facts) -> Iterator[Symptom]:
    """There is no route, or a router on the way reports that."""
    for place, service, seen in _tried(facts, "other"):
        yield Symptom(
            f"{service}: endpoint {place} cannot be reached, yet is ready",
            f"connect from this node: {seen}",
            "check the routes of the network plugin: ip route get ADDRESS; whether the node of the endpoint is up",
            service=service,
        )


def _fronts(facts: Facts) -> dict[tuple[str, str, int], tuple[Key, PortPlan]]:
    """The fronts that have an address, with protocol and port."""
    return {
        (port.protocol, address, port.port): (key, port)
        for _, key, plan in facts.all_plans()
        for port in plan.ports
        for address in (port.cluster_ip, *port.external_ips, *port.load_balancer_ips)
        if address
    }


def _flows(facts: Facts) -> Iterator[tuple[FlowCount, Key, PortPlan]]:
    """Tracked flows to fronts, in modes that translate them: a relay connects to endpoints itself."""
    fronts = _fronts(facts) if facts.snapshot().mode.forwards else {}
    for flow in facts.tracking().flows:
        if found := fronts.get((flow.protocol, *flow.front)):
            yield flow, *found


@check(
    "KP083",
    "connections of clients are answered",
    group=_GROUP,
    severity=ERROR,
    looks_at="tracked TCP connections by endpoint",
)
def unanswered(facts: Facts) -> Iterator[Symptom]:
    """Clients sent SYNs to an endpoint through a Service, and no answer was seen, or it was lost."""
    states: dict[tuple[Key, tuple[str, int]], Counter[str]] = {}
    fronts: dict[tuple[Key, tuple[str, int]], str] = {}
    for flow, key, _ in _flows(facts):
        if flow.protocol == "TCP" and flow.endpoint != flow.front:
            states.setdefault((key, flow.endpoint), Counter())[flow.state] += flow.count
            fronts[key, flow.endpoint] = join(*flow.front)
    for (key, place), counts in states.items():
        name, at = "/".join(key), join(*place)
        trace = f"{_EXPLAIN} --from CLIENT --to {fronts[key, place]} --live"
        silent, lost = counts["SYN_SENT"], counts["SYN_RECV"]
        answered = counts.total() - silent - lost
        if silent >= _FEW and silent > answered + lost:
            yield Symptom(
                f"{name}: clients get no answer from endpoint {at}",
                f"{silent} connections are in state SYN_SENT, {answered + lost} were answered",
                f"{trace} shows whether their packets leave this node and answers come back; if they leave, check the Pod and the network"
                " to its node; if answers take another way, see KP031 and KP032",
                service=name,
            )
        elif lost >= _FEW and lost > answered:
            yield Symptom(
                f"{name}: answers of endpoint {at} do not reach clients",
                f"{lost} connections are in state SYN_RECV: the endpoint answered, and the client has not confirmed it; {answered} were established",
                f"{trace} names the rule of this node that drops the answers, if one does; otherwise look between the client and this node",
                service=name,
            )


@check(
    "KP084",
    "UDP flows lead to endpoints",
    group=_GROUP,
    severity=WARNING,
    looks_at="tracked UDP and SCTP flows",
)
def stale(facts: Facts) -> Iterator[Symptom]:
    """A client that keeps sending stays with an endpoint that is gone."""
    gone: Counter[tuple[Key, tuple[str, int]]] = Counter()
    for flow, key, port in _flows(facts):
        serving = {(e.address, e.port) for e in port.serving}
        if flow.protocol != "TCP" and flow.endpoint != flow.front and flow.endpoint not in serving:
            gone[key, flow.endpoint] += flow.count
    for (key, place), count in gone.items():
        yield Symptom(
            f"{'/'.join(key)}: {count} flows lead to {join(*place)}, which is no endpoint any more",
            "connection tracking still translates them",
            f"kube-proxy deletes such flows after each change; if it does not run: conntrack -D -p udp --reply-src {place[0]}",
            service="/".join(key),
        )


@check(
    "KP085",
    "TCP connections lead to endpoints",
    group=_GROUP,
    severity=WARNING,
    looks_at="tracked TCP connections in state ESTABLISHED",
)
def abandoned(facts: Facts) -> Iterator[Symptom]:
    """They end by themselves only if the client or its kernel notices."""
    gone: Counter[tuple[Key, tuple[str, int]]] = Counter()
    taken = facts.snapshot()
    for flow, key, _ in _flows(facts):
        if flow.state == "ESTABLISHED" and flow.endpoint != flow.front:
            known = {e.address for s in taken.state.slices(key) for e in s.endpoints}
            if flow.endpoint[0] not in known:
                gone[key, flow.endpoint] += flow.count
    for (key, place), count in gone.items():
        yield Symptom(
            f"{'/'.join(key)}: {count} open connections lead to {join(*place)}, which is no endpoint any more",
            "they are in state ESTABLISHED, and no EndpointSlice of the Service has the address",
            f"they end when clients time out; to end them now: conntrack -D -p tcp --reply-src {place[0]}",
            service="/".join(key),
        )


@check(
    "KP086",
    "packets to Services are translated",
    group=_GROUP,
    severity=ERROR,
    looks_at="tracked flows to fronts that were not translated",
)
def untranslated(facts: Facts) -> Iterator[Symptom]:
    """Packets to a Service with endpoints left this node untranslated: a rule did not match, or came late."""
    passed: Counter[tuple[Key, tuple[str, int]]] = Counter()
    for flow, key, port in _flows(facts):
        if (
            flow.endpoint == flow.front
            and not flow.replied
            and not flow.zone
            and port.internal_action == FORWARD
        ):
            passed[key, flow.front] += flow.count
    for (key, place), count in passed.items():
        yield Symptom(
            f"{'/'.join(key)}: packets to {join(*place)} are not translated",
            f"{count} tracked flows go to this address itself and have no answer, and the Service has endpoints",
            "see what kube-proxy explain says of such a packet; for UDP: conntrack -D -p udp --orig-dst ADDRESS",
            service="/".join(key),
        )


@check(
    "KP087",
    "ClusterIPs answer",
    group=_GROUP,
    severity=ERROR,
    looks_at="a connection from this node to each ClusterIP",
    costly="connections",
)
def fronts(facts: Facts) -> Iterator[Symptom]:
    """All endpoints that were tried accept connections and the ClusterIP does not: the rules are wrong."""
    probes = facts.probes()
    failing = {
        key for place, seen in probes.endpoints.items() if seen for key in probes.services.get(place, ())
    }
    for (key, front), seen in probes.fronts.items():
        if seen and key not in failing:
            yield Symptom(
                f"{'/'.join(key)}: ClusterIP {join(front[0], front[2])} does not answer, and its endpoints do",
                f"connect from this node: {seen}",
                f"{_EXPLAIN} --from node --to {join(front[0], front[2])} says where the packet goes and whether the kernel agrees",
                service="/".join(key),
            )


CHECKS: Final = of_module(globals())
