"""Content negotiation: the headers Accept and Accept-Encoding, in the client's order of preference.

Source: RFC 9110, section 12.5.
"""

from collections.abc import Mapping

from msgspec import Struct


class Wish(Struct, frozen=True, gc=False):
    """One entry: a value in lower case ("text/plain", "gzip"), its parameters, its quality from 0 to 1."""

    value: str
    parameters: Mapping[str, str] = {}
    quality: float = 1.0


def wishes(header: str) -> list[Wish]:
    """Reads a header; sorted by quality, equals in their order, refused entries (quality 0) last."""
    found = [_wish(entry) for entry in header.split(",") if entry.strip()]
    return sorted(found, key=lambda wish: -wish.quality)


def takes_gzip(header: str) -> bool:
    """Whether an Accept-Encoding prefers gzip to the plain content, or has both with the same quality."""
    qualities = {wish.value: wish.quality for wish in wishes(header)}
    gzip = qualities.get("gzip", qualities.get("*", 0.0))
    return gzip > 0 and gzip >= qualities.get("identity", 0.0)


def _wish(entry: str) -> Wish:
    value, *rest = (part.strip() for part in entry.split(";"))
    parameters = {}
    quality = 1.0
    for part in rest:
        name, _, text = (word.strip() for word in part.partition("="))
        if name.lower() == "q":
            quality = _quality(text)
        elif name:
            parameters[name.lower()] = text.strip('"')
    return Wish(value.lower(), parameters, quality)


def _quality(text: str) -> float:
    """Reads a quality; what is no number is 1, the default."""
    number = text.replace(".", "", 1)
    return min(float(text), 1.0) if number.isascii() and number.isdigit() else 1.0
