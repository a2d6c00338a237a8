"""Shared chains: what one is called says what is in it."""

import re

from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.backends.nftables import layout
from kubeproxy.backends.nftables.chains import SharedChain
from kubeproxy.backends.nftables.statements import Statements
from kubeproxy.netlink.nft import messages as m
from tests.unit.backends.nftables.rig import NODES

chains = st.one_of(
    st.builds(
        SharedChain,
        st.sampled_from(["pick", "here", "external"]),
        st.booleans(),
        st.integers(1, 300),
        st.just(0),
    ),
    st.builds(SharedChain, st.just("local"), st.booleans(), st.integers(1, 300), st.integers(0, 300)),
)


@given(chains, chains)
def test_names_tell_chains_apart_and_rules_do_not_depend_on_who_asks(
    one: SharedChain, other: SharedChain
) -> None:
    assert (one.name == other.name) == (one == other)
    statements = Statements(NODES[0])
    if one.name == other.name:
        assert one.rules(statements) == other.rules(statements)
    elif one.slots(m.IP) is not None:
        assert one.rules(statements) != other.rules(statements)


@given(chains)
def test_what_is_called_like_a_map_of_endpoints_is_one(chain: SharedChain) -> None:
    slots = chain.slots(m.IP6)
    assert (slots is None) == (chain.kind in {"external", "local"})
    if slots is not None:
        assert layout.parse_endpoints(m.IP6, slots.name) == slots
        assert re.fullmatch(layout.SLOTS, slots.name)


def test_other_names_are_no_maps_of_endpoints() -> None:
    for name in ("endpoints-0", "endpoints-01", "endpoints-", "endpoints-1x", "affinity-1", "service-endpoints-1", "no-endpoints-drop"):  # fmt: skip
        assert layout.parse_endpoints(m.IP, name) is None


def test_no_chain_or_map_of_ours_has_another_s_name() -> None:
    fixed = [*layout.FIXED_CHAINS, *layout.BASE_CHAINS]
    named = [s.name for s in layout.sets(m.IP)]
    assert len({*fixed, *named}) == len(fixed) + len(named)
