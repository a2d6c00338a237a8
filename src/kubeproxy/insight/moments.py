"""Moments as people name them: `03:12:07`, `2026-11-29T03:12:07Z`, `-10m`.

And how they are shown, in local time.
"""

import re
from datetime import UTC, datetime, time, timedelta
from typing import Final

from kubeproxy.config.durations import parse_duration

_CLOCK: Final = re.compile(r"\d{1,2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?", re.ASCII)


class MomentError(Exception):
    """The text is no moment, or one that is still to come; the message says what it could be."""


def parse(text: str, now: float) -> float:
    """Reads a moment; returns its Unix time.

    Args:
        text: a time of the last 24 hours in local time, a date and time (RFC 3339; local time if it has no
            zone), or how long ago it was.
        now: the Unix time now.

    Raises:
        MomentError: it is none of these, or in the future.
    """
    wrong = MomentError(
        f"{text!r} is no moment; write 03:12:07, 2026-11-29T03:12:07Z, or -10m for ten minutes ago"
    )
    given = text.strip()
    try:
        if given.startswith("-"):
            return now + parse_duration(given)
        if _CLOCK.fullmatch(given):
            return _last(given, now)
        at = datetime.fromisoformat(given).astimezone().timestamp()
    except (ValueError, OverflowError):
        raise wrong from None
    if at > now:
        raise MomentError(f"{text!r} is in the future")
    return at


def _last(text: str, now: float) -> float:
    """The last moment, up to now, at which local clocks showed a time."""
    hours, _, rest = text.partition(":")
    clock = time.fromisoformat(f"{int(hours):02}:{rest}")
    today = datetime.fromtimestamp(now).astimezone()
    for day in (today, today - timedelta(days=1)):
        at = datetime.combine(day.date(), clock).astimezone().timestamp()
        if at <= now:
            return at
    raise ValueError(text)


def clock(at: float) -> str:
    """The local time of a moment, to the millisecond."""
    return datetime.fromtimestamp(at).astimezone().isoformat(sep=" ", timespec="milliseconds")[11:23]


def date(at: float) -> str:
    """The local date of a moment."""
    return datetime.fromtimestamp(at).astimezone().date().isoformat()


def zone(at: float) -> str:
    """The name of the local time zone at a moment."""
    return datetime.fromtimestamp(at).astimezone().tzname() or ""


def rfc3339(at: float) -> str:
    """A moment for programs, in UTC and to the millisecond."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def span(seconds: float) -> str:
    """A short time as text."""
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 120 else str(parse_duration(f"{seconds:.0f}s"))
