"""Explains the verdict on a packet, step by step, with the endpoints it can and cannot reach.

The verdict itself is that of `verdict`; this is its explanation: which Services name the front, how the
source was classified, which endpoints were selected, and for each of the others the reason why it was not.
Nothing is decided here.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Final

from msgspec import Struct

from kubeproxy.api.addresses import contains, join
from kubeproxy.api.rows import Condition, EndpointRow
from kubeproxy.api.types import listed
from kubeproxy.model.distribution import slot_of
from kubeproxy.model.excluded import Excluded, SlicedEndpoint, by_address, excluded, serves, sliced
from kubeproxy.model.manners import Manners
from kubeproxy.model.misses import misses
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import FORWARD, Front, Key, PortPlan, ServicePlan
from kubeproxy.model.state import State
from kubeproxy.model.verdict import Book, Packet, Verdict

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
    balancing = state.services[plan.key].balancing
    weights = balancing.weights if balancing is not None and node.balancing.weights else ()
    rows = list(sliced(state.named_slices(plan.key), node))
    reached = tuple(_reached(verdict, packet, rows, verdict.port))
    stages = (
        Stage("front", _front(plan, verdict.port, verdict, rivals)),
        Stage("source", _source(packet, node, local_addresses)),
        *_policies(packet, verdict, verdict.port),
        *_topology(verdict, verdict.port, rows, node),
        *_endpoints(plan, rows, reached),
        *_balancing(packet, verdict),
        Stage("verdict", f"{verdict.action}: {verdict.reason}"),
    )
    return Explanation(
        packet,
        verdict,
        plan.key,
        stages,
        tuple(plans),
        reached,
        tuple(excluded(verdict, rows, verdict.port, node, weights)),
    )


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


def _topology(
    verdict: Verdict, port: PortPlan, rows: Sequence[SlicedEndpoint], node: NodeConfig
) -> Iterator[Stage]:
    """Whether topology hints limited the choice, and why or why not."""
    ready = [
        each.row
        for each in rows
        if each.row.conditions & Condition.READY and any(serves(p, port) for p in each.piece.ports)
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


def _endpoints(
    plan: ServicePlan, rows: Sequence[SlicedEndpoint], reached: Sequence[Reached]
) -> Iterator[Stage]:
    """What is wrong with the endpoints as a whole: there are none, or only terminating ones are left."""
    if not rows:
        text = f"no EndpointSlice of Service {plan.namespace}/{plan.name} has an endpoint: its selector matches no Pod"
        yield Stage("endpoints", text)
    elif reached and all(each.terminating for each in reached):
        yield Stage("endpoints", "no endpoint is ready; those that are terminating still serve")


def _balancing(packet: Packet, verdict: Verdict) -> Iterator[Stage]:
    """How one of the endpoints is chosen, if not at random with equal shares."""
    by = verdict.distribution
    if verdict.action != FORWARD or by is None:
        return
    slot = slot_of(by, packet.source)
    if slot is not None:
        text = f"Maglev hashing: {packet.source} leads to slot {slot} of {by.table_size}"
    elif by.method == "maglev":
        text = f"Maglev hashing of the client's address{' and port' if by.by_port else ''}"
    elif by.method == "least-connections":
        text = "the endpoint with the fewest open connections"
    else:
        text = "at random"
    if by.weights:
        text += ", by weights"
    if by.preferred:
        text += (
            f"; {len(by.preferred)} near endpoints get all connections"
            f" until each has {by.bound} open, then the rest is divided among all"
        )
    yield Stage("balancing", text)


def _reached(
    verdict: Verdict, packet: Packet, rows: Sequence[SlicedEndpoint], port: PortPlan
) -> Iterator[Reached]:
    if verdict.action != FORWARD:
        return
    found = by_address(rows, port)
    for endpoint, share in zip(verdict.endpoints, verdict.shares, strict=True):
        given = found.get((endpoint.address, endpoint.port))
        yield Reached(
            endpoint.address,
            endpoint.port,
            share,
            endpoint.local,
            given.row.node if given else "",
            given.row.zone if given else "",
            verdict.masquerades(packet, endpoint),
            given.slice if given else "",
            given is not None and _is_draining(given.row),
        )


def _is_draining(row: EndpointRow) -> bool:
    return row.conditions & (Condition.TERMINATING | Condition.READY) == Condition.TERMINATING


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
