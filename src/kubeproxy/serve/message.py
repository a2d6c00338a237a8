"""Requests and responses of HTTP/1.1, in memory and as bytes.

Only what status pages need: no chunked requests, bodies of at most a kilobyte. What health checks in use send
is accepted as Go's server accepts it: any method, lines that end in LF alone, an absolute URL, `OPTIONS *`.
Source: RFC 9110, RFC 9112.
"""

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from msgspec import Struct

LONGEST_HEAD: Final = 8192
LONGEST_BODY: Final = 1024
LONGEST: Final = LONGEST_HEAD + 4 + LONGEST_BODY
"""The most bytes of a request."""

ANY: Final = "*"
"""The path of a request that is for the server, not for one of its pages: `OPTIONS *`."""

_END = re.compile(rb"\n\r?\n")
_ABSOLUTE = re.compile(r"https?://[^/?]*", re.ASCII | re.IGNORECASE)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_REASONS = {
    200: "OK",
    400: "Bad HTTPRequest",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    406: "Not Acceptable",
    409: "Conflict",
    413: "Content Too Large",
    431: "HTTPRequest Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


class HTTPRequest(Struct, frozen=True, gc=False):
    """A request. Header names are in lower case; `last`: the connection is closed after the response."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = {}
    body: bytes = b""
    last: bool = False


class HTTPResponse(Struct, frozen=True, gc=False):
    """A response."""

    body: bytes
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[HTTPRequest], HTTPResponse | Awaitable[HTTPResponse]]


def text(message: str, status: int = 200) -> HTTPResponse:
    """A response of plain text."""
    return HTTPResponse(message.encode(), status)


def router(routes: Mapping[str, Handler]) -> Handler:
    """Chooses a handler by method and path, e.g. "GET /healthz".

    The handler for GET answers all methods that have none of their own, as in the reference: load balancers
    check with OPTIONS and HEAD, too.
    """

    def handle(request: HTTPRequest) -> HTTPResponse | Awaitable[HTTPResponse]:
        handler = routes.get(f"{request.method} {request.path}", routes.get(f"GET {request.path}"))
        if handler is not None:
            return handler(request)
        allowed = [
            method for method, _, path in (route.partition(" ") for route in routes) if path == request.path
        ]
        if not allowed:
            return text("404 page not found\n", 404)
        return HTTPResponse(b"Method Not Allowed\n", 405, headers=(("Allow", ", ".join(allowed)),))

    return handle


class BadRequestError(Exception):
    """What was received is not an acceptable request; the connection is closed after this response."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def response(self) -> HTTPResponse:
        """The response to send."""
        return text(f"{self.status} {_REASONS[self.status]}: {self}\n", self.status)


def render(response: HTTPResponse, method: str, *, last: bool) -> bytes:
    """A response as bytes.

    Args:
        response: the response.
        method: of its request; the response to HEAD has no body.
        last: whether the connection is closed after it.
    """
    head = [
        f"HTTP/1.1 {response.status} {_REASONS[response.status]}",
        f"Date: {time.strftime('%a, %d %b %Y %H:%M:%S GMT', time.gmtime())}",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(response.body)}",
        "X-Content-Type-Options: nosniff",
        *(f"{name}: {value}" for name, value in response.headers),
        *(["Connection: close"] if last else []),
    ]
    data = "\r\n".join(head).encode("latin-1") + b"\r\n\r\n"
    return data if method == "HEAD" else data + response.body


def parse(buffer: bytearray) -> HTTPRequest | None:
    """Takes a request from a buffer; None if it has not all come.

    Raises:
        BadRequestError: it is not a request, or exceeds a limit.
    """
    end = _END.search(buffer)
    if (end.start() if end else len(buffer)) > LONGEST_HEAD:
        raise BadRequestError(431, f"more than {LONGEST_HEAD} bytes")
    if end is None:
        return None
    head = buffer[: end.start()].decode("latin-1").lstrip("\r\n")
    first, *lines = (line.removesuffix("\r") for line in head.split("\n"))
    method, target, version = _request_line(first)
    headers = _headers(lines)
    if version == "HTTP/1.1" and "host" not in headers:
        raise BadRequestError(400, "no Host")
    if "transfer-encoding" in headers:
        raise BadRequestError(501, "Transfer-Encoding")
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise BadRequestError(400, "Content-Length is no number")
    if len(length) > 9 or int(length) > LONGEST_BODY:
        raise BadRequestError(413, f"more than {LONGEST_BODY} bytes")
    start = end.end()
    if len(buffer) < start + int(length):
        return None
    body = bytes(buffer[start : start + int(length)])
    del buffer[: start + int(length)]
    last = version == "HTTP/1.0" or "close" in headers.get("connection", "").lower()
    path, _, query = target.partition("?")
    return HTTPRequest(method, path, query, headers, body, last)


def _request_line(line: str) -> tuple[str, str, str]:
    parts = line.split(" ")
    if len(parts) != 3 or not _TOKEN.fullmatch(parts[0]):
        raise BadRequestError(400, "this is not HTTP")
    method, target, version = parts
    if version not in {"HTTP/1.1", "HTTP/1.0"}:
        raise BadRequestError(505 if version.startswith("HTTP/") else 400, "only HTTP/1.1 is supported")
    if absolute := _ABSOLUTE.match(target):
        target = f"/{target[absolute.end() :].removeprefix('/')}"
    if not target.startswith("/") and (method, target) != ("OPTIONS", ANY):
        raise BadRequestError(400, "the target is no path")
    return method, target, version


def _headers(lines: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name):
            raise BadRequestError(400, "a header line is malformed")
        name = name.lower()
        value = value.strip(" \t")
        if name in headers and name in {"content-length", "host"} and headers[name] != value:
            raise BadRequestError(400, f"{name} is given twice")
        headers[name] = value
    return headers
