"""Durations and sizes as Kubernetes writes them: `1h2m3s`, `250ms`, `64Ki`.

A `Duration` is a float of seconds, so it can be passed to a timer, and prints as Go's time.Duration does. It
is exact to the nanosecond up to 48 days and to the second beyond, far longer than any timeout. A `Quantity`
is its own text together with the number of bytes.

Syntax: https://pkg.go.dev/time#ParseDuration and the resource.Quantity serialization format of the Kubernetes
API.
"""

import re
from typing import Final

_UNITS: Final = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,  # the micro sign
    "\u03bcs": 1_000,  # the Greek letter
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_PART: Final = re.compile(r"([0-9]*)(?:\.([0-9]*))?([^0-9.]*)")
_MAX: Final = 2**63 - 1


class Duration(float):
    """A span of time in seconds that prints like `1h30m0s`."""

    __slots__ = ()

    def __str__(self) -> str:
        """The text Go's Duration.String() gives."""
        whole = int(self)
        ns = whole * _UNITS["s"] + round((self - whole) * 1e9)
        sign, ns = ("-", -ns) if ns < 0 else ("", ns)
        if ns == 0:
            return "0s"
        for unit, scale in (("ns", 1_000), ("\u00b5s", 1_000_000), ("ms", 1_000_000_000)):
            if ns < scale:
                return f"{sign}{_decimal(ns, _UNITS[unit])}{unit}"
        minutes, ns = divmod(ns, _UNITS["m"])
        seconds = f"{_decimal(ns, _UNITS['s'])}s"
        if not minutes:
            return sign + seconds
        hours, minutes = divmod(minutes, 60)
        return f"{sign}{hours}h{minutes}m{seconds}" if hours else f"{sign}{minutes}m{seconds}"


def parse_duration(text: str) -> Duration:
    """Reads a Go duration.

    Raises:
        ValueError: the text is no duration, has no unit or an unknown one, or does not fit 64 bits of
            nanoseconds.
    """
    invalid = f'"{text}" is not a duration like 30s, 1h2m3s or 250ms'
    rest = text[1:] if text[:1] in {"-", "+"} else text
    if rest == "0":
        return Duration(0)
    if not rest:
        raise ValueError(invalid)
    total = 0
    while rest:
        part = _PART.match(rest)
        if part is None or not (part[1] or part[2]):
            raise ValueError(invalid)
        if not part[3]:
            raise ValueError(f'"{text}" is not a duration: the unit is missing (ns, us, ms, s, m or h)')
        scale = _UNITS.get(part[3])
        if scale is None:
            raise ValueError(
                f'"{text}" is not a duration: unknown unit "{part[3]}" (use ns, us, ms, s, m or h)'
            )
        fraction = part[2] or ""
        total += int(part[1] or 0) * scale + int(fraction or 0) * scale // 10 ** len(fraction)
        rest = rest[part.end() :]
    if total > _MAX:
        raise ValueError(f'"{text}" is not a duration: longer than 292 years')
    return Duration((-total if text[0] == "-" else total) / 10**9)


def _decimal(ns: int, unit: int) -> str:
    """Writes nanoseconds as a decimal number of a unit, without trailing zeros."""
    whole, rest = divmod(ns, unit)
    if not rest:
        return str(whole)
    return f"{whole}." + str(rest).rjust(len(str(unit)) - 1, "0").rstrip("0")


_QUANTITY: Final = re.compile(
    r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?"
)
_SUFFIXES: Final = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1,
    "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60,
}  # fmt: skip


class Quantity(str):
    """A size in bytes, kept as it was written."""

    __slots__ = ()

    @property
    def bytes(self) -> int:
        """The number of bytes, rounded up."""
        return _quantity(self)


def parse_quantity(text: str) -> Quantity:
    """Reads a size such as `512`, `2Ki` or `3M`.

    Raises:
        ValueError: it is none.
    """
    _quantity(text)
    return Quantity(text)


def _quantity(text: str) -> int:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f'"{text}" is not a size like 512, 2Ki or 3M')
    suffix = match[2] or ""
    exponent = suffix[:1] in {"e", "E"} and len(suffix) > 1 and suffix != "Ei"
    value = float(match[1] + suffix) if exponent else float(match[1]) * _SUFFIXES[suffix]
    return -int(-value // 1)
