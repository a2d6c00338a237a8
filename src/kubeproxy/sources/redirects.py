"""Where an answer of the API server, or of a load balancer before it, sends a request on, by the rules of Go's net/http.

A GET is sent on, for at most ten requests in all. Credentials go along to the host they were meant for and to hosts
below it; once left out they stay out, whatever comes after. Unlike Go they never leave TLS either: a server that sends
us from https to http would have a token go over the network in the clear.

Source: https://pkg.go.dev/net/http#Client.
"""

from collections.abc import Mapping
from typing import Final

from yarl import URL

REQUESTS: Final = 10
"""So many requests are made for one GET."""

STATUSES: Final = frozenset({301, 302, 303, 307, 308})


def destination(method: str, url: URL, status: int, headers: Mapping[str, str]) -> URL | None:
    """Where an answer sends a request; None if it is not to be sent on."""
    location = headers.get("Location", "")
    if method != "GET" or status not in STATUSES or not location:
        return None
    try:
        to = url.join(URL(location))
        usable = to.scheme in {"http", "https"} and bool(to.host)
        return to.with_user(None).with_fragment(None) if usable else None
    except ValueError:
        return None


def keeps_credentials(first: URL, to: URL) -> bool:
    """Whether the credentials of a first URL may be sent to another."""
    if first.scheme == "https" and to.scheme != "https":
        return False
    own, other = (first.host or "").lower(), (to.host or "").lower()
    if own == other:
        return True
    is_name = ":" not in own and not own.replace(".", "").isdigit()
    return is_name and other.endswith(f".{own}")


def shown(headers: Mapping[str, str]) -> str:
    """What a message says about where an answer points; empty if nowhere."""
    location = headers.get("Location", "")
    return f"; it redirects to {location[:200]!r}" if location else ""
