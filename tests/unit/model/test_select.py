"""Which endpoints each kind of traffic may use: readiness, termination, topology and traffic policies together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.api.rows import Condition, PortRow
from kubeproxy.model.select import Endpoint, select
from tests.unit.model.make import HERE, STATES, endpoint, node, numbers, piece, planned, service

INTERNAL = 1  # internalTrafficPolicy Local
EXTERNAL = 2  # externalTrafficPolicy Local
NODE_PORT = 4
LOCAL = INTERNAL | EXTERNAL

# What, the node's zone, policies, endpoints; then backends of Cluster traffic, of Local traffic, of both, and whether
# there are any at all. The kinds of traffic a port does not have are None.
TABLE = [
    # Zones (KEP-2433).
    ("hints name zones", "zone-a", 0, ["1 zone-a", "2 zone-b", "3 zone-c", "4 zone-a"], [1, 4], None, [1, 4], True),
    ("the node has no zone", "", 0, ["1 zone-a", "2 zone-b"], [1, 2], None, [1, 2], True),
    ("the node has no zone, one endpoint", "", 0, ["1 zone-a"], [1], None, [1], True),
    ("no endpoint for the node's zone", "zone-b", 0, ["1 zone-a"], [1], None, [1], True),
    ("an unready endpoint of the zone", "zone-a", 0, ["1 zone-a", "2 zone-b", "3 zone-c", "4 unready zone-a"], [1], None, [1], True),
    ("all of the zone are unready", "zone-a", 0, ["1 unready zone-a", "2 zone-b", "3 zone-c", "4 unready zone-a"], [2, 3], None, [2, 3], True),
    ("one hint is missing", "zone-a", 0, ["1 zone-a", "2 zone-b", "3", "4 zone-a"], [1, 2, 3, 4], None, [1, 2, 3, 4], True),
    ("the hint of an unready endpoint is missing", "zone-a", 0, ["1 zone-a", "2 zone-b", "3 unready", "4 zone-a"], [1, 4], None, [1, 4], True),
    ("no hints", "zone-a", 0, ["1", "2"], [1, 2], None, [1, 2], True),
    ("many hints each", "zone-c", 0, ["1 zone-a zone-b zone-c", "2 zone-b zone-c", "3 zone-b zone-d", "4 zone-c"], [1, 2, 4], None, [1, 2, 4], True),
    # Nodes (KEP-3015).
    ("hints name nodes", "zone-a", 0, ["1 node-1 zone-a", "2 node-2 zone-b", "3 node-3 zone-a", "4 node-4 zone-c"], [1], None, [1], True),
    ("none for this node: the zone", "zone-a", 0, ["1 node-0 zone-a", "2 node-2 zone-b", "3 node-3 zone-a", "4 node-4 zone-c"], [1, 3], None, [1, 3], True),
    ("none for this node nor zone", "zone-x", 0, ["1 node-0 zone-a", "2 node-2 zone-b"], [1, 2], None, [1, 2], True),
    ("one node hint is missing: the zone", "zone-a", 0, ["1 node-1 zone-a", "2 node-2 zone-b", "3 zone-a"], [1, 3], None, [1, 3], True),
    ("one node hint and the zones are missing", "zone-a", 0, ["1 node-1", "2 node-2", "3"], [1, 2, 3], None, [1, 2, 3], True),
    ("hints name nodes only, the node has no zone", "", 0, ["1 node-1", "2 node-2"], [1], None, [1], True),
    ("the one for this node is unready", "zone-a", 0, ["1 node-1 zone-a unready", "2 node-2 zone-b", "3 node-3 zone-a"], [3], None, [3], True),
    # Topology is nothing to Local traffic.
    ("external Local ignores zones", "zone-a", EXTERNAL | NODE_PORT, ["1 local zone-a", "2 local zone-b", "3 zone-c", "4 zone-a"], [1, 4], [1, 2], [1, 2, 4], True),
    ("internal Local ignores zones", "zone-a", INTERNAL | NODE_PORT, ["1 local zone-a", "2 local zone-b", "3 zone-c", "4 zone-a"], [1, 4], [1, 2], [1, 2, 4], True),
    ("zone and node disagree", "zone-a", EXTERNAL | NODE_PORT, ["1 local zone-a", "2 local zone-b", "3 zone-a", "4 zone-b"], [1, 3], [1, 2], [1, 2, 3], True),
    ("internal Local alone ignores node hints", "zone-a", INTERNAL, ["1 local node-2", "2 node-1"], None, [1], [1], True),
    # Traffic policies.
    ("internal Local, no endpoints", "", INTERNAL, [], None, [], [], False),
    ("internal Local, all remote", "", INTERNAL, ["1", "2"], None, [], [], True),
    ("internal Local, all local", "", INTERNAL, ["1 local", "2 local"], None, [1, 2], [1, 2], True),
    ("internal Local, some local", "", INTERNAL, ["1 local", "2"], None, [1], [1], True),
    ("internal Local, external Cluster", "", INTERNAL | NODE_PORT, ["1 local", "2"], [1, 2], [1], [1, 2], True),
    ("internal Cluster, external Local", "", EXTERNAL | NODE_PORT, ["1 local", "2"], [1, 2], [1], [1, 2], True),
    ("both Local", "", LOCAL | NODE_PORT, ["1 local", "2"], [1, 2], [1], [1, 2], True),
    ("both Local, all remote", "", LOCAL | NODE_PORT, ["1", "2"], [1, 2], [], [1, 2], True),
    ("both Local, all remote and draining", "", LOCAL | NODE_PORT, ["1 draining", "2 draining"], [1, 2], [], [1, 2], True),
    ("external Local, not reachable from outside", "", EXTERNAL, ["1 local", "2"], [1, 2], None, [1, 2], True),
    # Readiness and termination (KEP-1669, KEP-1672).
    ("Cluster, none ready", "", 0, ["1 unready", "2 unready"], [], None, [], False),
    ("Cluster, some ready", "", 0, ["1 unready", "2"], [2], None, [2], True),
    ("Cluster, all draining", "", 0, ["1 local draining", "2 draining"], [1, 2], None, [1, 2], True),
    ("Cluster, all dying", "", 0, ["1 local dying", "2 dying"], [], None, [], False),
    ("Cluster, ready before draining", "", 0, ["1 draining", "2", "3 dying"], [2], None, [2], True),
    ("Cluster, draining is not narrowed", "zone-a", 0, ["1 draining zone-a", "2 draining zone-b"], [1, 2], None, [1, 2], True),
    ("Local, ready before draining", "", LOCAL | NODE_PORT, ["1 local", "2 local draining", "3"], [1, 3], [1], [1, 3], True),
    ("Local, ready remote, draining local", "", EXTERNAL | NODE_PORT, ["1 local unready", "2 local draining", "3", "4 draining"], [3], [2], [2, 3], True),
    ("Local, all dying here", "", LOCAL | NODE_PORT, ["1 local dying", "2"], [2], [], [2], True),
    ("Local, all dying everywhere", "", LOCAL | NODE_PORT, ["1 local dying", "2 dying"], [], [], [], False),
    ("internal Local, draining elsewhere", "", INTERNAL, ["1 local unready", "2 draining"], None, [], [], True),
    ("internal Local, dying elsewhere", "", INTERNAL, ["1 local unready", "2 dying"], None, [], [], False),
    ("serving is not enough", "", LOCAL | NODE_PORT, ["1 local serving"], [], [], [], False),
    # publishNotReadyAddresses: ready, whatever else.
    ("published is ready", "", LOCAL | NODE_PORT, ["1 local published", "2 published-draining", "3 published-dying"], [1, 2, 3], [1], [1, 2, 3], True),
    ("published and draining comes before draining", "", LOCAL | NODE_PORT, ["1 local published-dying", "2 local draining"], [1], [1], [1], True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("zone", "traffic", "endpoints", "cluster", "local", "reachable", "usable"),
    [case[1:] for case in TABLE],
    ids=[case[0] for case in TABLE],
)
def test_table(zone, traffic, endpoints, cluster, local, reachable, usable):
    port = _port_plan(traffic, endpoints, zone)
    assert port.uses_cluster == (cluster is not None)
    assert port.uses_local == (local is not None)
    assert numbers(port.cluster) == (cluster or [])
    assert numbers(port.local) == (local or [])
    assert numbers(port.endpoints) == reachable
    assert port.any == usable


def _port_plan(traffic, endpoints, zone=""):
    wanted = service(
        ports=(PortRow("", "TCP", 80, 30080 if traffic & NODE_PORT else 0),),
        internal_local=bool(traffic & INTERNAL),
        external_local=bool(traffic & EXTERNAL),
    )
    return planned(wanted, piece(*endpoints), on=node(zone=zone)).ports[0]


@pytest.mark.parametrize(
    ("endpoints", "zone", "mode"),
    [
        (["1 zone-a", "2 zone-b"], "zone-a", "PreferSameZone"),
        (["1 zone-a", "2 zone-b"], "zone-c", ""),
        (["1 zone-a", "2 zone-b"], "", ""),
        (["1 node-1 zone-a"], "zone-a", "PreferSameNode"),
        (["1 node-2 zone-a"], "zone-a", "PreferSameZone"),
        (["1 draining zone-a"], "zone-a", ""),
        ([], "zone-a", ""),
    ],
)
def test_the_plan_tells_how_it_was_narrowed(endpoints, zone, mode):
    assert _port_plan(0, endpoints, zone).topology == mode
    assert _port_plan(INTERNAL, endpoints, zone).topology == ""


@pytest.mark.parametrize(
    ("traffic", "endpoints", "internal", "external"),
    [
        (0, [], "reject", None),
        (0, ["1 unready"], "reject", None),
        (0, ["1"], "forward", None),
        (INTERNAL, ["1"], "drop", None),
        (INTERNAL, ["1 draining"], "drop", None),
        (INTERNAL, ["1 dying"], "reject", None),
        (INTERNAL, ["1 local"], "forward", None),
        (NODE_PORT, [], "reject", "reject"),
        (NODE_PORT, ["1"], "forward", "forward"),
        (NODE_PORT | EXTERNAL, ["1"], "forward", "drop"),
        (NODE_PORT | EXTERNAL, ["1 local draining"], "forward", "forward"),
        (NODE_PORT | EXTERNAL, ["1 local dying"], "reject", "reject"),
        (NODE_PORT | INTERNAL, ["1"], "drop", "forward"),
        (NODE_PORT | LOCAL, ["1"], "drop", "drop"),
        (NODE_PORT | LOCAL, [], "reject", "reject"),
        (NODE_PORT | LOCAL, ["1 local"], "forward", "forward"),
    ],
)
def test_actions(traffic, endpoints, internal, external):
    port = _port_plan(traffic, endpoints)
    assert port.internal_action == internal
    assert port.external == (external is not None)
    if external is not None:
        assert port.external_action == external


rows = st.lists(
    st.builds(
        " ".join,
        st.tuples(
            st.integers(1, 200).map(str),
            st.sampled_from(["local", ""]),
            st.sampled_from(sorted(STATES)),
            st.sampled_from(["", "zone-a", "zone-b", "zone-a zone-b"]),
            st.sampled_from(["", "node-1", "node-2"]),
        ),
    ),
    max_size=6,
    unique_by=lambda text: text.split()[0],
).map(lambda texts: [endpoint(text) for text in texts])


@given(rows, st.booleans(), st.booleans(), st.sampled_from(["", "zone-a", "zone-c"]))
def test_what_is_chosen(endpoints, cluster, local, zone):
    candidates = [(row, Endpoint(row.address, 80, row.node == HERE)) for row in endpoints]
    chosen = select(candidates, cluster=cluster, local=local, node=HERE, zone=zone)
    state = {backend: Condition(row.conditions) for row, backend in candidates}
    ready = [b for b in state if Condition.READY in state[b]]
    draining = [b for b in state if Condition.SERVING | Condition.TERMINATING in state[b]]
    assert set(chosen.cluster) <= set(ready or draining)
    assert set(chosen.local) <= {b for b in (*ready, *draining) if b.local}
    # Order is kept, and hints never leave traffic without a backend.
    order = [backend for _, backend in candidates]
    assert list(chosen.cluster) == [b for b in order if b in chosen.cluster]
    assert bool(chosen.cluster) == (cluster and bool(ready or draining))
    assert bool(chosen.local) == (local and any(b.local for b in (*ready, *draining)))
    assert chosen.any == ((cluster or local) and bool(ready or draining))
    if chosen.topology:
        assert set(chosen.cluster) <= set(ready)
    elif cluster and ready:
        assert list(chosen.cluster) == ready
