import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeproxy.config.durations import Duration, parse_duration, parse_quantity

SECOND = 10**9


@pytest.mark.parametrize(
    ("text", "seconds", "printed"),
    [
        ("0", 0, "0s"),
        ("-0", 0, "0s"),
        ("0s", 0, "0s"),
        ("5s", 5, "5s"),
        ("1h2m3s", 3723, "1h2m3s"),
        ("250ms", 0.25, "250ms"),
        ("1.5h", 5400, "1h30m0s"),
        (".5s", 0.5, "500ms"),
        ("5.s", 5, "5s"),
        ("1us", 1e-6, "1µs"),
        ("1\u00b5s", 1e-6, "1µs"),
        ("1\u03bcs", 1e-6, "1µs"),
        ("1500ns", 1.5e-6, "1.5µs"),
        ("7ns", 7e-9, "7ns"),
        ("-30s", -30, "-30s"),
        ("+15m", 900, "15m0s"),
        ("24h", 86400, "24h0m0s"),
        ("100s", 100, "1m40s"),
        ("1m0.25s", 60.25, "1m0.25s"),
        ("3s1m", 63, "1m3s"),
    ],
)
def test_a_duration_is_read_and_printed_as_go_does(text, seconds, printed):
    duration = parse_duration(text)
    assert duration == seconds
    assert str(duration) == printed


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not a duration"),
        ("-", "is not a duration"),
        ("s", "is not a duration"),
        (".s", "is not a duration"),
        ("5", "the unit is missing"),
        ("1h5", "the unit is missing"),
        ("5d", 'unknown unit "d"'),
        ("1 s", 'unknown unit " s"'),
        ("1h-2m", 'unknown unit "h-"'),
        ("300y", 'unknown unit "y"'),
        ("9999999h", "longer than 292 years"),
        ("half an hour", "is not a duration"),
    ],
)
def test_a_bad_duration_is_refused_with_the_text_and_the_reason(text, why):
    with pytest.raises(ValueError, match="is not a duration") as caught:
        parse_duration(text)
    assert why in str(caught.value)
    assert f'"{text}"' in str(caught.value)


@settings(deadline=None)
@given(st.integers(-48 * 86400 * SECOND, 48 * 86400 * SECOND))
def test_nanoseconds_survive_printing_and_reading(nanoseconds):
    duration = Duration(nanoseconds / SECOND)
    assert parse_duration(str(duration)) == duration
    assert round(parse_duration(str(duration)) * SECOND) == nanoseconds


@settings(deadline=None)
@given(st.integers(-(2**33), 2**33))
def test_whole_seconds_survive_printing_and_reading(seconds):
    assert parse_duration(str(Duration(seconds))) == seconds


@settings(deadline=None)
@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text):
    try:
        duration = parse_duration(text)
    except ValueError:
        return
    assert parse_duration(str(duration)) == duration


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512", 512), ("2Ki", 2048), ("1k", 1000), ("3M", 3_000_000), ("1.5Ki", 1536), ("1e3", 1000),
     ("100m", 1), ("1E", 10**18), ("2Ei", 2**61)],
)  # fmt: skip
def test_a_quantity_is_bytes_and_its_own_text(text, size):
    assert parse_quantity(text).bytes == size
    assert parse_quantity(text) == text


@pytest.mark.parametrize("text", ["", "K", "1KB", "1 Ki", "ten", "1K"])
def test_a_bad_quantity_is_refused(text):
    with pytest.raises(ValueError, match="is not a size"):
        parse_quantity(text)
