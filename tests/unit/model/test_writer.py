"""One node of a cluster writes an Event about a Service, whether it has endpoints or not."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.model.plan import Key
from kubeproxy.model.state import State
from kubeproxy.model.writer import WriterChoice
from tests.fakes.cluster import endpoints, service

NODES = [f"node-{i}" for i in range(5)]
WEB: Key = ("default", "web")


def cluster(*nodes: str) -> State:
    """Endpoints of other Services on some nodes."""
    state = State()
    for i, node in enumerate(nodes):
        address = f"10.1.0.{i + 1}"
        state.set(endpoints(f"s{i}", address, local=[address], node=node))
    return state


def writers(state: State, *keys: Key) -> list[str]:
    return [node for node in NODES if WriterChoice(state, node).is_mine(*keys)]


@given(st.lists(st.sampled_from(NODES), min_size=1), st.text("abc", min_size=1))
def test_a_service_without_endpoints_has_one_writer(nodes: list[str], name: str) -> None:
    (writer,) = writers(cluster(*nodes), ("default", name))
    assert writer in nodes


def test_they_are_spread_over_the_nodes_and_a_node_that_goes_leaves_the_others_theirs() -> None:
    keys = [("default", f"w{i}") for i in range(500)]
    before = {key: writers(cluster(*NODES), key)[0] for key in keys}
    after = {key: writers(cluster(*NODES[1:]), key)[0] for key in keys}
    assert min(Counter(before.values()).values()) > 50
    assert all(after[key] == was for key, was in before.items() if was != NODES[0])


def test_the_first_endpoint_with_a_node_decides() -> None:
    state = cluster(*NODES)
    state.set(service("web", "10.96.0.1"))
    outside = endpoints("web", "10.2.0.1", name="outside")
    state.set(replace(outside, endpoints=(types.SliceEndpoint(("10.2.0.1",)),)))
    state.set(endpoints("web", "10.2.0.9", name="b", local=["10.2.0.9"], node=NODES[1]))
    state.set(endpoints("web", "10.2.0.2", name="a", local=["10.2.0.2"], node=NODES[3]))
    assert writers(state, WEB) == [NODES[3]]
    assert writers(state, ("default", "none"), WEB) == [NODES[3]]


def test_every_node_writes_if_no_endpoint_has_one() -> None:
    assert writers(State(), WEB) == NODES
