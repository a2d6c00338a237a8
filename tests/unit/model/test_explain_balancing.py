"""`explain` names the share of each endpoint, the one that a client gets, and why others get nothing."""

import pytest

from kubeproxy.api.rows import BalancingRow, WeightRow
from kubeproxy.model.distribution import EVERYTHING
from kubeproxy.model.explain import Explanation, explain
from kubeproxy.model.manners import Manners
from kubeproxy.model.state import State
from kubeproxy.model.verdict import Packet
from tests.unit.model.make import node, piece, service

WEIGHTS = (WeightRow("address", "10.1.2.1", 3), WeightRow("address", "10.1.2.3", 0))
CLIENTS = [f"198.51.100.{number}" for number in range(40)]


def explained(balancing: BalancingRow, source: str = "198.51.100.7", **fields) -> Explanation:
    state = State()
    state.put(("Service", "shop", "web"), (service(balancing=balancing, **fields),))
    state.put(("EndpointSlice", "shop", "web-a"), (piece("1 local", "2", "3"),))
    packet = Packet(source, "10.96.0.10", 80, interface="eth0")
    return explain(state, node(balancing=EVERYTHING), ["192.168.0.1"], Manners(), packet)


def stage(found: Explanation) -> str:
    return next((each.text for each in found.stages if each.name == "balancing"), "")


def test_weights():
    found = explained(BalancingRow(weights=WEIGHTS))
    assert {each.address: each.share for each in found.endpoints} == {"10.1.2.1": 0.75, "10.1.2.2": 0.25}
    assert [(each.address, each.reason) for each in found.excluded] == [("10.1.2.3", "no weight")]
    assert stage(found) == "at random, by weights"


def test_a_client_has_one_endpoint():
    counts = dict.fromkeys(("10.1.2.1", "10.1.2.2", "10.1.2.3"), 0)
    for client in CLIENTS:
        found = explained(BalancingRow("maglev"), client)
        [only] = found.endpoints
        assert only.share == 1
        assert {each.reason for each in found.excluded} == {"other clients"}
        assert {only.address} | {each.address for each in found.excluded} == counts.keys()
        assert stage(found).startswith(f"Maglev hashing: {client} leads to slot ")
        counts[only.address] += 1
    assert min(counts.values()) > 5


def test_a_port_decides_as_well():
    found = explained(BalancingRow("maglev", by_port=True, weights=WEIGHTS))
    assert [each.share for each in found.endpoints] == pytest.approx([0.75, 0.25], abs=0.01)
    assert stage(found) == "Maglev hashing of the client's address and port, by weights"


def test_preferred_endpoints():
    found = explained(BalancingRow("least-connections", near="node", bound=7))
    assert [each.share for each in found.endpoints] == [1, 0, 0]
    assert stage(found) == (
        "the endpoint with the fewest open connections; 1 near endpoints get all connections until each has 7"
        " open, then the rest is divided among all"
    )


def test_without_annotation_nothing_is_said():
    assert not stage(explained(BalancingRow()))
