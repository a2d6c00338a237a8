"""Explains the verdict on a packet, step by step, with the endpoints it can and cannot reach.

The verdict itself is that of `verdict`; this is its explanation: which Services name the front, how the
source was classified, which endpoints were selected, and for each of the others the reason why it was not.
Nothing is decided here.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final, Literal

from msgspec import Struct

from kubeproxy.api.addresses import contains, join
from kubeproxy.api.rows import Condition, EndpointPortRow, EndpointRow, SliceRow
from kubeproxy.api.types import listed
from kubeproxy.model.manners import Manners
from kubeproxy.model.misses import misses
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import FORWARD, Front, Key, PortPlan, ServicePlan
from kubeproxy.model.planning import merit
from kubeproxy.model.select import Endpoint
from kubeproxy.model.state import State
from kubeproxy.model.verdict import Book, Packet, Verdict

Reason = Literal[
    "not ready",
    "does not answer",
    "terminating",
    "other zone",
    "other node",
    "not on this node",
    "no such port name",
    "other family",
    "duplicate",
    "source not allowed",
]
"""Why an endpoint gets no packets. "other zone" and "other node" are those its hints name."""

UNKNOWN_INTERFACE: Final = "?"
"""The interface of a packet that is received on an unknown one."""

MOST_RANGES: Final = 5
"""The maximum number of source ranges that are listed."""

MOST_MISSES: Final = 5
"""The maximum number of similar fronts that are listed."""


class Reached(Struct, frozen=True):
    """An endpoint that packets like this one reach.

    Attributes:
        address: its address.
        port: its port.
        share: the part of new connections it gets, from 0 to 1.
        local: it is on this node.
        node: the name of its node, "" if it is not known.
        zone: its zone, "" if it is not known.
        masquerade: the source of packets to it becomes an address of the node.
        slice: the name of the EndpointSlice it is from.
        terminating: it is terminating, and still serves; no endpoint is ready.
    """

    address: str
    port: int
    share: float
    local: bool
    node: str
    zone: str
    masquerade: bool
    slice: str
    terminating: bool = False


class Excluded(Struct, frozen=True):
    """An endpoint of the Service that packets like this one do not reach.

    Attributes:
        address: its address.
        port: its port; 0 if its EndpointSlice has no such port.
        reason: why.
        detail: more about it, "" if there is no more.
        node: the name of its node.
        zone: its zone.
        slice: the name of the EndpointSlice it is from.
    """

    address: str
    port: int
    reason: Reason
    detail: str = ""
    node: str = ""
    zone: str = ""
    slice: str = ""


class Stage(Struct, frozen=True):
    """One step of the decision.

    Attributes:
        name: what is decided.
        text: how, and why.
    """

    name: str
    text: str


class Explanation(Struct, frozen=True):
    """The verdict on a packet, and the reasons.

    Attributes:
        packet: the packet.
        verdict: what becomes of it.
        service: namespace and name of the Service it is for; None if it is for none.
        stages: the steps of the decision.
        endpoints: the endpoints that it can reach.
        excluded: the other endpoints of the Service port.
        plans: the plans of the Services that can own the destination, or have its address.
    """

    packet: Packet
    verdict: Verdict
    service: Key | None
    stages: tuple[Stage, ...]
    plans: tuple[ServicePlan, ...] = ()
    endpoints: tuple[Reached, ...] = ()
    excluded: tuple[Excluded, ...] = ()


def explain(
    state: State, node: NodeConfig, local_addresses: Collection[str], manners: Manners, packet: Packet
) -> Explanation:
    """Explains what happens to the first packet of a connection.

    Only the Services that can own its destination are planned.

    Args:
        state: the cluster.
        node: the node, under the family of the packet.
        local_addresses: every address of the node.
        manners: those of the mode.
        packet: the packet.
    """
    front: Front = (packet.destination, packet.protocol, packet.port)
    node_port: Front = ("", packet.protocol, packet.port)
    keys = {*state.rivals(front, node)[:1], *state.rivals(node_port, node)[:1]}
    keys |= {key for key, row in state.services.items() if packet.destination in row.cluster_ips}
    if manners.owns_addresses:
        keys |= {
            key
            for key, row in state.services.items()
            if packet.destination in row.external_ips or packet.destination in row.load_balancer_ips
        }
    plans = [plan for key in sorted(keys) if (plan := state.plan(key, node)) is not None]
    book = Book(plans, node, local_addresses, manners=manners, service_cidrs=node.service_cidrs)
    verdict = book.verdict(packet)
    if verdict.port is None:
        return Explanation(
            packet,
            verdict,
            None,
            tuple(_no_service(state, node, local_addresses, packet, verdict)),
            tuple(plans),
        )
    plan = next(plan for plan in plans if verdict.port in plan.ports)
    rivals = state.rivals(node_port if verdict.front == "node port" else front, node)
    rows = list(_rows(state.named_slices(plan.key), node))
    reached = tuple(_reached(verdict, packet, rows, verdict.port))
    stages = (
        Stage("front", _front(plan, verdict.port, verdict, rivals)),
        Stage("source", _source(packet, node, local_addresses)),
        *_policies(packet, verdict, verdict.port),
        *_topology(verdict, verdict.port, rows, node),
        *_endpoints(plan, rows, reached),
        Stage("verdict", f"{verdict.action}: {verdict.reason}"),
    )
    return Explanation(
        packet,
        verdict,
        plan.key,
        stages,
        tuple(plans),
        reached,
        tuple(_excluded(verdict, rows, verdict.port, node)),
    )


class _Row(Struct, frozen=True):
    """An endpoint in an EndpointSlice."""

    slice: str
    piece: SliceRow
    row: EndpointRow
    local: bool


def _rows(slices: Iterable[tuple[str, SliceRow]], node: NodeConfig) -> Iterator[_Row]:
    for name, piece in slices:
        for row in piece.endpoints:
            yield _Row(name, piece, row, bool(row.node) and row.node == node.name)


def _front(plan: ServicePlan, port: PortPlan, verdict: Verdict, rivals: Sequence[Key]) -> str:
    name = port.name.partition(":")[2]
    text = f"Service {plan.namespace}/{plan.name}{f', port {name}' if name else ''}, {verdict.front}"
    losers = [f"{namespace}/{other}" for namespace, other in rivals if (namespace, other) != plan.key]
    if losers:
        text += (
            f"; {', '.join(losers)} {'names' if len(losers) == 1 else 'name'} it, too, and does not get it"
        )
    return text


def _source(packet: Packet, node: NodeConfig, local_addresses: Collection[str]) -> str:
    if not packet.interface and packet.source in local_addresses:
        return f"{packet.source} is an address of this node"
    where = f", received on {packet.interface}" if packet.interface not in {"", UNKNOWN_INTERFACE} else ""
    by = node.local_traffic
    if by is None:
        return f"{packet.source}{where}: which Pods are local is not configured, so no source counts as a local Pod"
    what = {
        "range": f"the range {by.value}",
        "interface": f"the interface {by.value}",
        "prefix": f"interfaces whose names start with {by.value}",
    }[by.by]
    if by.matches(packet.source, packet.interface):
        return f"{packet.source}{where} counts as a local Pod: it is of {what}"
    return f"{packet.source}{where} does not count as a local Pod: it is not of {what}"


def _policies(packet: Packet, verdict: Verdict, port: PortPlan) -> Iterator[Stage]:
    """The traffic policy, source ranges and session affinity of a Service port that apply to a packet."""
    external = verdict.front != "ClusterIP"
    local = port.external_local if external else port.internal_local
    name = "externalTrafficPolicy" if external else "internalTrafficPolicy"
    text = f"{name} is {'Local' if local else 'Cluster'}"
    if local and not verdict.local:
        text += ", but this source may use every endpoint"
    yield Stage("policy", text)
    if port.source_ranges and packet.destination in port.load_balancer_ips:
        inside = [cidr for cidr in port.source_ranges if contains(cidr, packet.source)]
        text = f"{packet.source} is in {inside[0]}" if inside else f"{packet.source} is in none of them"
        ranges = listed(port.source_ranges, MOST_RANGES)
        yield Stage("source ranges", f"loadBalancerSourceRanges: {ranges}; {text}")
    elif port.external_ranges and (verdict.front == "node port" or packet.destination in port.external_only):
        inside = [cidr for cidr in port.external_ranges if contains(cidr, packet.source)]
        text = f"{packet.source} is in {inside[0]}" if inside else f"{packet.source} is in none of them"
        ranges = listed(port.external_ranges, MOST_RANGES)
        yield Stage("source ranges", f"allowed sources without the denied ones: {ranges}; {text}")
    if port.affinity:
        yield Stage(
            "affinity",
            f"a client keeps its endpoint for {port.affinity} s after its last connection; shares are of new clients",
        )


def _topology(verdict: Verdict, port: PortPlan, rows: Sequence[_Row], node: NodeConfig) -> Iterator[Stage]:
    """Whether topology hints limited the choice, and why or why not."""
    ready = [
        each.row
        for each in rows
        if each.row.conditions & Condition.READY and any(_serves(p, port) for p in each.piece.ports)
    ]
    hinted = [row for row in ready if row.zone_hints or row.node_hints]
    if verdict.local or not hinted:
        return
    for_zone = [row for row in ready if node.zone and node.zone in row.zone_hints]
    for_node = [row for row in ready if node.name in row.node_hints]
    if port.topology:
        kept = for_node if port.topology == "PreferSameNode" else for_zone
        text = (
            f"hints are followed ({port.topology}): {len(kept)} of {len(ready)} ready endpoints are for this "
        )
        text += f"node, {node.name}" if port.topology == "PreferSameNode" else f"zone, {node.zone}"
    elif len(hinted) < len(ready):
        text = f"hints are ignored: {len(ready) - len(hinted)} of {len(ready)} ready endpoints have none"
    elif not node.zone and not any(row.node_hints for row in ready):
        text = "hints are ignored: the zone of this node is not known"
    elif not (for_zone or for_node):
        text = f"hints are ignored: no ready endpoint is for zone {node.zone or 'of this node'} or node {node.name}"
    else:
        text = "hints are ignored: some ready endpoints have hints for nodes only, others for zones only"
    yield Stage("topology", text)


def _endpoints(plan: ServicePlan, rows: Sequence[_Row], reached: Sequence[Reached]) -> Iterator[Stage]:
    """What is wrong with the endpoints as a whole: there are none, or only terminating ones are left."""
    if not rows:
        text = f"no EndpointSlice of Service {plan.namespace}/{plan.name} has an endpoint: its selector matches no Pod"
        yield Stage("endpoints", text)
    elif reached and all(each.terminating for each in reached):
        yield Stage("endpoints", "no endpoint is ready; those that are terminating still serve")


def _serves(given: EndpointPortRow, port: PortPlan) -> bool:
    return given.name == port.name.partition(":")[2] and given.protocol == port.protocol


def _reached(verdict: Verdict, packet: Packet, rows: Sequence[_Row], port: PortPlan) -> Iterator[Reached]:
    if verdict.action != FORWARD:
        return
    found = _by_address(rows, port)
    for endpoint in verdict.endpoints:
        given = found.get((endpoint.address, endpoint.port))
        yield Reached(
            endpoint.address,
            endpoint.port,
            1 / len(verdict.endpoints),
            endpoint.local,
            given.row.node if given else "",
            given.row.zone if given else "",
            verdict.masquerades(packet, endpoint),
            given.slice if given else "",
            given is not None and _is_draining(given.row),
        )


def _is_draining(row: EndpointRow) -> bool:
    return row.conditions & (Condition.TERMINATING | Condition.READY) == Condition.TERMINATING


def _by_address(rows: Iterable[_Row], port: PortPlan) -> dict[tuple[str, int], _Row]:
    """The endpoints of a Service port; of two at one address and port the one that the plan uses."""
    found: dict[tuple[str, int], _Row] = {}
    for each in rows:
        for given in each.piece.ports:
            if _serves(given, port):
                at = (each.row.address, given.port)
                other = found.get(at)
                if other is None or merit(each.row, local=each.local) > merit(other.row, local=other.local):
                    found[at] = each
    return found


def _excluded(verdict: Verdict, rows: Sequence[_Row], port: PortPlan, node: NodeConfig) -> Iterator[Excluded]:
    used: set[Endpoint] = set(verdict.endpoints) if verdict.action == FORWARD else set()
    chosen = _by_address(rows, port)
    for each in rows:
        row, piece = each.row, each.piece

        def excluded(number: int, reason: Reason, detail: str = "", each: _Row = each) -> Excluded:
            return Excluded(
                each.row.address, number, reason, detail, each.row.node, each.row.zone, each.slice
            )

        if piece.family != node.family:
            yield excluded(0, "other family", f"{piece.family}; the packet is {node.family}")
            continue
        numbers = [given.port for given in piece.ports if _serves(given, port)]
        if not numbers:
            name = port.name.partition(":")[2]
            has = (
                ", ".join(f"{p.name or 'a port without a name'} {p.protocol}" for p in piece.ports)
                or "no ports"
            )
            yield excluded(
                0, "no such port name", f'no port "{name}" {port.protocol}; the EndpointSlice has {has}'
            )
            continue
        for number in dict.fromkeys(numbers):
            if chosen[row.address, number] is not each:
                yield excluded(
                    number, "duplicate", f"also in EndpointSlice {chosen[row.address, number].slice}"
                )
            elif Endpoint(row.address, number, each.local) not in used:
                yield excluded(number, *_why(each, verdict, port, node))


def _why(each: _Row, verdict: Verdict, port: PortPlan, node: NodeConfig) -> tuple[Reason, str]:
    """Why an endpoint that has the port was not selected."""
    row = each.row
    if row.conditions & Condition.TERMINATING:
        serving = (
            "and still serves, but others are ready"
            if row.conditions & Condition.SERVING
            else "and does not serve"
        )
        return "terminating", f"it is terminating {serving}"
    if not row.conditions & Condition.READY:
        return "not ready", ""
    if any(each.row.address == silent.address for silent in port.silent):
        return "does not answer", "its last connections from this node failed; it gets trial connections only"
    if verdict.local and not each.local:
        return "not on this node", "the traffic policy is Local"
    if verdict.action != FORWARD:
        return "source not allowed", "see the source ranges"
    if port.topology == "PreferSameNode":
        return "other node", f"hinted for node {', '.join(row.node_hints)}"
    if port.topology == "PreferSameZone":
        return "other zone", f"hinted for zone {', '.join(row.zone_hints)}, this node is in {node.zone}"
    return "not on this node", "the traffic policy is Local"


def _no_service(
    state: State, node: NodeConfig, local_addresses: Collection[str], packet: Packet, verdict: Verdict
) -> Iterator[Stage]:
    """The explanation of a packet that is for no Service: similar fronts, and the verdict."""
    at = join(packet.destination, packet.port)
    near = list(misses(state, local_addresses, packet))
    text = f"{at} {packet.protocol} is not a front of any Service"
    if near:
        text += f"; near: {'; '.join(near[:MOST_MISSES])}"
        if len(near) > MOST_MISSES:
            text += f" and {len(near) - MOST_MISSES} more"
    yield Stage("front", text)
    yield Stage("source", _source(packet, node, local_addresses))
    yield Stage("verdict", f"{verdict.action}: {verdict.reason}")
