"""Who has a front that several Services want: whatever came before, the first by name."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.backends.nftables.claims import Claims
from kubeproxy.model.plan import Key

A, B, C = (("default", name) for name in "abc")
NONE: frozenset[bytes] = frozenset()
X = frozenset([b"x"])
wants = st.dictionaries(st.sampled_from([A, B, C]), st.frozensets(st.sampled_from([b"x", b"y", b"z"])))


def others(fronts: Iterable[bytes]) -> dict[bytes, bool]:
    """Fronts that are nobody's ClusterIP."""
    return dict.fromkeys(fronts, True)


def test_a_cluster_ip_is_nobody_else_s() -> None:
    claims = Claims()
    claims.change(A, {}, {b"x": True})
    claims.begin()
    claims.change(C, {}, {b"x": False})
    assert (claims.touched, claims.lost(A), claims.lost(C)) == ({A}, X, NONE)
    claims.change(B, {}, {b"x": True})
    assert (claims.lost(A), claims.lost(B), claims.lost(C)) == (X, X, NONE)
    claims.change(C, {b"x": False}, {b"x": True})
    assert (claims.lost(A), claims.lost(B), claims.lost(C)) == (NONE, X, X)


def test_the_first_by_name_has_it_and_the_next_one_after_him() -> None:
    claims = Claims()
    claims.change(B, {}, others([b"x"]))
    claims.change(C, {}, others([b"x", b"y"]))
    assert (claims.lost(B), claims.lost(C)) == (NONE, X)
    claims.begin()
    claims.change(A, {}, others([b"x"]))
    assert claims.touched == {B}
    assert (claims.lost_before(B), claims.lost(B), claims.lost(A)) == (NONE, X, NONE)
    assert claims.lost_before(C) == claims.lost(C) == X
    claims.begin()
    claims.change(A, others([b"x"]), {})
    assert claims.touched == {B}
    assert (claims.lost_before(B), claims.lost(B), claims.lost(C)) == (X, NONE, X)
    claims.begin()
    claims.change(B, others([b"x"]), {})
    assert (claims.touched, claims.lost(C)) == ({C}, NONE)


@given(st.lists(wants, min_size=1, max_size=6))
def test_only_what_is_wanted_now_counts(history: list[dict[Key, frozenset[bytes]]]) -> None:
    claims = Claims()
    now: dict[Key, frozenset[bytes]] = {}
    for step in history:
        claims.begin()
        before = {key: claims.lost(key) for key in (A, B, C)}
        for key, fronts in step.items():
            claims.change(key, others(now.get(key, ())), others(fronts))
        now |= step
        for key in (A, B, C):
            mine = now.get(key, NONE)
            assert claims.lost(key) == {f for f in mine if any(f in now.get(k, ()) and k < key for k in now)}
            assert claims.lost_before(key) == before[key]
            assert key in claims.touched or claims.lost(key) == before[key]
