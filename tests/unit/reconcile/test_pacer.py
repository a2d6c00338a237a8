"""The pace of a loop: what each kind of sync waits for."""

import math

from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.reconcile.pacer import AT_ONCE, AT_ONCE_SECONDS, LONGEST_REST_SECONDS, Kind, Pacer

_KINDS: tuple[Kind, ...] = ("partial", "full", "repair")


def _sync(pacer: Pacer, kind: Kind, cost: float, wanted: float = 0.0) -> float:
    """Does a sync as early as it may begin; returns when it ends."""
    began = max(pacer.start(kind), wanted)
    pacer.began(kind, began)
    pacer.succeeded(kind, began + cost, cost)
    return began + cost


def test_nothing_waits_at_the_beginning() -> None:
    assert [Pacer(None, 30.0).start(kind) for kind in _KINDS] == [-math.inf] * 3


def test_nobody_rests_after_a_full_sync() -> None:
    pacer = Pacer(None, 30.0)
    assert _sync(pacer, "full", 4.0) == 4.0
    assert pacer.start("partial") == 4.0
    assert pacer.start("full") == 4.0
    assert pacer.start("repair") <= 4.0


def test_a_partial_sync_is_followed_by_a_rest_as_long_as_it_took() -> None:
    pacer = Pacer(None, 30.0)
    assert _sync(pacer, "partial", 0.25) == 0.25
    assert pacer.start("partial") == pacer.start("full") == 0.5
    assert pacer.start("repair") <= 0.25


def test_full_syncs_and_repairs_have_an_allowance_each_and_then_rest() -> None:
    pacer = Pacer(None, 30.0)
    kinds: tuple[Kind, ...] = ("full", "repair")
    end = _sync(pacer, "full", 1.0)
    for kind in kinds:
        for _ in range(AT_ONCE):
            assert pacer.start(kind) <= end
            end = _sync(pacer, kind, 1.0, wanted=end)
    assert [pacer.start(kind) for kind in kinds] == [end + 3.0] * 2
    assert pacer.start("partial") == end, "changes do not wait"
    assert pacer.start("full") < end + AT_ONCE_SECONDS


def test_full_syncs_that_have_rested_use_up_nothing() -> None:
    pacer = Pacer(None, 30.0)
    end = 0.0
    for _ in range(10 * AT_ONCE):
        end = _sync(pacer, "full", 1.0, wanted=end + 3.0)
    assert pacer.start("full") == end


def test_a_failure_delays_everything_but_a_repair_at_once() -> None:
    pacer = Pacer(None, 3.0)
    assert [pacer.failed(10.0, n) for n in range(1, 8)] == [0.25, 0.5, 1.0, 2.0, 3.0, 3.0, 3.0]
    assert pacer.failed(10.0, 10**6) == 3.0
    assert pacer.start("partial") == pacer.start("full") == 13.0
    assert pacer.start("repair") <= 10.0
    for _ in range(AT_ONCE):
        pacer.began("repair", 10.0)
    assert pacer.start("repair") == 13.0


def test_a_period_that_is_set_holds_after_every_sync() -> None:
    pacer = Pacer(10.0, 30.0)
    assert _sync(pacer, "full", 1.0) == 1.0
    assert pacer.start("partial") == pacer.start("full") == 11.0
    assert _sync(pacer, "partial", 1.0) == 12.0
    assert pacer.start("partial") == 22.0


@given(st.lists(st.tuples(st.sampled_from(_KINDS), st.floats(0, 20)), max_size=60))
def test_a_change_never_rests_longer_than_a_second_nor_than_the_sync_before_took(
    syncs: list[tuple[Kind, float]],
) -> None:
    pacer = Pacer(None, 30.0)
    now = 0.0
    for kind, cost in syncs:
        start = max(now, pacer.start(kind))
        if kind == "partial":
            assert start - now <= LONGEST_REST_SECONDS + 1e-9
        now = _sync(pacer, kind, cost, wanted=now)
        assert pacer.start("partial") - now <= min(cost, LONGEST_REST_SECONDS) + 1e-9
