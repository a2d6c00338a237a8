"""Which endpoints each kind of traffic may use.

Two lists come out: `cluster`, for traffic whose policy is Cluster, and `local`, for traffic whose policy is Local.
The rules, of KEP-1669 and KEP-1672 (terminating endpoints), KEP-2433 and KEP-3015 (topology hints):

- Ready endpoints are used. A list that would hold none falls back to endpoints that still serve while terminating.
- Topology narrows `cluster` only: to the endpoints hinted for this node if every ready endpoint has node hints and
  one is for this node; else to those hinted for this zone, by the same rule; else not at all. A fallback to
  terminating endpoints is not narrowed.
- `local` takes the endpoints on this node, whatever their hints.
"""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from kubeproxy.api.rows import Condition, EndpointRow

_READY = int(Condition.READY)
_DRAINING = int(Condition.SERVING | Condition.TERMINATING)

Topology = Literal["", "PreferSameNode", "PreferSameZone"]


class Endpoint(Struct, frozen=True, gc=False):
    """Where a packet can be sent: address and port, and whether it is on this node."""

    address: str
    port: int
    local: bool = False


class Selection(Struct, frozen=True, gc=False):
    """The endpoints of one Service port.

    Attributes:
        cluster: for traffic with the Cluster policy.
        local: for traffic with the Local policy.
        any: there is a usable endpoint somewhere in the cluster, so that traffic that finds none here is dropped,
            not rejected.
        topology: how `cluster` was narrowed.
    """

    cluster: tuple[Endpoint, ...] = ()
    local: tuple[Endpoint, ...] = ()
    any: bool = False
    topology: Topology = ""


Candidates = Sequence[tuple[EndpointRow, Endpoint]]
"""Endpoints of one Service port, in the order they are to be listed."""


def select(candidates: Candidates, *, cluster: bool, local: bool, node: str, zone: str) -> Selection:
    """Chooses the endpoints of a Service port.

    Args:
        candidates: all its endpoints, whatever their state.
        cluster: whether any of its traffic has the Cluster policy.
        local: whether any of its traffic has the Local policy.
        node: this node's name.
        zone: this node's zone, "" if it has none.
    """
    ready = [c for c in candidates if c[0].conditions & _READY]
    draining: Candidates = ()
    if len(ready) < len(candidates):
        draining = [c for c in candidates if c[0].conditions & (_READY | _DRAINING) == _DRAINING]
    chosen: Candidates = ()
    mode: Topology = ""
    if cluster:
        mode = topology(ready, node, zone)
        chosen = _narrowed(ready, mode, node, zone) or [
            c for c in candidates if c[0].conditions & _DRAINING == _DRAINING
        ]
    here: Candidates = ()
    if local:
        here = [c for c in ready if c[1].local] or [c for c in draining if c[1].local]
    return Selection(
        cluster=tuple([endpoint for _, endpoint in chosen]),
        local=tuple([endpoint for _, endpoint in here]),
        any=bool(chosen) or (local and bool(ready or draining)),
        topology=mode,
    )


def topology(ready: Candidates, node: str, zone: str) -> Topology:
    """How the hints of the ready endpoints narrow the choice."""
    for_node = for_zone = False
    all_nodes = all_zones = True
    for row, _ in ready:
        if row.node_hints:
            for_node = for_node or node in row.node_hints
        else:
            all_nodes = False
        if row.zone_hints:
            for_zone = for_zone or zone in row.zone_hints
        else:
            all_zones = False
        if not (all_nodes or all_zones):
            return ""
    if all_nodes and for_node:
        return "PreferSameNode"
    return "PreferSameZone" if all_zones and for_zone else ""


def _narrowed(ready: Candidates, mode: Topology, node: str, zone: str) -> Candidates:
    if mode == "PreferSameNode":
        return [c for c in ready if node in c[0].node_hints]
    if mode == "PreferSameZone":
        return [c for c in ready if zone in c[0].zone_hints]
    return ready
