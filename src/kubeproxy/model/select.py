"""Selects the endpoints for each kind of traffic.

The result has two lists: `cluster` for traffic with the policy Cluster, and `local` for traffic with the
policy Local. The rules are those of KEP-1669 and KEP-1672 (terminating endpoints), KEP-2433 and KEP-3015
(topology hints):

- Ready endpoints are used. If a list would be empty, it has the endpoints that still serve while they
  terminate.
- Topology hints limit only `cluster`: to the endpoints with a hint for this node, if every ready endpoint has
  node hints and one of them is for this node; else to those with a hint for this zone, by the same rule; else
  not at all. Terminating endpoints are not limited by hints.
- `local` has the endpoints on this node, whatever their hints are.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from kubeproxy.api.rows import Condition, EndpointRow

_READY = int(Condition.READY)
_DRAINING = int(Condition.SERVING | Condition.TERMINATING)

Topology = Literal["", "PreferSameNode", "PreferSameZone"]


class Endpoint(Struct, frozen=True, gc=False):
    """An endpoint: address and port, and whether it is on this node."""

    address: str
    port: int
    local: bool = False


class Selection(Struct, frozen=True, gc=False):
    """The endpoints of one Service port.

    Attributes:
        cluster: for traffic with the Cluster policy.
        local: for traffic with the Local policy.
        any: the cluster has a usable endpoint, so traffic without a usable endpoint on this node is dropped
            and not rejected.
        topology: which hints limited `cluster`.
    """

    cluster: tuple[Endpoint, ...] = ()
    local: tuple[Endpoint, ...] = ()
    any: bool = False
    topology: Topology = ""


Candidates = Sequence[tuple[EndpointRow, Endpoint]]
"""Endpoints of one Service port, in the order of the result."""


def select(candidates: Candidates, *, cluster: bool, local: bool, node: str, zone: str) -> Selection:
    """Selects the endpoints of a Service port.

    Args:
        candidates: all its endpoints in any state.
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
        chosen = _limited(ready, mode, node, zone) or [
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
    """Which hints of the ready endpoints limit the selection."""
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


def with_one_port(endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    """The endpoints with the port that most of them have; of equals the lowest port counts."""
    first = endpoints[0].port
    if all(each.port == first for each in endpoints):
        return endpoints
    counts = Counter(each.port for each in endpoints)
    number = min(counts, key=lambda port: (-counts[port], port))
    return tuple([each for each in endpoints if each.port == number])


def _limited(ready: Candidates, mode: Topology, node: str, zone: str) -> Candidates:
    if mode == "PreferSameNode":
        return [c for c in ready if node in c[0].node_hints]
    if mode == "PreferSameZone":
        return [c for c in ready if zone in c[0].zone_hints]
    return ready
