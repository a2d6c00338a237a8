"""What the process counts reaches who asks the daemon: once, whoever restarts or forgets, at the cost of what changed."""

import contextlib
import socket
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kubeproxy.backends.relay_counts import RelayCounter
from kubeproxy.model.plan import PortId
from kubeproxy.relay import tallies, traffic
from kubeproxy.relay.loop import PollLoop
from kubeproxy.relay.questions import Questions
from kubeproxy.relay.tallies import Tallies, TargetCounts
from kubeproxy.relay.traffic import Traffic
from kubeproxy.relay.values import AskTallies, Decoder, Message, Tallied, Tally, Target, encode
from kubeproxy.relay.worker import Worker
from tests.fakes.carried import FakeConnection
from tests.unit.serve.stage import plan
from tests.unit.test_growth import Operations

NOBODY = FakeConnection()
GROUP = "default/web/TCP"
PORT: PortId = ("default/web", "TCP")
TARGETS: list[Target] = [(f"10.244.1.{i}", 8080) for i in range(4)]


class Way:
    """A process, the daemon and one who asks it."""

    def __init__(self) -> None:
        self.process = Tallies()
        self.open: list[TargetCounts] = []
        self.daemon = Traffic()
        self.counter = RelayCounter(lambda token: self.daemon.since(token))  # noqa: PLW0108 it is replaced
        self.began: Counter[Target] = Counter()
        self.resets: Counter[Target] = Counter()
        self.sent: Counter[Target] = Counter()

    def tell(self, most: int = 2) -> None:
        """The daemon asks the process, which answers in parts."""
        left = self.process.changed
        while left:
            found = self.process.take(min(most, left))
            left -= len(found)
            self.daemon.add(found)

    def connect(self, target: Target) -> None:
        counts = self.process.of(GROUP, target)
        counts.attempt(NOBODY)
        counts.reached(NOBODY)
        counts.moved(10, 100)
        self.open.append(counts)
        self.began[target] += 1
        self.sent[target] += 10

    def refuse(self, target: Target) -> None:
        counts = self.process.of(GROUP, target)
        counts.attempt(NOBODY)
        counts.refused(NOBODY)
        self.resets[target] += 1

    def end(self, number: int) -> None:
        if self.open:
            self.open.pop(number % len(self.open)).ended()

    def restart(self) -> None:
        """The process ends; what it has not said is lost with it."""
        self.tell()
        self.process, self.open = Tallies(), []
        self.daemon.lost()

    def replace(self) -> None:
        """Another relay takes over: it counts from 0."""
        self.tell()
        self.counter.read()
        self.process, self.open, self.daemon = Tallies(), [], Traffic()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["connect", "connect", "refuse", "end", "tell", "read", "restart", "replace"]),
        st.integers(0, 9),
    ),
    max_size=60,
)


@given(STEPS)
def test_who_asks_has_the_counts_of_all_that_happened(steps: list[tuple[str, int]]) -> None:
    way = Way()
    for what, number in steps:
        target = TARGETS[number % len(TARGETS)]
        if what == "connect":
            way.connect(target)
        elif what == "refuse":
            way.refuse(target)
        elif what == "end":
            way.end(number)
        elif what == "tell":
            way.tell(1 + number)
        elif what == "read":
            way.counter.read()
        elif what == "restart":
            way.restart()
        else:
            way.replace()
    way.tell()
    counts = way.counter.read()
    assert counts is not None
    assert {at: n for at, n in counts.get(PORT, {}).items() if n} == dict(way.began)
    found = way.counter.traffic(PORT)
    assert {at: tally.sent for at, tally in found.items() if tally.sent} == dict(way.sent)
    assert {at: tally.resets for at, tally in found.items() if tally.resets} == dict(way.resets)
    assert {at: tally.open for at, tally in found.items() if tally.open} == dict(
        Counter(counts.target for counts in way.open)
    )
    assert not any(tally.waiting for tally in found.values())
    assert len(way.process) == len({counts.target for counts in way.open}), "what has ended is forgotten"


def test_counts_that_a_relay_has_forgotten_begin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "MOST_TOTALS", 2)
    way = Way()
    way.connect(TARGETS[0])  # and stays open
    for target in TARGETS[1:]:
        way.connect(target)
        way.end(-1)
        way.tell()
        way.counter.read()
    assert len(way.daemon.since("").totals) == 2
    for target in TARGETS:
        way.connect(target)
        way.tell()
        way.counter.read()
    assert way.counter.read() == {PORT: dict.fromkeys(TARGETS, 2)}
    assert way.counter.traffic(PORT)[TARGETS[0]].open == 2


def test_a_process_nobody_asks_keeps_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallies, "MOST_TALLIES", 8)
    way = Way()
    way.connect(("10.244.9.9", 80))
    for number in range(100):
        way.refuse((f"10.244.2.{number}", 80))
        assert len(way.process) <= 8
    way.tell()
    assert way.counter.read() is not None
    assert way.counter.traffic(PORT)["10.244.9.9", 80].open == 1


def test_a_service_that_is_gone_is_forgotten() -> None:
    way = Way()
    way.connect(TARGETS[0])
    way.tell()
    way.counter.set(("default", "web"), plan())
    way.counter.read()
    assert way.counter.traffic(PORT)
    way.counter.set(("default", "web"), None)
    assert not way.counter.traffic(PORT)
    assert way.counter.read() == {}


@pytest.mark.parametrize("token", ["", "x", "x.7", "x.", "."])
def test_a_token_of_another_relay_gets_everything(token: str) -> None:
    way = Way()
    way.connect(TARGETS[0])
    way.tell()
    found = way.daemon.since(token)
    assert found.full
    assert len(found.totals) == 1
    again = way.daemon.since(found.token)
    assert (again.full, again.totals) == (False, ())
    assert way.daemon.since(found.token.partition(".")[0] + ".x").full


def cost(number: int) -> int:
    """The operations from three connections to the counts of who asks, if so many targets are known."""
    way = Way()
    for i in range(number):
        way.connect((f"10.{i >> 8}.{i & 255}.1", 80))
    way.tell(most=1000)
    way.counter.read()
    with Operations() as operations:
        for counts in way.open[:3]:
            counts.moved(1, 1)
        way.tell(most=1000)
        way.counter.read()
    return operations.count


def test_the_cost_follows_what_changed_and_not_how_many_are_known() -> None:
    assert cost(2000) == cost(20)


class Reading:
    """The worker of a process that has counted one connection to each of some targets, and the daemon."""

    def __init__(self, targets: int) -> None:
        self._socket, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._decoder = Decoder()
        worker = Worker(self.theirs, limit=100)
        self.loop: PollLoop = worker._loop
        self.tallies = worker._shared.tallies
        self.questions = Questions()
        for i in range(targets):
            self.tallies.of(GROUP, (f"10.1.{i >> 8}.{i & 255}", 80)).began()

    def ask(self) -> int:
        number = self.questions.ask(AskTallies)

        def take(message: Message, _: socket.socket | None) -> bool:
            self._socket.send(encode(message))
            return True

        assert self.questions.send(take)
        return number

    def read(self) -> int:
        """The daemon reads what there is; returns the number of parts."""
        try:
            parts = list(self._decoder.feed(self._socket.recv(1 << 20)))
        except BlockingIOError:
            return 0
        for part in parts:
            assert isinstance(part, Tallied)
            self.questions.take(part)
        return len(parts)

    def connections(self) -> int:
        return sum(each.tally.connections for each in self.questions.traffic.since("").totals)

    def close(self) -> None:
        self._socket.close()
        self.theirs.close()


def test_answers_come_in_parts_and_a_busy_process_ends_them() -> None:
    """However much is counted meanwhile; a question during an answer is answered by what follows."""
    with contextlib.closing(Reading(1000)) as reading:
        busy = reading.tallies.of(GROUP, ("10.1.0.0", 80))
        number, parts, again = reading.ask(), 0, 0
        while number in reading.questions or again in reading.questions:
            reading.loop.turn(0)
            parts += reading.read()
            if parts > 2 and not again:
                again = reading.ask()
            busy.moved(1, 1)
            assert parts < 40
        assert parts >= 1000 / 128
        assert reading.connections() == 1000


def test_parts_that_the_daemon_does_not_read_are_sent_later() -> None:
    with contextlib.closing(Reading(3000)) as reading:
        reading.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 30_000)
        number = reading.ask()
        for _ in range(50):
            reading.loop.turn(0)
        assert reading.tallies.changed, "the socket is full"
        while number in reading.questions:
            reading.loop.turn(0.01)
            reading.read()
        assert reading.connections() == 3000


def test_totals_add_up() -> None:
    one = Tally(GROUP, TARGETS[0], 1, 2, 3, 4, 5, 6, 7)
    assert traffic.plus(one, one) == replace(
        one, connections=2, sent=8, received=10, unanswered=12, resets=14
    )
