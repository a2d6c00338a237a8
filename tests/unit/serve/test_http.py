"""The HTTP server, spoken to byte by byte."""

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.serve import http
from kubeproxy.serve.http import Door
from kubeproxy.serve.listen import bind
from kubeproxy.serve.message import (
    LONGEST_BODY,
    LONGEST_HEAD,
    BadRequestError,
    HTTPRequest,
    HTTPResponse,
    parse,
    router,
    text,
)
from tests.machines import MACHINE

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
HOST = b"Host: x\r\n\r\n"


class Rig:
    """A server and its clients.

    Attributes:
        gate: /slow waits for it.
        cancelled: /slow was given up.
    """

    def __init__(self, limit: int = 4) -> None:
        self.door = Door(limit)
        self.gate = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.working = 0
        self.port = 0
        self._writers: list[asyncio.StreamWriter] = []
        self.routes = router(
            {
                "GET /": lambda r: text(f"{r.method} {r.query}"),
                "GET /slow": self._slow,
                "GET /big": lambda _: HTTPResponse(bytes(8 << 20)),
                "GET /bad": self._bad,
                "PUT /put": lambda r: text(r.body.decode()),
                "GET /both": lambda _: text("get"),
                "PUT /both": lambda _: text("put"),
            }
        )

    async def _slow(self, _: HTTPRequest) -> HTTPResponse:
        self.working += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return text("slow")

    def _bad(self, _: HTTPRequest) -> HTTPResponse:
        raise ZeroDivisionError("in a handler")

    async def connect(self) -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(writer)
        return reader, writer

    async def leave(self) -> None:
        """Ends all connections."""
        for writer in self._writers:
            await close(writer)

    async def say(self, data: bytes) -> bytes:
        """All that comes back on a new connection after this data and its end."""
        reader, writer = await self.connect()
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(20):
            answer = await reader.read()
        await close(writer)
        return answer

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def ended(reader: asyncio.StreamReader) -> None:
    """The connection was ended without a word."""
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of the next answer."""
    async with asyncio.timeout(20):
        head = await reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"Content-Length: (\d+)", head)
        assert found
        return int(head.split(b" ")[1]), await reader.readexactly(int(found[1]))


@contextlib.asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[Rig]:
    sock = bind(MACHINE, "127.0.0.1", 0)
    rig.port = sock.getsockname()[1]
    listener = await rig.door.open(rig.routes, sock)
    try:
        yield rig
    finally:
        listener.close()
        rig.gate.set()
        await rig.leave()
        await rig.until(lambda: not len(rig.door))


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with running(Rig()) as made:
        yield made


async def test_an_answer_is_whole(rig: Rig) -> None:
    reader, writer = await rig.connect()
    writer.write(b"GET /?a=b HTTP/1.1\r\n" + HOST)
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert head.startswith("HTTP/1.1 200 OK\r\nDate: ")
    assert "Content-Type: text/plain; charset=utf-8\r\nContent-Length: 7\r\n" in head
    assert "X-Content-Type-Options: nosniff" in head
    assert "Connection" not in head
    assert await reader.readexactly(7) == b"GET a=b"


async def test_a_connection_is_kept_and_requests_may_come_together_or_byte_by_byte(rig: Rig) -> None:
    reader, writer = await rig.connect()
    writer.write(3 * (b"GET / HTTP/1.1\r\n" + HOST))
    for _ in range(3):
        assert await answer(reader) == (200, b"GET ")
    for byte in b"PUT /put HTTP/1.1\r\nContent-Length: 3\r\n" + HOST + b"abc":
        writer.write(bytes([byte]))
        await asyncio.sleep(0)
    assert await answer(reader) == (200, b"abc")


async def test_more_at_once_than_the_buffer_holds(rig: Rig) -> None:
    reader, writer = await rig.connect()
    writer.write(5000 * (b"GET / HTTP/1.1\r\n" + HOST))
    for _ in range(5000):
        assert await answer(reader) == (200, b"GET ")


async def test_head_has_no_body(rig: Rig) -> None:
    said = await rig.say(b"HEAD / HTTP/1.1\r\n" + HOST)
    assert b"Content-Length: 5" in said
    assert said.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"GET / HTTP/1.1\r\nConnection: close\r\n" + HOST,
    ],
)
async def test_the_last_request_ends_the_connection(rig: Rig, request_: bytes) -> None:
    reader, writer = await rig.connect()
    writer.write(request_)
    async with asyncio.timeout(20):
        said = await reader.read()
    assert b"\r\nConnection: close\r\n" in said
    assert said.endswith(b"GET ")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /none HTTP/1.1\r\n" + HOST, 404),
        (b"GET /put HTTP/1.1\r\n" + HOST, 405),
        (b"GET * HTTP/1.1\r\n" + HOST, 400),
        (b"GET ftp://x/ HTTP/1.1\r\n" + HOST, 400),
        (b"CONNECT x:80 HTTP/1.1\r\n" + HOST, 400),
        (b"\n\nGET / HTTP/1.0\n\n", 400),
        (b"GET /bad HTTP/1.1\r\n" + HOST, 500),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n" + HOST, 400),
        (b"GET x HTTP/1.1\r\n" + HOST, 400),
        (b"GET / HTTP/1.1\r\n folded\r\n" + HOST, 400),
        (b"GET / HTTP/1.1\r\nNo colon\r\n" + HOST, 400),
        (b"GET / HTTP/1.1\r\nName : x\r\n" + HOST, 400),
        (b"GET / HTTP/1.1\r\nHost: y\r\n" + HOST, 400),
        (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n" + HOST, 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 1_0\r\n" + HOST, 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"PUT /put HTTP/1.1\r\nContent-Length: %d\r\n" % (LONGEST_BODY + 1) + HOST, 413),
        (b"PUT /put HTTP/1.1\r\nContent-Length: " + 4000 * b"9" + b"\r\n" + HOST, 413),
        (b"GET / HTTP/1.1\r\nA: " + LONGEST_HEAD * b"x", 431),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HOST, 501),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ],
)
async def test_what_is_refused(rig: Rig, caplog: pytest.LogCaptureFixture, data: bytes, status: int) -> None:
    said = await rig.say(data)
    assert said.startswith(b"HTTP/1.1 %d " % status)
    assert ("ZeroDivisionError" in caplog.text) is (status == 500)


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (b"OPTIONS /?a HTTP/1.0\r\n\r\n", b"OPTIONS a"),
        (b"PUT / HTTP/1.1\r\nContent-Length: 3\r\n" + HOST + b"abc", b"PUT "),
        (b"anything / HTTP/1.1\r\n" + HOST, b"anything "),
        (b"OPTIONS * HTTP/1.1\r\n" + HOST, b""),
        (b"GET / HTTP/1.0\n\n", b"GET "),
        (b"GET / HTTP/1.1\nHost: x\r\n\nGET / HTTP/1.1\r\nHost: x\n\r\n", b"GET "),
        (b"\nGET / HTTP/1.0\n\n", b"GET "),
        (b"GET http://x:1/?a=b HTTP/1.1\r\n" + HOST, b"GET a=b"),
        (b"GET HTTP://x HTTP/1.1\r\n" + HOST, b"GET "),
        (b"GET http://x?a HTTP/1.1\r\n" + HOST, b"GET a"),
    ],
)
async def test_what_health_checks_send_is_answered(rig: Rig, data: bytes, body: bytes) -> None:
    """As by Go's server, and so by the reference: the default of HAProxy is OPTIONS."""
    said = await rig.say(data)
    assert said.startswith(b"HTTP/1.1 200 OK\r\n")
    assert said.endswith(b"\r\n\r\n" + body)


async def test_a_page_that_has_several_methods(rig: Rig) -> None:
    assert (await rig.say(b"PUT /both HTTP/1.1\r\n" + HOST)).endswith(b"put")
    assert (await rig.say(b"POST /both HTTP/1.1\r\n" + HOST)).endswith(b"get")


async def test_nonsense_ends_the_connection(rig: Rig) -> None:
    reader, writer = await rig.connect()
    writer.write(b"nonsense\r\n\r\n" + b"GET / HTTP/1.1\r\n" + HOST)
    async with asyncio.timeout(20):
        assert (await reader.read()).count(b"HTTP/1.1") == 1


async def test_a_method_that_is_not_for_a_page_hears_which_are(rig: Rig) -> None:
    assert b"\r\nAllow: PUT\r\n" in await rig.say(b"GET /put HTTP/1.1\r\n" + HOST)


async def test_half_a_request_is_no_request(rig: Rig) -> None:
    assert await rig.say(b"GET / HTTP/1.1\r\nHost") == b""


async def test_a_slow_answer_holds_up_nobody_else(rig: Rig) -> None:
    reader, writer = await rig.connect()
    writer.write(b"GET /slow HTTP/1.1\r\n" + HOST + b"GET / HTTP/1.1\r\n" + HOST)
    await rig.until(lambda: rig.working)
    assert (await rig.say(b"GET / HTTP/1.1\r\n" + HOST)).endswith(b"GET ")
    rig.gate.set()
    assert await answer(reader) == (200, b"slow")
    assert await answer(reader) == (200, b"GET ")


async def test_work_for_a_client_that_left_is_given_up(rig: Rig) -> None:
    _, writer = await rig.connect()
    writer.write(b"GET /slow HTTP/1.1\r\n" + HOST)
    await rig.until(lambda: rig.working)
    client = writer.get_extra_info("socket")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
    writer.transport.abort()
    await rig.until(rig.cancelled.is_set)


async def test_who_waited_longest_makes_room() -> None:
    async with running(Rig(limit=4)) as rig:
        waiting = []
        for number in range(4):
            waiting.append(await rig.connect())
            await rig.until(lambda n=number: len(rig.door) == n + 1)  # type: ignore[misc]
        waiting[0][1].write(b"GET / HTTP/1.1\r\n" + HOST)
        assert await answer(waiting[0][0]) == (200, b"GET ")
        assert (await rig.say(b"GET / HTTP/1.1\r\n" + HOST)).endswith(b"GET ")
        assert len(rig.door) <= 4
        await ended(waiting[1][0])
        waiting[0][1].write(b"GET / HTTP/1.1\r\n" + HOST)
        assert await answer(waiting[0][0]) == (200, b"GET ")


async def test_whose_answer_is_being_made_need_not_make_room() -> None:
    async with running(Rig(limit=2)) as rig:
        busy = [await rig.connect() for _ in range(2)]
        for _, writer in busy:
            writer.write(b"GET /slow HTTP/1.1\r\n" + HOST)
        await rig.until(lambda: rig.working == 2)
        await ended((await rig.connect())[0])
        rig.gate.set()
        for reader, _ in busy:
            assert await answer(reader) == (200, b"slow")


async def test_time_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_SECONDS", 0.05)
    monkeypatch.setattr(http, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(http, "_SWEEP_SECONDS", 0.01)
    async with running(Rig()) as rig:
        silent, half, idle, deaf = [await rig.connect() for _ in range(4)]
        half[1].write(b"GET / HT")
        idle[1].write(b"GET / HTTP/1.1\r\n" + HOST)
        assert await answer(idle[0]) == (200, b"GET ")
        deaf[1].write(b"GET /big HTTP/1.1\r\n" + HOST)
        for reader, _ in (silent, half, idle):
            await ended(reader)
        await rig.until(lambda: not len(rig.door))
        await close(deaf[1])


async def test_an_answer_that_takes_long_to_make_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_SECONDS", 0.02)
    monkeypatch.setattr(http, "_SWEEP_SECONDS", 0.01)
    async with running(Rig()) as rig:
        reader, writer = await rig.connect()
        writer.write(b"GET /slow HTTP/1.1\r\n" + HOST)
        await rig.until(lambda: rig.working)
        await asyncio.sleep(0.1)
        rig.gate.set()
        assert await answer(reader) == (200, b"slow")


async def test_a_closed_port_ends_its_connections_and_no_others() -> None:
    async with running(Rig()) as rig:
        sock = bind(MACHINE, "127.0.0.1", 0)
        port = sock.getsockname()[1]
        other = await rig.door.open(rig.routes, sock)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        stays = await rig.connect()
        await rig.until(lambda: len(rig.door) == 2)
        other.close()
        assert await reader.read() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        stays[1].write(b"GET / HTTP/1.1\r\n" + HOST)
        assert await answer(stays[0]) == (200, b"GET ")
        await close(writer)
        await close(stays[1])


async def test_a_flood_leaves_nothing_behind() -> None:
    async with running(Rig(limit=8)) as rig:
        senders: list[Awaitable[object]] = [
            rig.say(b"GET / HTTP/1.1\r\nConnection: close\r\n" + HOST) for _ in range(200)
        ]
        said = await asyncio.gather(*senders, return_exceptions=True)
        assert any(isinstance(s, bytes) and s.endswith(b"GET ") for s in said)
        await rig.until(lambda: not len(rig.door))


class TestAnything:
    @given(st.binary(max_size=200))
    def test_bytes_are_refused_or_awaited(self, data: bytes) -> None:
        buffer = bytearray(data)
        with contextlib.suppress(BadRequestError):
            request = parse(buffer)
            assert request is not None or buffer == data

    @given(
        st.lists(
            st.sampled_from([b"GET", b"PUT", b" ", b"/", b"HTTP/1.1", b"\r\n", b":", b"Host", b"\0", b"9"])
        )
    )
    def test_pieces_of_http(self, pieces: list[bytes]) -> None:
        with contextlib.suppress(BadRequestError):
            parse(bytearray(b"".join(pieces)))


def test_an_address_of_all_is_that_of_both_families() -> None:
    with bind(MACHINE, "0.0.0.0", 0) as sock:
        sock.listen()
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, sock.getsockname()[1])).close()


@pytest.mark.parametrize(("address", "other"), [("0.0.0.0", "::1"), ("::", "127.0.0.1")])
def test_unless_a_single_one_is_meant(address: str, other: str) -> None:
    with bind(MACHINE, address, 0, single=True) as sock:
        sock.listen()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((other, sock.getsockname()[1]))
