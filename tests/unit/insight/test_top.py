"""Counts of `top`: rates between readings, shares that are uneven, and how they are shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.backends.shared.totals import Totals
from kubeproxy.insight.top import table
from kubeproxy.insight.top.tally import Rates, uneven
from kubeproxy.insight.top.values import LastChange, Top, TopEndpoint, TopPort, TopService, TopSources

A, B, C = ("10.244.1.1", 80), ("10.244.1.2", 80), ("10.244.1.3", 80)


def test_rates_are_between_the_last_two_readings() -> None:
    rates = Rates()
    rates.read({A: 100}, 10.0)
    assert (rates.per_second, rates.since) == (None, {})
    rates.read({A: 110, B: 4}, 12.0)
    assert (rates.per_second, rates.since) == ({A: 5.0, B: 2.0}, {A: 10, B: 4})
    rates.read({A: 110, B: 5}, 13.0)
    assert (rates.per_second, rates.since) == ({B: 1.0}, {A: 10, B: 5})


def test_after_a_change_of_endpoints_counts_begin_again() -> None:
    rates = Rates()
    rates.read({A: 100}, 1.0)
    rates.read({A: 200}, 2.0)
    rates.begin()
    rates.read({A: 203, B: 2}, 3.0)
    assert rates.since == {A: 3, B: 2}


@given(st.lists(st.integers(0, 1000), min_size=1))
def test_totals_never_become_lower(values: list[int]) -> None:
    totals = Totals()
    last = 0
    for value in values:
        totals.take("chain", value, ("shop/api", "TCP"), A)
        now = totals.counts["shop/api", "TCP"][A]
        assert now >= last
        last = now
    assert last >= max(values)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({A: 1000, B: 1010, C: 990}, set()),
        ({A: 10, B: 12, C: 8}, set()),
        ({A: 3, B: 0, C: 0}, set()),  # too few to say
        ({A: 300, B: 300, C: 0}, {A, B, C}),
        ({A: 1000, B: 1000, C: 1300}, {A, B, C}),
    ],
)
def test_shares_that_chance_does_not_explain(
    counts: dict[tuple[str, int], int], expected: set[tuple[str, int]]
) -> None:
    found = uneven(counts, (A, B, C))
    assert bool(found) == bool(expected)
    assert found <= expected
    if expected:
        assert C in found


def test_one_endpoint_is_never_uneven() -> None:
    assert not uneven({A: 1000, B: 3}, (A,))


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0"), (0.5, "0.5"), (412.4, "412"), (2200, "2200"), (12_345, "12k"), (38e6, "38M"), (1e13, "10T")],
)  # fmt: skip
def test_figures_are_short(value: float | None, text: str) -> None:
    assert table.number(value) == text


def test_what_needs_attention_is_marked() -> None:
    dead = TopEndpoint("10.244.1.3", 80, 2.0, 0.5, 4, None, None, 0, 4, 0, 0)
    good = TopEndpoint("10.244.1.1", 80, 2.0, 0.5, 4, None, None, 4, 0, 0, 0)
    old = TopEndpoint("10.244.1.9", 80, 0.0, 0.0, 0, None, None, 1, 0, 0, 0, planned=False)
    port = TopPort("http", "IPv4", "TCP", 80, 4.0, 8, None, None, 5, 4, 0, 0, False, (good, dead, old))
    change = LastChange("2026-03-01T10:41:07Z", "-10.244.1.9:80", "EndpointSlice api-x8f2k")
    service = TopService("shop", "api", (port,), change)
    found = Top("n1", "nftables", 2.0, (service,), TopSources("counters", 0.0, 0.0))
    (heading, _), (row, style) = table.lines(found)
    assert heading.split()[0] == "SERVICE"
    assert row.split()[:2] == ["shop/api:http", "4"]
    assert "50 50 0" in row
    assert "10:41:07 -10.244.1.9:80 by EndpointSlice api-x8f2k" in row
    assert style == "red"
    detailed = {text.split()[0]: style for text, style in table.lines(found, details=True)}
    assert detailed["10.244.1.1:80"] == ""
    assert detailed["10.244.1.3:80"] == "red"
    assert detailed["10.244.1.9:80"] == "yellow"
