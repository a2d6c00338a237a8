"""The HTTP client for one API server: single requests, and watches as streams of lines.

One aiohttp session serves both. Credentials are read before every request, and after a 401 the request is
repeated once if there are new ones. This module imports aiohttp (some 12 MB): import it only where an API
server is used. Every failure is one of two errors: the server refused (`ApiError`), or there was no complete
response (`UnreachableError`).

HTTP/1.1 has no ping, so the kernel checks idle connections: keep-alive probes and TCP_USER_TIMEOUT detect a
dead peer after about 45 seconds. Lines are split here: an object may be megabytes long, and aiohttp's own
limit is a line of 128 KB.
"""

import asyncio
import contextlib
import logging
import os
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

import aiohttp
import msgspec
from yarl import URL

from kubeproxy import __version__
from kubeproxy.api.limits import LARGEST_ANSWER, LONGEST_LINE
from kubeproxy.figures import Figure, Histogram
from kubeproxy.log import V4, V6
from kubeproxy.sources import redirects
from kubeproxy.sources.auth import Credentials, Grant
from kubeproxy.sources.errors import SilentError, UnreachableError, api_error
from kubeproxy.sources.execplugin import PluginError

log = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 30.0
ANSWER_SECONDS: Final = 70.0
"""Seconds without data after which a request fails: the server's own limit is 60 s."""

ANSWER_BOUNDS: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60)
"""The bounds, in seconds, of the histogram of Kubernetes' clients for responses."""

_IDLE_SECONDS, _PROBE_SECONDS, _DEAD_MILLISECONDS = 30, 5, 45_000


MakeSocket = Callable[[int, int, int], socket.socket]
"""Makes a socket of a domain, kind and protocol."""


class WatchStream:
    """The body of a watch.

    Attributes:
        silence: seconds without data after which the watch fails; may be changed at any time.
    """

    def __init__(self, response: aiohttp.ClientResponse, silence: float) -> None:
        self.silence = silence
        self._content = response.content
        self._begun: list[bytes] = []
        self._length = 0

    async def lines(self) -> list[bytes]:
        """The next lines, at least one; none at the end.

        Raises:
            SilentError: no data was received in time.
            UnreachableError: the connection broke, the body ended within a line, or a line has no end.
        """
        while True:
            try:
                async with asyncio.timeout(self.silence):
                    with _translated():
                        chunk = await self._content.readany()
            except TimeoutError:
                raise SilentError(f"the server sent nothing for {self.silence:.0f} s") from None
            if not chunk:
                if self._begun:
                    raise UnreachableError("the server ended the watch within a line")
                return []
            head, newline, rest = chunk.rpartition(b"\n")
            if not newline:
                self._begun.append(chunk)
                self._length += len(chunk)
                if self._length > LONGEST_LINE:
                    raise UnreachableError(f"the server sent a line of more than {LONGEST_LINE} bytes")
                continue
            whole = b"".join([*self._begun, head])
            self._begun = [rest] if rest else []
            self._length = len(rest)
            if lines := [line for line in whole.split(b"\n") if line]:
                return lines


class SentBody(NamedTuple):
    """The body of a request and its media type."""

    data: bytes
    kind: str


class Client:
    """Sends requests to one API server. Not to be shared between event loops.

    Attributes:
        server: the URL of the last request, for messages; empty before the first one.
    """

    def __init__(self, credentials: Credentials, *, make_socket: MakeSocket = socket.socket) -> None:
        """Sends nothing yet.

        Args:
            credentials: of this client.
            make_socket: makes the sockets of connections, in the network namespace they are to belong to.
        """
        self._credentials = credentials
        self._make_socket = make_socket
        self.server = ""
        self._session: aiohttp.ClientSession | None = None
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._seconds: dict[tuple[str, str], Histogram] = {}

    def figures(self) -> Iterable[Figure]:
        """The number of requests and the time until their responses, under the names of client-go."""
        text = "Requests to the API server, by status code."
        for (method, host, code), count in self._requests.items():
            labels = {"method": method, "host": host, "code": code}
            yield Figure("rest_client_requests_total", "counter", text, count, labels)
        text = "How long the API server took to respond."
        for (method, host), seconds in self._seconds.items():
            labels = {"verb": method, "host": host}
            yield Figure("rest_client_request_duration_seconds", "histogram", text, seconds, labels)

    async def close(self) -> None:
        """Ends all connections; a later request opens new ones."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, str] | None = None,
        strategic: bool = False,
    ) -> bytes:
        """Makes one request and returns the response's body.

        Args:
            method: HTTP method.
            path: absolute path below the server's URL, e.g. "/api/v1/services".
            body: a value to send as JSON, or None; with PATCH a JSON merge patch (RFC 7386).
            query: parameters.
            strategic: the body of a PATCH is a strategic merge patch, which changes single elements of lists.

        Raises:
            ApiError: the server refused.
            UnreachableError: no complete response was received, or one that is larger than `LARGEST_ANSWER`.
        """
        kind = "json"
        if method == "PATCH":
            kind = "strategic-merge-patch+json" if strategic else "merge-patch+json"
        sent = None if body is None else SentBody(msgspec.json.encode(body), f"application/{kind}")
        async with self._send(method, path, query, sent, seconds=ANSWER_SECONDS) as response:
            return await _body(response)

    @contextlib.asynccontextmanager
    async def stream(self, path: str, query: Mapping[str, str], silence: float) -> AsyncIterator[WatchStream]:
        """Opens a watch; leaving the context ends it.

        Args:
            path: absolute path below the server's URL.
            query: parameters.
            silence: seconds without data after which the watch fails, once the server accepted it.

        Raises:
            ApiError: the server refused.
            UnreachableError: no response was received.
        """
        async with self._send("GET", path, query, None, seconds=None) as response:
            yield WatchStream(response, silence)

    @contextlib.asynccontextmanager
    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: SentBody | None,
        seconds: float | None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yields the response to a request; `seconds` limits each wait for data, None only the first."""
        target = f"{path}?{urlencode(query)}" if query else path
        with _translated():
            grant = await self._credentials.grant()
            self.server = grant.server
            response = await self._answer(grant, method, target, body, seconds)
            if response.status == 401 and await self._renewed(response, grant):
                grant = await self._credentials.grant()
                response = await self._answer(grant, method, target, body, seconds)
            async with response:
                if response.status >= 300:
                    raise api_error(
                        await response.content.read(65536),
                        response.status,
                        _seconds(response.headers),
                        more=redirects.shown(response.headers),
                    )
                kind = response.headers.get("Content-Type", "json")
                if "json" not in kind.lower():
                    raise UnreachableError(
                        f"the answer is {kind!r:.80} in place of JSON: this is no API server"
                    )
                yield response

    async def _renewed(self, response: aiohttp.ClientResponse, grant: Grant) -> bool:
        """Looks for new credentials; if there are any, the response that refused is closed."""
        try:
            renewed = await self._credentials.renew(grant)
        except BaseException:
            response.close()
            raise
        if renewed:
            response.close()
        return renewed

    async def _answer(
        self, grant: Grant, method: str, target: str, body: SentBody | None, seconds: float | None
    ) -> aiohttp.ClientResponse:
        """Gets a response; follows a GET that is redirected to another server (see `redirects`)."""
        first = url = _url(grant.server + target)
        response = await self._ask(grant, method, url, body, seconds)
        for _ in range(redirects.REQUESTS - 1):
            to = redirects.destination(method, url, response.status, response.headers)
            if to is None:
                break
            response.close()
            log.log(
                V4,
                "API server: %(url)s redirects to %(location)s (%(status)d)",
                {"url": url.origin(), "location": to, "status": response.status},
            )
            url = to
            if not redirects.keeps_credentials(first, url):
                grant = grant._replace(headers=())
            if url.origin() != first.origin():
                grant = grant._replace(proxy=self._credentials.proxy_to(str(url)))
            response = await self._ask(grant, method, url, body, seconds)
        return response

    def _socket(self, info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol = info[:3]
        return _watched(self._make_socket(family, kind, protocol))

    async def _ask(
        self, grant: Grant, method: str, url: URL, body: SentBody | None, seconds: float | None
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, socket_factory=self._socket),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept": "application/json", "User-Agent": f"kube-proxy/v{__version__}"},
            )
        headers = list(grant.headers)
        # Servers compress lists, never watches.
        headers.append(("Accept-Encoding", "gzip" if grant.compress and seconds else "identity"))
        if body is not None:
            headers.append(("Content-Type", body.kind))
        name = _without_zone(url)
        if name:
            headers.append(("Host", f"[{name}]" if url.is_default_port() else f"[{name}]:{url.port}"))
        with self._measured(method, url.authority) as code:
            async with asyncio.timeout(CONNECT_SECONDS + ANSWER_SECONDS):
                response = await self._session.request(
                    method,
                    url,
                    data=body and body.data,
                    headers=headers,
                    ssl=grant.context or True,
                    server_hostname=grant.server_name or (name if url.scheme == "https" else None),
                    proxy=grant.proxy,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(connect=CONNECT_SECONDS, sock_read=seconds),
                )
            code.append(str(response.status))
        log.log(
            V6, "%(method)s %(url)s: %(status)d", {"method": method, "url": url, "status": response.status}
        )
        return response

    @contextlib.contextmanager
    def _measured(self, method: str, host: str) -> Iterator[list[str]]:
        """Counts a request, with the code that is put in the list."""
        started = time.monotonic()
        code: list[str] = []
        try:
            yield code
        finally:
            self._requests[method, host, code[0] if code else "<error>"] += 1
            histogram = self._seconds.setdefault((method, host), Histogram(ANSWER_BOUNDS))
            histogram.observe(time.monotonic() - started)


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """Reads a response. Its size after decompression is limited: a few kilobytes may expand to gigabytes."""
    parts: list[bytes] = []
    size = 0
    while part := await response.content.readany():
        parts.append(part)
        size += len(part)
        if size > LARGEST_ANSWER:
            response.close()
            raise UnreachableError(f"the server's answer is larger than {LARGEST_ANSWER} bytes")
    return b"".join(parts)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Converts errors of aiohttp, the socket or a plugin to one error with a plain message."""
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as e:
        raise UnreachableError(f"the server's certificate is not trusted: {e.certificate_error}") from e
    except aiohttp.ClientHttpProxyError as e:
        raise UnreachableError(f"the proxy refused: {e.status} {e.message}") from e
    except aiohttp.ClientConnectorError as e:
        raise UnreachableError(f"cannot connect to {e.host}:{e.port}: {_why(e.os_error)}") from e
    except aiohttp.ClientResponseError as e:
        raise UnreachableError(f"the answer is not HTTP: {e.message.partition(chr(10))[0]}") from e
    except aiohttp.ClientPayloadError as e:
        raise UnreachableError("the connection broke within the answer") from e
    except aiohttp.ServerDisconnectedError as e:
        raise UnreachableError("the server closed the connection without an answer") from e
    except TimeoutError as e:
        raise UnreachableError("no answer in time") from e
    except (aiohttp.ClientError, OSError) as e:
        raise UnreachableError(str(e) or type(e).__name__) from e
    except PluginError as e:
        raise UnreachableError(str(e)) from e


def _why(error: OSError) -> str:
    """Why a connection failed. asyncio replaces the system's message by `Connect call failed (ADDRESS)`."""
    text = str(error)
    if "Connect call failed" not in text:
        return error.strerror or text
    numbers = dict.fromkeys(map(int, re.findall(r"\[Errno (\d+)\]", text)))
    return ", ".join(map(os.strerror, numbers)) or text


def _url(text: str) -> URL:
    """A URL, whose host may have a zone, as in `[fe80::1%25eth0]` (RFC 6874)."""
    url = URL(text, encoded=True)
    host, zone, interface = (url.raw_host or "").partition("%")
    if not zone:
        return url
    interface = interface.removeprefix("25")
    return URL(text.replace(url.raw_host or "", f"{host}%{interface}", 1), encoded=True)


def _without_zone(url: URL) -> str | None:
    """A URL's host without its zone; None if it has none.

    A zone is needed to connect, but it belongs to this host: it is not part of a certificate or of the Host
    header.
    """
    host, zone, _ = (url.raw_host or "").partition("%")
    return host if zone else None


def _watched(made: socket.socket) -> socket.socket:
    """Makes the kernel detect a dead peer of a socket, idle or not (tcp(7))."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", _IDLE_SECONDS),
        ("TCP_KEEPINTVL", _PROBE_SECONDS),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", _DEAD_MILLISECONDS),
    ):
        if hasattr(socket, option):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return made


def _seconds(headers: Mapping[str, str]) -> float:
    """Retry-After in seconds; its other form, a date, is not used by API servers."""
    value = headers.get("Retry-After", "")
    return float(value) if value.isdigit() else 0.0
