"""Redirects of the API server, or of a load balancer in front of it, by the rules of Go's net/http.

A GET follows redirects, for at most ten requests in all. Credentials are sent to the first host and its
subdomains; once left out they are not sent again. Unlike Go, they are never sent from https to http, where a
token would cross the network unencrypted.

Source: https://pkg.go.dev/net/http#Client.
"""

from collections.abc import Mapping
from typing import Final

from yarl import URL

REQUESTS: Final = 10
"""How many requests are made for one GET."""

STATUSES: Final = frozenset({301, 302, 303, 307, 308})


def destination(method: str, url: URL, status: int, headers: Mapping[str, str]) -> URL | None:
    """The URL to which a response redirects a request; None if it is not to be followed."""
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
    """The text of a message about the target of a response; empty if it has none."""
    location = headers.get("Location", "")
    return f"; it redirects to {location[:200]!r}" if location else ""
