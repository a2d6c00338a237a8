"""The lab's clients: who is reached through each front address, from each client, in the oracle's words.

All tries of all clients run in one loop over non-blocking sockets, each opened in its client's namespace; while many wait
for an answer that should come, no more are made. A front is asked more often than it has backends, but a rarely chosen one
may still be missed, and a busy machine may lose a packet or take a neighbour for gone: what disagrees with the expectation
is asked again before it counts. A backend that must not be reached counts at once. With session affinity the fronts of a
client are asked one after the other, the first try of each alone, because every answer decides about the next.

Silence is distinguished from slowness by the rest: as long as an expected answer is missing we wait (long enough for a
retransmitted SYN); once all are there and nothing more arrives for a while, what is silent is "no answer".
"""

import contextlib
import errno
import resource
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from tests.lab.topology import BEHIND_WAN, NODE_ADDRESSES, PODS, Lab

Outcome = str | list[str]
Outcomes = dict[str, dict[str, Outcome]]

CLIENTS = {"pod": "client", "endpoint": "ep11", "node": "node", "remote-pod": "rpod", "outside": "out"}
CLIENT_ADDRESSES = {
    "pod": PODS["client"],
    "endpoint": PODS["ep11"],
    "node": NODE_ADDRESSES,
    "remote-pod": BEHIND_WAN["rpod"][0],
    "outside": BEHIND_WAN["out"][0],
}
ON_NODE = {"pod", "endpoint", "node"}
"""The clients whose processes the lab's node has."""

NO_ANSWER = "no answer"
SOME_LOST = f"and {NO_ANSWER}"
_LOST = {NO_ANSWER, "EHOSTUNREACH"}  # no rule says the latter: a neighbour did not answer in time
TRIES, TRIES_PER_BACKEND = 24, 16
ROUNDS = 3
IN_FLIGHT = 256  # more at once are a test of the machine, and not of the rules
LIMIT = 2.5  # seconds; a lost SYN is sent again after 1 s
POLL, QUIET_POLLS = 0.05, 6  # seconds, and how many silent ones in a row mean that nothing more will come
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST, leave no TIME_WAIT behind


@dataclass(eq=False)
class _Front:
    client: str
    key: str
    expected: Outcome
    seen: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    pending: int = 0

    def __post_init__(self) -> None:
        target, _, protocol = self.key.partition(" ")[2].partition("/")
        host, _, port = target.rpartition(":")
        self.address = (host, int(port))
        self.family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        self.affinity = isinstance(self.expected, list) and self.expected[0].startswith("*")
        self.answers = isinstance(self.expected, list) and SOME_LOST not in self.expected

    def outcome(self) -> Outcome:
        errors = self.errors + Counter({NO_ANSWER: self.pending})
        if not self.seen and len(errors) == 1:
            return next(iter(errors))
        reached = sorted(self.seen)
        if self.affinity and len(reached) == 1:
            reached = [self._kept(reached[0].partition("<-")[2])]
        return sorted([*reached, *(f"and {error}" for error in errors)])

    def _kept(self, source: str) -> str:
        """The expectation about the source if one endpoint, whichever, served them all."""
        if self.client in {"endpoint", "node"}:
            return "*"
        if source in CLIENT_ADDRESSES[self.client]:
            return "*<-client"
        return "*<-node" if source in NODE_ADDRESSES else f"*<-{source}"

    def settled(self) -> bool:
        return self.outcome() == self.expected

    def hopeless(self) -> bool:
        """Something came that must not: a backend, a rejection. Asking again would not undo it."""
        allowed = {self.expected} if isinstance(self.expected, str) else set(self.expected)
        came = set() if self.affinity else set(self.seen)
        for error in self.errors.keys() - _LOST:
            came.add(error if isinstance(self.expected, str) else f"and {error}")
        return not came <= allowed

    def again(self) -> None:
        """Forgets what the next round may correct: lost packets, and with affinity the endpoint."""
        for error in _LOST:
            self.errors.pop(error, None)
        if self.affinity:
            self.seen.clear()


class _Prober:
    def __init__(self, lab: Lab, here: Callable[[], contextlib.AbstractContextManager[object]]) -> None:
        self.lab = lab
        self.here = here
        self.poller = select.epoll()
        self.open: dict[int, tuple[socket.socket, _Front]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()
        self.poller.close()

    def run(self, fronts: Mapping[_Front, int]) -> None:
        """Makes the given number of tries of each front and collects what comes."""
        for client, role in CLIENTS.items():
            with self.lab.inside(role), self.here() if client in ON_NODE else contextlib.nullcontext():
                for front, tries in fronts.items():
                    if front.client == client:
                        for number in range(tries):
                            self._start(front)
                            if number % 16 == 15:
                                self._catch_up()
        quiet = 0
        deadline = time.monotonic() + LIMIT
        while self.open and time.monotonic() < deadline:
            quiet = 0 if self._collect(POLL) else quiet + 1
            if quiet >= QUIET_POLLS and all(front.settled() for front in fronts):
                break
        self._close()

    def _close(self) -> None:
        for sock, front in self.open.values():
            front.pending -= 1
            front.errors[NO_ANSWER] += 1
            sock.close()
        self.open.clear()

    def _catch_up(self) -> None:
        """Collects what has come; while too many wait, also what comes soon."""
        while self._collect(POLL if self._is_crowded() else 0):
            pass

    def _is_crowded(self) -> bool:
        return sum(front.answers for _, front in self.open.values()) > IN_FLIGHT

    def _start(self, front: _Front) -> None:
        sock = socket.socket(front.family, front.kind | socket.SOCK_NONBLOCK)
        try:
            if front.kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                with contextlib.suppress(BlockingIOError):
                    sock.connect(front.address)
            else:
                sock.connect(front.address)
                sock.send(b"?")
        except OSError as error:
            front.errors[errno.errorcode[error.errno or 0]] += 1
            sock.close()
            return
        front.pending += 1
        self.open[sock.fileno()] = sock, front
        self.poller.register(sock, select.EPOLLIN)

    def _collect(self, timeout: float) -> int:
        events = self.poller.poll(timeout)
        for descriptor, _ in events:
            sock, front = self.open.pop(descriptor)
            front.pending -= 1
            with sock:
                # A rejection that arrives while connect() runs is reported by SO_ERROR only.
                number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number:
                    front.errors[errno.errorcode[number]] += 1
                else:
                    backend, source = sock.recv(256).decode().split()
                    front.seen[f"{backend}<-{source}"] += 1
        return len(events)


def outcomes(
    lab: Lab,
    expected: Mapping[str, Mapping[str, Outcome]],
    endpoints: int,
    here: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> Outcomes:
    """Measures what each client gets at each front address.

    Args:
        lab: a lab whose node has the rules to be measured.
        expected: client -> front address -> outcome, as in the oracle's JSON. Its keys say what to try, its outcomes
            what is asked again before it counts, and which fronts have session affinity.
        endpoints: how many endpoints the case has. 16 tries are made for each backend of a front, and at least 24; where
            some are silent it is not known how many there are, and 16 are made for each endpoint.
        here: where this process is when it opens the sockets of clients on the lab's node.

    Returns:
        What was measured, in the same shape: equal to `expected` if the rules are right.
    """
    fronts = [
        _Front(client, key, outcome) for client, keys in expected.items() for key, outcome in keys.items()
    ]
    with _many_descriptors(), _Prober(lab, here) as prober:
        todo = fronts
        for _ in range(ROUNDS):
            for front in todo:
                front.again()
            _one_round(prober, todo, endpoints)
            todo = [front for front in todo if not front.settled() and not front.hopeless()]
            if not todo:
                break
    result: Outcomes = {client: {} for client in expected}
    for front in fronts:
        result[front.client][front.key] = front.outcome()
    return result


def _one_round(prober: _Prober, fronts: Sequence[_Front], endpoints: int) -> None:
    prober.run({front: _tries(front, endpoints) for front in fronts if not front.affinity})
    queues = {client: [f for f in fronts if f.affinity and f.client == client] for client in CLIENTS}
    for number in range(max(map(len, queues.values()))):
        turn = [queue[number] for queue in queues.values() if number < len(queue)]
        prober.run(dict.fromkeys(turn, 1))
        prober.run({front: _tries(front, endpoints) - 1 for front in turn})


def _tries(front: _Front, endpoints: int) -> int:
    if isinstance(front.expected, str):
        return TRIES
    return max(TRIES, TRIES_PER_BACKEND * (len(front.expected) if front.answers else endpoints))


def differences(
    expected: Mapping[str, Mapping[str, Outcome]], measured: Mapping[str, Mapping[str, Outcome]]
) -> str:
    """What was measured otherwise than expected, for people: one paragraph a front, "" if nothing."""

    def text(outcome: Outcome | None) -> str:
        return ", ".join(outcome) if isinstance(outcome, list) else str(outcome)

    return "\n".join(
        f"{client} -> {key}\n  expected: {text(outcome)}\n  measured: {text(measured[client].get(key))}"
        for client, keys in expected.items()
        for key, outcome in keys.items()
        if measured[client].get(key) != outcome
    )


@contextlib.contextmanager
def _many_descriptors() -> Iterator[None]:
    """Silent tries are kept open together, thousands of them: more than the usual soft limit."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
