"""The HTTP client against a real server."""

import asyncio
import base64
import gzip
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kubeproxy.figures import Histogram
from kubeproxy.sources.auth import Credentials
from kubeproxy.sources.client import Client, _url, _why, _without_zone
from kubeproxy.sources.errors import ApiError, SilentError, UnreachableError, api_error
from kubeproxy.sources.execplugin import Credential, PluginError
from kubeproxy.sources.kubeconfig import Cluster, ClusterAccess, ExecPlugin, User
from tests.fakes.apiserver import FakeApiServer
from tests.fakes.lines import Fault
from tests.fakes.tls import Authority

SERVICES = "/api/v1/services"
NOBODY, PLAIN = User(), Cluster()
WATCH = {"watch": "1", "resourceVersion": "1", "allowWatchBookmarks": "true"}


@asynccontextmanager
async def client(
    server: FakeApiServer | str, user: User = NOBODY, cluster: Cluster = PLAIN, **settings: Any
) -> AsyncIterator[Client]:
    url = server if isinstance(server, str) else server.url
    cluster = msgspec.structs.replace(cluster, server=url)
    made = Client(Credentials(lambda: ClusterAccess(cluster, user, name="test"), env={}, **settings))
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def tcp(answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> AsyncIterator[str]:
    """A server that does what HTTP servers do not."""
    server = await asyncio.start_server(answer, "127.0.0.1")
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


class TestRequest:
    async def test_get(self) -> None:
        async with FakeApiServer() as server, client(server) as c:
            body = await c.request("GET", SERVICES, query={"labelSelector": "!a/b,c=d e", "limit": "1"})
            assert msgspec.json.decode(body)["kind"] == "ServiceList"
            (request,) = server.requests
            assert request.query == {"labelSelector": "!a/b,c=d e", "limit": "1"}
            assert request.headers["Accept"] == "application/json"
            assert request.headers["Accept-Encoding"] == "gzip"
            assert request.headers["User-Agent"].startswith("kube-proxy/v")

    async def test_post(self) -> None:
        async with FakeApiServer() as server, client(server) as c:
            await c.request("POST", "/api/v1/namespaces/default/services", {"metadata": {"name": "e"}})
            assert server.store.objects["Service"].keys() == {("default", "e")}
            assert server.requests[0].headers["Content-Type"] == "application/json"

    async def test_a_path_below_the_servers(self) -> None:
        async with FakeApiServer() as server, client(f"{server.url}/k8s/clusters/c-1") as c:
            with pytest.raises(ApiError):
                await c.request("GET", SERVICES)
            assert server.requests[0].path == f"/k8s/clusters/c-1{SERVICES}"

    async def test_a_large_list_comes_compressed_unless_disabled(self) -> None:
        async with FakeApiServer() as server:
            for number in range(100):
                server.store.put(
                    {"kind": "Service", "metadata": {"name": f"s{number}"}, "spec": {"x": "x" * 2000}}
                )
            for disabled in (False, True):
                async with client(server, cluster=Cluster(disable_compression=disabled)) as c:
                    assert len(msgspec.json.decode(await c.request("GET", SERVICES))["items"]) == 100
            asked = [request.headers["Accept-Encoding"] for request in server.requests]
            assert asked == ["gzip", "identity"]

    async def test_it_works_again_after_close(self) -> None:
        async with FakeApiServer() as server, client(server) as c:
            await c.request("GET", SERVICES)
            await c.close()
            await c.request("GET", SERVICES)


class TestFigures:
    async def test_requests_are_counted_by_their_answer_and_measured(self) -> None:
        async with FakeApiServer() as server, client(server) as c:
            await c.request("GET", SERVICES)
            await c.request("GET", SERVICES)
            server.next(Fault(status=429, reason="TooManyRequests", message="later"))
            with pytest.raises(ApiError):
                await c.request("GET", SERVICES)
            await c.close()
            await server.stop()
            with pytest.raises(UnreachableError):
                await c.request("GET", SERVICES)
            found = {(f.name, *f.labels.values()): f.value for f in c.figures()}
        host = server.url.removeprefix("http://")
        counts = {key[3]: value for key, value in found.items() if key[0] == "rest_client_requests_total"}
        assert counts == {"200": 2, "429": 1, "<error>": 1}
        seconds = found["rest_client_request_duration_seconds", "GET", host]
        assert isinstance(seconds, Histogram)
        assert seconds.cumulative()[-1] == 4


class TestRefusals:
    async def test_status(self) -> None:
        async with FakeApiServer() as server, client(server) as c:
            server.next(Fault(status=429, reason="TooManyRequests", message="later", retry_after=7))
            with pytest.raises(ApiError) as e:
                await c.request("GET", SERVICES)
            assert (e.value.status, e.value.reason, e.value.retry_after) == (429, "TooManyRequests", 7)
            assert str(e.value) == "later (429 TooManyRequests)"

    async def test_text_of_a_proxy(self) -> None:
        async with FakeApiServer() as server, client(server) as c:
            server.next(Fault(status=502, body=b"<html>Bad Gateway</html>"))
            with pytest.raises(ApiError, match=r"<html>Bad Gateway</html> \(502\)"):
                await c.request("GET", SERVICES)

    async def test_a_redirect_to_nowhere_is_not_followed(self) -> None:
        async with FakeApiServer() as server, client(server, User(token="secret")) as c:
            server.next(Fault(status=302, message="over there"))
            with pytest.raises(ApiError, match="over there"):
                await c.request("GET", SERVICES)
            assert len(server.requests) == 1

    async def test_a_watch(self) -> None:
        async with FakeApiServer() as server, client(server) as c:
            server.forbidden.add("Service")
            with pytest.raises(ApiError, match="services is forbidden") as e:
                async with c.stream(SERVICES, WATCH, 5):
                    pass
            assert e.value.status == 403

    @pytest.mark.parametrize(
        ("body", "expired", "too_large"),
        [
            ({"code": 410, "reason": "Gone"}, True, False),
            ({"code": 500, "reason": "Expired"}, True, False),
            ({"code": 504, "details": {"causes": [{"reason": "ResourceVersionTooLarge"}]}}, False, True),
            ({"code": 504, "message": "Too large resource version: 9, current: 3"}, False, True),
            ({"code": 500, "details": {"causes": None}}, False, False),
        ],
    )
    def test_what_an_error_event_says(self, body: dict[str, Any], expired: bool, too_large: bool) -> None:
        error = api_error(msgspec.json.encode(body))
        assert (error.status, error.expired, error.too_large) == (body["code"], expired, too_large)

    def test_an_error_event_asks_to_wait(self) -> None:
        assert api_error(b'{"code":429,"details":{"retryAfterSeconds":3}}').retry_after == 3

    def test_an_error_event_that_says_nothing(self) -> None:
        for body in (b"{}", b"[]"):
            assert api_error(body).status == 500


class TestCredentials:
    async def test_token(self) -> None:
        async with FakeApiServer() as server:
            server.tokens["good"] = "proxy"
            async with client(server, User(token="good")) as c:
                await c.request("GET", SERVICES)
            assert server.requests[0].user == "proxy"
            async with client(server, User(token="bad")) as c:
                with pytest.raises(ApiError, match="401 Unauthorized"):
                    await c.request("GET", SERVICES)
            assert len(server.requests) == 2

    async def test_basic(self) -> None:
        async with FakeApiServer() as server, client(server, User(username="me", password="x")) as c:
            server.basics["me:x"] = "proxy"
            await c.request("GET", SERVICES)
            assert server.requests[0].user == "proxy"

    async def test_several_headers_of_one_name(self) -> None:
        seen = []

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
            writer.close()

        async with tcp(answer) as url, client(url, User(as_user="me", as_groups=("a", "b"))) as c:
            await c.request("GET", SERVICES)
        assert [line for line in seen[0].splitlines() if "Group" in line] == [
            "Impersonate-Group: a",
            "Impersonate-Group: b",
        ]

    async def test_401_gets_another_try_with_new_credentials(self) -> None:
        issued = iter(["old", "new"])

        async def run(*_: object) -> Credential:
            return Credential(token=next(issued))

        user = User(exec_plugin=ExecPlugin("plugin", "v1"))
        async with FakeApiServer() as server, client(server, user, run_plugin=run) as c:
            server.tokens["new"] = "proxy"
            await c.request("GET", SERVICES)
            assert [request.user for request in server.requests] == ["", "proxy"]

    async def test_a_failing_plugin(self) -> None:
        async def run(*_: object) -> Credential:
            raise PluginError("exec plugin x: exit status 1")

        user = User(exec_plugin=ExecPlugin("plugin", "v1"))
        async with client("http://127.0.0.1:1", user, run_plugin=run) as c:
            with pytest.raises(UnreachableError, match="exec plugin x"):
                await c.request("GET", SERVICES)


class TestTls:
    async def test_client_certificate_and_its_rotation(self, tmp_path: Path, authority: Authority) -> None:
        certificate, key = authority.write(tmp_path, "proxy")
        user = User(client_certificate=str(certificate), client_key=str(key))
        cluster = Cluster(certificate_authority_data=authority.pem)
        async with (
            FakeApiServer(authority.server_context(clients=True)) as server,
            client(server, user, cluster) as c,
        ):
            await c.request("GET", SERVICES)
            for path, data in zip((certificate, key), authority.client("renewed"), strict=True):
                path.with_suffix(".new").write_bytes(data)
                path.with_suffix(".new").replace(path)
            await c.request("GET", SERVICES)
            assert [request.user for request in server.requests] == ["proxy", "renewed"]

    async def test_no_client_certificate(self, authority: Authority) -> None:
        cluster = Cluster(certificate_authority_data=authority.pem)
        async with (
            FakeApiServer(authority.server_context(clients=True)) as server,
            client(server, cluster=cluster) as c,
        ):
            with pytest.raises(ApiError, match="401"):
                await c.request("GET", SERVICES)

    async def test_an_unknown_authority(self, authority: Authority) -> None:
        cluster = Cluster(certificate_authority_data=Authority().pem)
        async with FakeApiServer(authority.server_context()) as server, client(server, cluster=cluster) as c:
            with pytest.raises(
                UnreachableError, match=r"certificate is not trusted: .*unable to get local issuer"
            ):
                await c.request("GET", SERVICES)

    async def test_the_name_to_expect(self, authority: Authority) -> None:
        async with FakeApiServer(authority.server_context("kubernetes")) as server:
            cluster = Cluster(certificate_authority_data=authority.pem, tls_server_name="kubernetes")
            async with client(server, cluster=cluster) as c:
                await c.request("GET", SERVICES)
            cluster = Cluster(certificate_authority_data=authority.pem)
            async with client(server, cluster=cluster) as c:
                with pytest.raises(UnreachableError, match=r"certificate is not trusted: .*mismatch"):
                    await c.request("GET", SERVICES)

    async def test_verification_off(self, authority: Authority) -> None:
        cluster = Cluster(insecure_skip_tls_verify=True)
        async with (
            FakeApiServer(authority.server_context("other")) as server,
            client(server, cluster=cluster) as c,
        ):
            await c.request("GET", SERVICES)


@asynccontextmanager
async def proxy(status: bytes = b"200 OK") -> AsyncIterator[tuple[str, list[str]]]:
    """An HTTP proxy that knows CONNECT; yields its address and the heads it got."""
    heads: list[str] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 " + status + b"\r\n\r\n")
        if status == b"200 OK":
            host, _, port = heads[-1].split()[1].partition(":")
            back = await asyncio.open_connection(host, int(port))
            await asyncio.gather(copy(reader, back[1]), copy(back[0], writer))
        writer.close()

    async with tcp(serve) as url:
        yield url.removeprefix("http://"), heads


class TestProxy:
    async def test_tls_goes_through(self, authority: Authority) -> None:
        async with (
            FakeApiServer(authority.server_context("kubernetes")) as server,
            proxy() as (address, heads),
        ):
            cluster = Cluster(
                certificate_authority_data=authority.pem,
                tls_server_name="kubernetes",
                proxy_url=f"http://me:pass@{address}",
            )
            async with client(server, cluster=cluster) as c:
                await c.request("GET", SERVICES)
                assert len(server.requests) == 1
        assert heads[0].startswith(f"CONNECT 127.0.0.1:{server.port} ")
        assert f"Proxy-Authorization: Basic {base64.b64encode(b'me:pass').decode()}" in heads[0]

    async def test_a_refusal(self, authority: Authority) -> None:
        async with proxy(b"403 Forbidden") as (address, _):
            cluster = Cluster(certificate_authority_data=authority.pem, proxy_url=f"http://{address}")
            async with client("https://api.test", cluster=cluster) as c:
                with pytest.raises(UnreachableError, match="the proxy refused: 403 Forbidden"):
                    await c.request("GET", SERVICES)


@pytest.mark.parametrize(
    ("given", "connects", "name"),
    [
        ("https://10.0.0.1:6443/api", "https://10.0.0.1:6443/api", None),
        ("https://[fd00::1]/api", "https://[fd00::1]/api", None),
        ("https://api.test/a%25b", "https://api.test/a%25b", None),
        ("https://[fe80::1%25eth0]:6443/a%25b", "https://[fe80::1%eth0]:6443/a%25b", "fe80::1"),
        ("https://[fe80::1%eth0]:6443/api", "https://[fe80::1%eth0]:6443/api", "fe80::1"),
    ],
)
def test_the_zone_of_a_server(given: str, connects: str, name: str | None) -> None:
    url = _url(given)
    assert (str(url), _without_zone(url)) == (connects, name)


class TestUnreachable:
    async def test_nobody_listens(self) -> None:
        async with FakeApiServer() as server:
            url = server.url
        async with client(url) as c:
            with pytest.raises(
                UnreachableError, match=r"^cannot connect to 127.0.0.1:\d+: Connection refused$"
            ):
                await c.request("GET", SERVICES)

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (OSError(111, "Connect call failed ('::1', 6443, 0, 0)"), "Connection refused"),
            (
                OSError(
                    "Multiple exceptions: [Errno 111] Connect call failed ('::1', 1, 0, 0), [Errno 101] Connect call"
                    " failed ('10.0.0.1', 1)"
                ),
                "Connection refused, Network is unreachable",
            ),
            (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
            (OSError("something else"), "something else"),
        ],
    )
    def test_the_reason_is_told_in_words(self, error: OSError, words: str) -> None:
        assert _why(error) == words

    async def test_not_http(self) -> None:
        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
            writer.close()

        async with tcp(answer) as url, client(url) as c:
            with pytest.raises(UnreachableError, match=r"^the answer is not HTTP: [^\n]*$"):
                await c.request("GET", SERVICES)

    async def test_half_a_body(self) -> None:
        async with FakeApiServer() as server, client(server) as c:
            server.next(Fault(then="drop"))
            with pytest.raises(UnreachableError, match="the connection broke within the answer"):
                await c.request("GET", SERVICES)

    async def test_no_answer_at_all(self) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.close()

        async with tcp(answer) as url, client(url) as c:
            with pytest.raises(UnreachableError, match="closed the connection without an answer"):
                await c.request("GET", SERVICES)

    async def test_a_dead_peer_is_noticed_by_the_kernel(self) -> None:
        """The options stand on the very socket of a watch."""
        async with FakeApiServer() as server, client(server) as c, c.stream(SERVICES, WATCH, 5):
            assert c._session is not None
            (protocol,) = c._session.connector._acquired  # type: ignore[union-attr]
            assert protocol.transport is not None
            sock = protocol.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 45_000


class TestStream:
    async def lines(self, server: FakeApiServer, count: int) -> list[bytes]:
        found: list[bytes] = []
        async with client(server) as c, c.stream(SERVICES, WATCH, 20) as stream:
            while len(found) < count and (lines := await stream.lines()):
                found += lines
        return found

    async def test_lines_of_any_length(self) -> None:
        async with FakeApiServer() as server:
            sizes = (10, 3_000_000, 20, 200_000)
            for size in sizes:
                server.store.put({"kind": "Service", "metadata": {"name": "s"}, "spec": {"x": "x" * size}})
            lines = await self.lines(server, len(sizes))
            assert [len(msgspec.json.decode(line)["object"]["spec"]["x"]) for line in lines] == list(sizes)
            assert server.requests[0].headers["Accept-Encoding"] == "identity"

    async def test_chunks_of_any_shape(self) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for piece in (b"a", b"b\nc", b"\n", b"\n\n", b"d\ne\n"):
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                await writer.drain()
                await asyncio.sleep(0.01)
            writer.write(b"0\r\n\r\n")
            writer.close()

        found = []
        async with tcp(answer) as url, client(url) as c, c.stream("/", {}, 20) as stream:
            while lines := await stream.lines():
                found.append(lines)
        assert b"".join(b"".join(lines) for lines in found) == b"abcde"
        assert all(found)

    async def test_a_clean_end(self) -> None:
        async with FakeApiServer() as server:
            server.next(Fault(then="end"))
            assert await self.lines(server, 1) == []

    async def test_an_end_within_a_line(self) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b'HTTP/1.0 200 OK\r\n\r\n{"type":')
            writer.close()

        async with tcp(answer) as url, client(url) as c, c.stream("/", {}, 20) as stream:
            with pytest.raises(UnreachableError, match="within a line"):
                await stream.lines()

    @pytest.mark.parametrize("then", ["drop", "half"])
    async def test_a_broken_connection(self, then: str) -> None:
        async with FakeApiServer() as server:
            server.next(Fault(then=then))
            with pytest.raises(UnreachableError):
                await self.lines(server, 1)

    async def test_silence(self) -> None:
        async with FakeApiServer() as server, client(server) as c, c.stream(SERVICES, WATCH, 0.01) as stream:
            with pytest.raises(SilentError, match="sent nothing"):
                await stream.lines()
            # The limit may change while the watch stands.
            stream.silence = 20
            server.bookmark()
            assert b"BOOKMARK" in (await stream.lines())[0]

    async def test_a_line_without_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("kubeproxy.sources.client.LONGEST_LINE", 100_000)
        async with FakeApiServer() as server:
            server.store.put({"kind": "Service", "metadata": {"name": "s"}, "spec": {"x": "x" * 1_000_000}})
            with pytest.raises(UnreachableError, match="a line of more than 100000 bytes"):
                await self.lines(server, 1)

    async def test_what_is_left_of_a_chunk_begins_the_next_line(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Many short lines are no long one."""
        monkeypatch.setattr("kubeproxy.sources.client.LONGEST_LINE", 5000)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + (b"x" * 1000 + b"\n") * 100)
            writer.close()

        async with tcp(answer) as url, client(url) as c, c.stream("/", {}, 20) as stream:
            found: list[bytes] = []
            while lines := await stream.lines():
                found += lines
            assert found == [b"x" * 1000] * 100

    async def test_leaving_ends_the_watch_at_the_server(self) -> None:
        async with FakeApiServer() as server, client(server) as c:
            async with c.stream(SERVICES, WATCH, 20):
                assert len(server.transports) == 1
            while server.transports:  # noqa: ASYNC110 the server says nothing when a client leaves
                await asyncio.sleep(0.01)


async def test_an_answer_that_is_too_large_once_decompressed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes of gzip may become gigabytes."""
    monkeypatch.setattr("kubeproxy.sources.client.LARGEST_ANSWER", 10_000_000)
    bomb = gzip.compress(b" " * 100_000_000)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n"
        writer.write(head.encode() + bomb)
        await writer.drain()
        writer.close()

    async with tcp(answer) as url, client(url) as c:
        with pytest.raises(UnreachableError, match="the server's answer is larger than 10000000 bytes"):
            await c.request("GET", "/")
