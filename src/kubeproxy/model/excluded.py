"""Which endpoints of a Service port a packet cannot reach, and the reason for each of them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from msgspec import Struct

from kubeproxy.api.rows import Condition, EndpointPortRow, EndpointRow, SliceRow, WeightRow
from kubeproxy.model.distribution import WeightRules
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import FORWARD, PortPlan
from kubeproxy.model.planning import merit
from kubeproxy.model.select import Endpoint
from kubeproxy.model.verdict import Verdict

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
    "no weight",
    "other clients",
    "full",
    "not near",
]
"""Why an endpoint gets no packets.

"other zone" and "other node" are those its hints name; "other clients" are those that a hash leads to it.
"full" has as many open connections as its limit; "not near" is used when all near ones are full.
"""


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


class SlicedEndpoint(Struct, frozen=True):
    """An endpoint in an EndpointSlice."""

    slice: str
    piece: SliceRow
    row: EndpointRow
    local: bool


def sliced(slices: Iterable[tuple[str, SliceRow]], node: NodeConfig) -> Iterator[SlicedEndpoint]:
    """The endpoints of EndpointSlices."""
    for name, piece in slices:
        for row in piece.endpoints:
            yield SlicedEndpoint(name, piece, row, bool(row.node) and row.node == node.name)


def serves(given: EndpointPortRow, port: PortPlan) -> bool:
    """Whether a port of an EndpointSlice is one of a Service port's endpoints."""
    return given.name == port.name.partition(":")[2] and given.protocol == port.protocol


def by_address(rows: Iterable[SlicedEndpoint], port: PortPlan) -> dict[tuple[str, int], SlicedEndpoint]:
    """The endpoints of a Service port; of two at one address and port the one that the plan uses."""
    found: dict[tuple[str, int], SlicedEndpoint] = {}
    for each in rows:
        for given in each.piece.ports:
            if serves(given, port):
                at = (each.row.address, given.port)
                other = found.get(at)
                if other is None or merit(each.row, local=each.local) > merit(other.row, local=other.local):
                    found[at] = each
    return found


def excluded(
    verdict: Verdict,
    rows: Sequence[SlicedEndpoint],
    port: PortPlan,
    node: NodeConfig,
    weights: tuple[WeightRow, ...] = (),
) -> Iterator[Excluded]:
    """The endpoints of a Service that a packet cannot reach.

    Args:
        verdict: the verdict on the packet.
        rows: the endpoints of the Service.
        port: the Service port.
        node: the node.
        weights: the rules of weights that are followed.
    """
    rules = WeightRules(weights)
    used: set[Endpoint] = set(verdict.endpoints) if verdict.action == FORWARD else set()
    chosen = by_address(rows, port)
    for each in rows:
        row, piece = each.row, each.piece

        def without(number: int, reason: Reason, detail: str = "", each: SlicedEndpoint = each) -> Excluded:
            return Excluded(
                each.row.address, number, reason, detail, each.row.node, each.row.zone, each.slice
            )

        if piece.family != node.family:
            yield without(0, "other family", f"{piece.family}; the packet is {node.family}")
            continue
        numbers = [given.port for given in piece.ports if serves(given, port)]
        if not numbers:
            name = port.name.partition(":")[2]
            has = (
                ", ".join(f"{p.name or 'a port without a name'} {p.protocol}" for p in piece.ports)
                or "no ports"
            )
            yield without(
                0, "no such port name", f'no port "{name}" {port.protocol}; the EndpointSlice has {has}'
            )
            continue
        for number in dict.fromkeys(numbers):
            if chosen[row.address, number] is not each:
                yield without(
                    number, "duplicate", f"also in EndpointSlice {chosen[row.address, number].slice}"
                )
            elif Endpoint(row.address, number, each.local) not in used:
                yield without(number, *_why(each, number, verdict, port, node, rules))


def _why(
    each: SlicedEndpoint,
    number: int,
    verdict: Verdict,
    port: PortPlan,
    node: NodeConfig,
    rules: WeightRules,
) -> tuple[Reason, str]:
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
    if Endpoint(row.address, number, each.local) in (port.local if verdict.local else port.cluster):
        if verdict.action == FORWARD:
            return "other clients", "the hash of this client's address leads to another endpoint"
        return "source not allowed", "see the source ranges"
    if port.preferred and not verdict.local:
        if Endpoint(row.address, number, each.local) in port.preferred:
            return "full", f"it has {port.bound} open connections or more through this node"
        if set(verdict.endpoints) <= set(port.preferred):
            return "not near", "near endpoints come first, and are not full"
    if not rules.weight(row, each.piece.group):
        return "no weight", "its weight is 0, others of the Service have one"
    if verdict.action != FORWARD:
        return "source not allowed", "see the source ranges"
    if port.topology == "PreferSameNode":
        return "other node", f"hinted for node {', '.join(row.node_hints)}"
    if port.topology == "PreferSameZone":
        return "other zone", f"hinted for zone {', '.join(row.zone_hints)}, this node is in {node.zone}"
    return "not on this node", "the traffic policy is Local"
