"""Connections over socket pairs: what goes in comes out, in order, whatever is in between."""

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeproxy.relay import pipes
from kubeproxy.relay.connection import DESCRIPTORS, Connection
from kubeproxy.relay.loop import OUT, PollLoop
from kubeproxy.relay.shared import Shared

PATTERN = bytes(range(251)) * 8000


class Line:
    """A connection with both its ends."""

    def __init__(self, limit: int = 100) -> None:
        self.said: list[str] = []
        self.loop = PollLoop()
        self.shared = Shared(self.loop, lambda _, text: self.said.append(text), limit=limit)
        self.shared.slots.reserve(DESCRIPTORS)
        self.client, near = socket.socketpair()
        self.server, far = socket.socketpair()
        for sock in (self.client, near, self.server, far):
            sock.setblocking(False)
        self.loop.add(far.fileno(), OUT, self)  # as it is after connecting
        self.counts = self.shared.tallies.of("default/web:http/TCP", ("10.244.1.1", 80))
        self.counts.began()
        Connection(self.shared, near, far, self.counts)

    def ready(self, descriptor: int, events: int) -> None:
        raise AssertionError("the connection has its own handler")

    def turn(self, times: int = 20) -> None:
        for _ in range(times):
            self.loop.turn(0)

    def send(self, sock: socket.socket, data: bytes) -> int:
        """Sends until nothing is taken any more, however often the relay turns; returns how much was taken."""
        sent = stuck = 0
        while sent < len(data) and stuck < 3:
            stuck += 1
            with contextlib.suppress(BlockingIOError):
                sent += sock.send(data[sent:])
                stuck = 0
            self.turn()
        return sent


@pytest.fixture
def line() -> Iterator[Line]:
    with contextlib.closing(Closing()) as made:
        yield made()


class Closing:
    """Makes lines and closes their ends."""

    def __init__(self) -> None:
        self._lines: list[Line] = []

    def __call__(self, limit: int = 100) -> Line:
        self._lines.append(Line(limit))
        return self._lines[-1]

    def close(self) -> None:
        for line in self._lines:
            line.client.close()
            line.server.close()
            for handler in line.loop.handlers:
                assert isinstance(handler, Connection)
                handler.reset()
            line.loop.turn(0)
            line.shared.pool.shrink()


def received(sock: socket.socket, count: int) -> bytes:
    with contextlib.suppress(BlockingIOError):
        return sock.recv(count)
    return b"nothing"


@settings(max_examples=30, deadline=None)
@given(
    limit=st.sampled_from([100, DESCRIPTORS]),
    steps=st.lists(
        st.tuples(st.sampled_from(["client", "server"]), st.booleans(), st.integers(1, 300_000)), max_size=25
    ),
)
def test_bytes_come_in_order_both_ways_at_any_pace(limit: int, steps: list[tuple[str, bool, int]]) -> None:
    """With pipes, and where there is no descriptor for one."""
    with contextlib.closing(Closing()) as made:
        line = made(limit)
        ends = {"client": line.client, "server": line.server}
        other = {"client": "server", "server": "client"}
        sent, taken = {"client": 0, "server": 0}, {"client": 0, "server": 0}

        def take(who: str, count: int) -> bool:
            data = received(ends[who], count)
            if data == b"nothing":
                return False
            start = taken[who]
            assert data == PATTERN[start : start + len(data)]
            taken[who] += len(data)
            return True

        for who, sends, count in steps:
            if sends:
                with contextlib.suppress(BlockingIOError):
                    sent[who] += ends[who].send(PATTERN[sent[who] : sent[who] + count])
            else:
                take(who, count)
            line.turn(3)
        for who in ends:
            while take(who, 1 << 20) or taken[who] < sent[other[who]]:
                line.turn(3)
        assert taken == {"client": sent["server"], "server": sent["client"]}


def test_what_is_not_read_is_held_in_one_pipe_and_the_sender_waits(line: Line) -> None:
    taken = line.send(line.client, PATTERN * 4)
    assert taken < len(PATTERN * 4)
    before = taken
    assert line.send(line.client, PATTERN) == 0
    rest = b""
    while len(rest) < before:
        data = received(line.server, 1 << 20)
        rest += b"" if data == b"nothing" else data
        line.turn()
    assert rest == (PATTERN * 4)[:before]
    assert line.send(line.client, b"on we go") == 8


def test_a_silent_connection_has_no_pipe(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.send(line.client, b"hello")
    assert received(line.server, 100) == b"hello"
    line.shared.pool.shrink()
    assert line.shared.slots.take(100 - DESCRIPTORS)
    assert not line.shared.slots.take(1)


@pytest.mark.parametrize("first", ["client", "server"])
def test_each_direction_ends_by_itself(line: Line, first: str) -> None:
    one, two = (line.client, line.server) if first == "client" else (line.server, line.client)
    line.send(one, b"last words")
    one.shutdown(socket.SHUT_WR)
    line.turn()
    assert received(two, 100) == b"last words"
    assert received(two, 100) == b""
    line.send(two, b"not mine")
    assert received(one, 100) == b"not mine"
    two.shutdown(socket.SHUT_WR)
    line.turn()
    assert received(one, 100) == b""
    assert line.loop.handlers == set()
    line.shared.pool.shrink()
    assert line.shared.slots.take(100)


def test_the_end_is_told_after_all_that_was_said_before(line: Line) -> None:
    taken = line.send(line.client, PATTERN)
    line.client.shutdown(socket.SHUT_WR)
    line.turn()
    got = b""
    while (data := received(line.server, 1 << 20)) != b"":
        got += b"" if data == b"nothing" else data
        line.turn()
    assert got == PATTERN[:taken]


def test_a_side_that_is_gone_while_the_other_does_not_read_costs_no_turns(line: Line) -> None:
    """Both directions of the client are closed, and bytes of it are on their way: the kernel tells that over and over."""
    line.send(line.client, PATTERN)
    line.server.shutdown(socket.SHUT_WR)
    line.client.shutdown(socket.SHUT_WR)
    line.turn()
    handled = count_calls(line)
    line.turn(50)
    assert handled() <= 2


def count_calls(line: Line) -> Callable[[], int]:
    """Counts what its handler is called for from now on."""
    (handler,) = line.loop.handlers
    calls = 0

    class Counting:
        def ready(self, descriptor: int, events: int) -> None:
            nonlocal calls
            calls += 1
            handler.ready(descriptor, events)

    counting = Counting()
    for descriptor in list(line.loop._handlers):
        line.loop._handlers[descriptor] = counting
    line_handlers = line.loop._handlers

    def counted() -> int:
        for descriptor in list(line_handlers):
            line_handlers[descriptor] = handler
        return calls

    return counted


def test_a_copy_is_a_pipe_without_descriptors() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for kind in (pipes.Pipe, pipes.Copy):
            pipe = kind()
            ours.send(b"abc")
            assert pipe.fill(theirs.fileno()) == pipe.held == 3
            pipe.drain(theirs.fileno())
            assert pipe.held == 0
            assert ours.recv(10) == b"abc"
            if isinstance(pipe, pipes.Pipe):
                pipe.close()
