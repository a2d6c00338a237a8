"""Counts of `top`: rates between readings, shares that are uneven, and how they are shown."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kubeproxy.answers.observed import Converged, Observed
from kubeproxy.backends.shared.totals import Totals
from kubeproxy.insight.top import table
from kubeproxy.insight.top.screen import Screen, keys
from kubeproxy.insight.top.tally import Rates, uneven
from kubeproxy.insight.top.values import LastChange, Top, TopEndpoint, TopPort, TopService, TopSources
from kubeproxy.insight.top.watch import Order
from kubeproxy.model.plan import Key

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


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ((), "no endpoint has left since kube-proxy started"),
        ([("service_added", "received", 3, 0.1)], "no endpoint has left since kube-proxy started"),
        (
            [("endpoint_removed", "received", 1, 0.005)],
            "an endpoint that goes gets no new connection after 5 ms (p99.9 of 1 change, from when they arrived here)",
        ),
        (
            [("endpoint_removed", "change", 1204, 2.0), ("endpoint_removed", "received", 1300, None)],
            "an endpoint that goes gets no new connection after 2 s (p99.9 of 1,204 changes, from the change in the"
            " cluster; more than 300 s from when they arrived here)",
        ),
    ],
)  # fmt: skip
def test_what_the_daemon_observed_is_one_line(found: Any, expected: str) -> None:
    observed = Observed(tuple(Converged(kind, since, n, 0.001, 0.001, t) for kind, since, n, t in found))
    top = Top("n1", "nftables", 2.0, (), TopSources(), observed=observed)
    assert [text for text, _ in table.observations(top)] == [expected]
    assert table.observations(replace(top, observed=None)) == []


class Known:
    """Figures of made-up Services."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def ranking(self, order: Order, wanted: Callable[[Key], bool] | None = None) -> list[Key]:
        found = [("shop", name) for name in self.names if wanted is None or wanted(("shop", name))]
        return found if order != "name" else sorted(found)

    def top(self, keys: Sequence[Key] | None = None) -> Top:
        ports = (
            TopPort("http", "IPv4", "TCP", 80, 1.0, 1, None, None, 0, 0, 0, 0, False,
                    (TopEndpoint("10.244.1.1", 80, 1.0, 1.0, 1),)),
        )  # fmt: skip
        services = tuple(TopService(*key, ports) for key in (keys or self.ranking("name")))
        return Top("n1", "nftables", 1.0, services, TopSources("counters"), ("something is missing",))


def rows(screen: Screen, known: Known, height: int = 8) -> list[str]:
    lines = screen.render(known, 60, height)
    assert len(lines) == height
    assert all(len(text) <= 60 for text, _ in lines)
    return [text.split()[0] for text, _ in lines if text.startswith(("shop/", "  10."))]


def test_the_view_is_sorted_filtered_and_opened_by_keys() -> None:
    known, screen = Known("web", "api", "apix"), Screen()
    assert rows(screen, known) == ["shop/web:http", "shop/api:http", "shop/apix:http"]
    for _ in range(4):
        screen.press("s")
    assert screen.order == "name"
    assert rows(screen, known)[0] == "shop/api:http"
    for key in "/api":
        screen.press(key)
    assert rows(screen, known) == ["shop/api:http", "shop/apix:http"]
    screen.press("\r")
    screen.press("\x1b[B")
    rows(screen, known)
    screen.press("\r")
    assert screen.opened == ("shop", "apix")
    assert rows(screen, known) == ["shop/apix:http", "10.244.1.1:80"]
    screen.press("\x1b")
    assert rows(screen, known) == ["shop/api:http", "shop/apix:http"]
    screen.press("\x1b")
    assert len(rows(screen, known)) == 3
    assert not screen.ended
    screen.press("q")
    assert screen.ended


def test_more_services_than_fit_are_shown_in_pages() -> None:
    known, screen = Known(*[f"s{i:03}" for i in range(100)]), Screen()
    first = rows(screen, known, 13)
    assert first[0] == "shop/s000:http"
    screen.press("\x1b[6~")
    second = rows(screen, known, 13)
    assert not set(first) & set(second)
    assert screen.shown[0] == ("shop", "s009")
    for _ in range(300):
        screen.press("j")
    assert rows(screen, known, 13)
    assert screen.shown[-1] == ("shop", "s099")
    for _ in range(300):
        screen.press("k")
    assert rows(screen, known, 13) == first


@given(
    st.lists(st.sampled_from(["s", "/", "\r", "\x1b", "j", "k", "a", "\x7f", "\x1b[5~", "\x1b[6~", "é"])),
    st.integers(1, 40),
)
def test_no_key_disturbs_the_view(pressed: list[str], height: int) -> None:
    known, screen = Known("web", "api"), Screen()
    for key in pressed:
        screen.press(key)
        screen.render(known, 80, height)
    screen.press("\x03")
    assert screen.ended


def test_what_a_terminal_sends_is_divided_into_keys() -> None:
    assert keys("s\x1b[A\x1b[6~/é\x1bOB\x1b") == ["s", "\x1b[A", "\x1b[6~", "/", "é", "\x1bOB", "\x1b"]
