"""What several Services need stays as long as one of them does."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.backends.nftables import layout
from kubeproxy.backends.nftables.chains import SharedChain
from kubeproxy.backends.nftables.compile import Element, ServiceElements
from kubeproxy.backends.nftables.uses import UseCounts

NOTHING = ServiceElements.nothing()
PICK = SharedChain("pick", node_port=False, endpoints=2)
HERE = SharedChain("here", node_port=False, endpoints=3)
EXTERNAL = SharedChain("external", node_port=False, endpoints=2)
LOCAL = SharedChain("local", node_port=False, endpoints=3, local=2)
NOWHERE = SharedChain("local", node_port=True, endpoints=3, local=0)


def needs(*elements: Element) -> ServiceElements:
    return ServiceElements(dict.fromkeys(elements), set(), {}, {}, set(), {})


def test_an_element_that_two_need_comes_and_goes_once() -> None:
    ip, own, other = (layout.CLUSTER_IPS, b"ip"), (layout.SERVICE_IPS, b"a"), (layout.SERVICE_IPS, b"b")
    uses = UseCounts()
    assert uses.difference(NOTHING, needs(ip, own)) == ([], [ip, own])
    assert uses.difference(NOTHING, needs(ip, other)) == ([], [other])
    assert uses.difference(needs(ip, own), NOTHING) == ([own], [])
    assert uses.difference(needs(ip, other), needs(ip)) == ([other], [])
    assert uses.difference(needs(ip), NOTHING) == ([ip], [])


def test_chains_come_behind_those_they_lead_to_and_go_before_them() -> None:
    uses = UseCounts()
    assert uses.acquire([LOCAL]) == [HERE, PICK, LOCAL]
    assert uses.acquire([EXTERNAL]) == [EXTERNAL]
    assert uses.release([LOCAL]) == [LOCAL, HERE]
    assert uses.chains == [PICK, EXTERNAL]
    assert uses.release([EXTERNAL]) == [EXTERNAL, PICK]
    assert uses.chains == []


@given(
    st.lists(st.frozensets(st.sampled_from([PICK, HERE, EXTERNAL, LOCAL, NOWHERE])), max_size=8), st.randoms()
)
def test_what_is_made_is_what_is_needed(
    services: list[frozenset[SharedChain]], chance: random.Random
) -> None:
    uses = UseCounts()
    there: Counter[SharedChain] = Counter()
    for needed in services:
        there.update(uses.acquire(needed))
    chance.shuffle(services)
    while services:
        closure = {c for needed in services for chain in needed for c in (chain, *chain.leads_to)}
        assert there == Counter(closure)
        assert set(uses.chains) == closure
        there.subtract(uses.release(services.pop()))
        there += Counter()
    assert not there
