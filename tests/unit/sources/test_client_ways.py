"""Ways to the API server that are not straight: redirects, and proxies that speak TLS."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from yarl import URL

from kubeproxy.sources import redirects
from kubeproxy.sources.auth import Credentials
from kubeproxy.sources.client import Client
from kubeproxy.sources.errors import ApiError
from kubeproxy.sources.kubeconfig import Cluster, ClusterAccess, User
from tests.fakes.apiserver import FakeApiServer
from tests.fakes.tls import Authority

SERVICES = "/api/v1/services"
WATCH = {"watch": "1", "resourceVersion": "1"}
ME = User(token="secret", as_user="someone")


class Redirector:
    """A load balancer that sends every request on.

    Attributes:
        url: its own.
        to: the Location; `{path}` is the request's target, `{n}` the number of the request.
        heads: the requests, in lower case.
    """

    def __init__(self, to: str, status: int) -> None:
        self.url, self.to, self.status = "", to, status
        self.heads: list[str] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.heads.append(head.lower())
                to = self.to.format(path=head.split(" ")[1], n=len(self.heads))
                location = f"Location: {to}\r\n" if to else ""
                writer.write(
                    f"HTTP/1.1 {self.status} Go\r\n{location}Content-Length: 4\r\n\r\nthere".encode()[:-1]
                )


@asynccontextmanager
async def serving(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """Answers connections, and gives the port; at the end all of them are over."""
    tasks: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        with contextlib.suppress(OSError):
            await answer(reader, writer)
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.gather(*filter(None, tasks), return_exceptions=True)


@asynccontextmanager
async def redirector(to: str, status: int = 307, host: str = "127.0.0.1") -> AsyncIterator[Redirector]:
    made = Redirector(to, status)
    async with serving(made.answer) as port:
        made.url = f"http://{host}:{port}"
        yield made


@asynccontextmanager
async def client(
    server: str, user: User = ME, env: dict[str, str] | None = None, **cluster: object
) -> AsyncIterator[Client]:
    settings = msgspec.structs.replace(Cluster(server=server), **cluster)
    made = Client(Credentials(lambda: ClusterAccess(settings, user, name="test"), env=env or {}))
    try:
        yield made
    finally:
        await made.close()


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_lists_and_watches_are_sent_on_with_their_credentials(self, status: int) -> None:
        async with (
            FakeApiServer() as server,
            redirector(f"{server.url}{{path}}", status) as balancer,
            client(balancer.url) as c,
        ):
            server.tokens["secret"] = "proxy"
            body = await c.request("GET", SERVICES, query={"labelSelector": "!a,c=d e"})
            assert msgspec.json.decode(body)["kind"] == "ServiceList"
            server.store.put({"kind": "Service", "metadata": {"name": "a"}})
            async with c.stream(SERVICES, WATCH, 5) as stream:
                assert await stream.lines()
            asked = [(request.user, request.headers.get("Impersonate-User")) for request in server.requests]
            assert asked == [("proxy", "someone")] * 2
            assert server.requests[0].query == {"labelSelector": "!a,c=d e"}

    async def test_a_relative_location_is_below_the_server(self) -> None:
        async with redirector("/elsewhere{path}") as balancer, client(balancer.url) as c:
            with pytest.raises(ApiError):
                await c.request("GET", "/x")
            assert balancer.heads[1].startswith("get /elsewhere/x ")

    async def test_credentials_never_reach_another_host(self) -> None:
        async with (
            FakeApiServer() as server,
            redirector(f"{server.url}{{path}}", host="localhost") as balancer,
            client(balancer.url) as c,
        ):
            await c.request("GET", SERVICES)
            assert "authorization: bearer secret" in balancer.heads[0]
            headers = {name.lower() for name in server.requests[0].headers}
            assert not headers & {"authorization", "impersonate-user"}

    async def test_credentials_that_were_left_out_stay_out(self) -> None:
        """The way back to the first host, as an attacker between could arrange it."""
        async with redirector("", host="localhost") as balancer:
            port = URL(balancer.url).port
            balancer.to = f"http://127.0.0.1:{port}/1"
            async with client(balancer.url) as c:
                with pytest.raises(ApiError):
                    await c.request("GET", "/0")
            assert ["authorization" in head for head in balancer.heads] == [True] + [False] * 9

    async def test_a_circle_ends_and_is_told_with_its_location(self) -> None:
        async with redirector("{path}?{n}") as balancer, client(balancer.url) as c:
            with pytest.raises(ApiError, match=r"ther; it redirects to '/a\?1.*\?10' \(307\)"):
                await c.request("GET", "/a")
            assert len(balancer.heads) == redirects.REQUESTS

    @pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
    async def test_only_a_get_is_sent_on(self, method: str) -> None:
        async with redirector("http://127.0.0.1:1/x") as balancer, client(balancer.url) as c:
            with pytest.raises(ApiError, match=r"it redirects to 'http://127\.0\.0\.1:1/x'"):
                await c.request(method, "/a", {"a": 1})
            assert len(balancer.heads) == 1

    @pytest.mark.parametrize("location", ["", "ftp://a/b", "http://[::", "file:///etc/passwd"])
    async def test_what_leads_nowhere_is_the_answer(self, location: str) -> None:
        async with redirector(location) as balancer, client(balancer.url) as c:
            with pytest.raises(ApiError) as caught:
                await c.request("GET", "/a")
            assert caught.value.status == 307
            assert len(balancer.heads) == 1
            assert (repr(location) in str(caught.value)) is bool(location)

    @pytest.mark.parametrize(
        ("first", "to", "kept"),
        [
            ("https://api", "https://api/x", True),
            ("https://api:6443", "https://api:8443", True),
            ("https://API.example.com", "https://api.example.COM", True),
            ("https://example.com", "https://api.example.com", True),
            ("https://api.example.com", "https://example.com", False),
            ("https://example.com", "https://badexample.com", False),
            ("https://10.0.0.1", "https://10.0.0.1", True),
            ("https://10.0.0.1", "https://5.10.0.0.1", False),
            ("https://[fd00::1]", "https://[fd00::1]:1", True),
            ("https://[fd00::1]", "https://[fd00::2]", False),
            ("https://api", "http://api", False),
            ("http://api", "https://api", True),
            ("http://api", "http://api", True),
        ],
    )
    def test_who_may_see_credentials(self, first: str, to: str, kept: bool) -> None:
        assert redirects.keeps_credentials(URL(first), URL(to)) is kept

    def test_a_name_in_the_location_is_no_credential(self) -> None:
        to = redirects.destination("GET", URL("http://a"), 302, {"Location": "http://me:pw@b/c#d"})
        assert str(to) == "http://b/c"


@asynccontextmanager
async def tls_proxy(context: ssl.SSLContext) -> AsyncIterator[tuple[str, list[str]]]:
    """An HTTP proxy behind TLS; gives its URL and what it was asked."""
    asked: list[str] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked.append(head.partition("\r\n")[0])
        host, _, port = head.split(" ")[1].rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pump(far_reader, writer), pump(reader, far_writer))

    async with serving(answer, context) as port:
        yield f"https://127.0.0.1:{port}", asked


async def test_a_proxy_that_speaks_tls() -> None:
    authority = Authority()
    async with (
        FakeApiServer(authority.server_context("kubernetes")) as server,
        tls_proxy(authority.server_context()) as (proxy, asked),
        client(
            server.url,
            proxy_url=proxy,
            certificate_authority_data=authority.pem,
            tls_server_name="kubernetes",
        ) as c,
    ):
        server.tokens["secret"] = "proxy"
        for _ in range(2):
            assert msgspec.json.decode(await c.request("GET", SERVICES))["kind"] == "ServiceList"
        assert asked == [f"CONNECT 127.0.0.1:{server.port} HTTP/1.1"]


async def test_a_proxy_in_the_environment_that_is_none_of_ours_is_left_out_and_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    env = {"HTTP_PROXY": "socks5://me:pw@proxy:1080"}
    credentials = Credentials(lambda: ClusterAccess(Cluster(server="http://api"), ME, name="test"), env=env)
    for _ in range(2):
        assert (await credentials.grant()).proxy is None
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.getMessage() == (
        'HTTP_PROXY: must be an http:// or https:// URL, "socks5://proxy:1080" is not supported:'
        " the API server is connected to directly"
    )
