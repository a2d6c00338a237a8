"""Moments as people name them."""

import contextlib
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.insight import moments
from kubeproxy.insight.moments import MomentError, parse

NOW = datetime(2026, 11, 29, 12, 0, 0, tzinfo=UTC).timestamp()


@pytest.fixture(params=["UTC", "Asia/Kolkata", "America/New_York"])
def zone(request, monkeypatch):
    """Tests run in several time zones."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("-10m", NOW - 600),
        ("-1h30m", NOW - 5400),
        ("-0s", NOW),
        ("2026-11-29T03:12:07Z", NOW - 12 * 3600 + 3 * 3600 + 12 * 60 + 7),
        ("2026-11-29T03:12:07.250+02:00", NOW - 12 * 3600 + 3600 + 12 * 60 + 7.25),
        (" 2026-11-29 03:12:07Z ", NOW - 12 * 3600 + 3 * 3600 + 12 * 60 + 7),
    ],
)
def test_moments_that_do_not_depend_on_the_zone(zone, text, at):
    assert parse(text, NOW) == at


@given(seconds=st.integers(0, 86399))
def test_a_time_is_the_last_one_that_clocks_showed(seconds):
    then = NOW - seconds
    assert parse(datetime.fromtimestamp(then, UTC).astimezone().strftime("%H:%M:%S"), NOW) == then


def test_a_time_is_local(zone):
    shown = moments.clock(NOW - 3600.5)
    assert parse(shown, NOW) == NOW - 3600.5
    assert parse(shown[:5], NOW) <= NOW - 3600.5
    assert parse(f"{moments.date(NOW - 7200)} {moments.clock(NOW - 7200)}", NOW) == NOW - 7200


@pytest.mark.parametrize(
    "text",
    ["", "nine", "25:00", "3:1", "03:12:60", "-", "-10", "-10x", "10m", "2026-13-01T00:00:00Z", "٠٣:١٢"],
)
def test_what_is_no_moment(text):
    with pytest.raises(MomentError, match="is no moment; write 03:12:07"):
        parse(text, NOW)


@pytest.mark.parametrize("text", ["2026-11-29T12:00:01Z", "2027-01-01"])
def test_what_is_still_to_come(text):
    with pytest.raises(MomentError, match="is in the future"):
        parse(text, NOW)


@given(text=st.text(max_size=30))
def test_no_text_is_more_than_wrong(text):
    with contextlib.suppress(MomentError):
        parse(text, NOW)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0011, "1.1 ms"), (0.35, "350 ms"), (7.25, "7.25 s"), (754, "12m34s")]
)
def test_spans(seconds, words):
    assert moments.span(seconds) == words
