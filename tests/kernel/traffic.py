"""Clients that never stop: new connections all the time, and some that stay open and talk.

They run in threads of their own, each inside its namespace. A connection has failed when it was refused, reset or not
answered within five seconds, longer than a lost SYN needs to be sent again; an emulated machine takes several times that.
"""

import contextlib
import datetime as dt
import itertools
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from kubeproxy.api import types
from kubeproxy.relay.connection import will_reset
from tests.fakes.cluster import endpoints
from tests.lab import cases, netns
from tests.lab.probe import CLIENTS, SOME_LOST
from tests.lab.topology import LOCAL, NODE_NAME, Lab
from tests.vm.machine import inside

LIMIT = 40.0 if inside() else 5.0
TALK_PORT = 7777

Front = tuple[str, str, int]
"""Client (a role of the lab), address, port."""


def answered(mode: str, case: str) -> list[Front]:
    """Every front of a case where each TCP connection is answered in a mode, for each client."""
    return [
        (CLIENTS[client], address, int(port))
        for client, outcomes in cases.expected(mode, case).items()
        for front, outcome in outcomes.items()
        if isinstance(outcome, list) and SOME_LOST not in outcome and front.endswith("/tcp")
        for address, _, port in [front.split(" ")[1].removesuffix("/tcp").rpartition(":")]
    ]


def asking(*addresses: str, service: str = "web") -> types.EndpointSlice:
    """Who answers a Service's port "ask", for `Traffic`."""
    return endpoints(service, *addresses, port_name="ask", name=f"{service}-ask", local=LOCAL, node=NODE_NAME)


def talking(*addresses: str) -> types.EndpointSlice:
    """Who listens on port "talk" of the Service web, for `Talk`."""
    return endpoints(
        "web", *addresses, port=TALK_PORT, port_name="talk", name="web-talk", local=LOCAL, node=NODE_NAME
    )


class Traffic:
    """A stream of new connections to some fronts, for a `with` block.

    Attributes:
        failures: what went wrong, and where.
        answers: who answered how often at each front.
    """

    def __init__(self, lab: Lab, fronts: Sequence[Front]) -> None:
        self._lab = lab
        self._fronts = fronts
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.failures: list[str] = []
        self.answers: dict[Front, Counter[str]] = {front: Counter() for front in fronts}

    def __enter__(self) -> Self:
        for role in sorted({role for role, _, _ in self._fronts}):
            thread = threading.Thread(target=self._run, args=(role,))
            thread.start()
            self._threads.append(thread)
        self.wait(3)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            with contextlib.suppress(AssertionError):
                self.wait(3)
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if kind is None:
            assert not self.failures, "\n".join(self.failures)

    def wait(self, rounds: int = 5) -> None:
        """Until each front has been reached so many times more."""
        wanted = {front: sum(seen.values()) + rounds for front, seen in self.answers.items()}
        deadline = time.monotonic() + 60
        while any(sum(self.answers[front].values()) < count for front, count in wanted.items()):
            assert not self.failures, "\n".join(self.failures)
            assert time.monotonic() < deadline, f"not reached: {self.answers}"
            time.sleep(0.005)

    def _run(self, role: str) -> None:
        mine = [front for front in self._fronts if front[0] == role]
        with self._lab.inside(role):
            for front in itertools.cycle(mine):
                if self._stop.is_set():
                    return
                self._connect(front)

    def _connect(self, front: Front) -> None:
        _, address, port = front
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(LIMIT)
            try:
                sock.connect((address, port))
                said = sock.recv(256).decode().split(" ")[0]
                if not said:
                    raise ConnectionError("closed without an answer")
            except OSError as e:
                self.failures.append(f"{dt.datetime.now():%H:%M:%S.%f} {front}: {e!r}")
            else:
                self.answers[front][said] += 1


class Talk:
    """Connections that stay open: `say` says something on each and demands the same back."""

    def __init__(self, lab: Lab, fronts: Sequence[Front]) -> None:
        self._connections: list[tuple[Front, socket.socket]] = []
        for front in fronts:
            role, address, port = front
            with lab.inside(role):
                sock = socket.socket(
                    socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM
                )
            sock.settimeout(LIMIT)
            sock.connect((address, port))
            self._connections.append((front, sock))
        self._words = itertools.count()

    def say(self) -> None:
        """Every connection still works."""
        for front, sock in self._connections:
            word = f"{next(self._words):08}".encode()
            sock.sendall(word)
            assert sock.recv(8, socket.MSG_WAITALL) == word, front

    def reset(self) -> None:
        """Hangs up at once: nobody waits for what may still come."""
        for _, sock in self._connections:
            will_reset(sock)
        self.close()

    def close(self) -> None:
        """Hangs up."""
        for _, sock in self._connections:
            sock.close()


@contextlib.contextmanager
def talkers(lab: Lab, *roles: str) -> Iterator[None]:
    """Servers on `TALK_PORT` in some namespaces that say whatever is said to them."""
    listeners = []
    for role in roles:
        with netns.inside(lab.name(role)):
            for family in (socket.AF_INET, socket.AF_INET6):
                listener = socket.socket(family, socket.SOCK_STREAM)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(("", TALK_PORT))
                listener.listen(100)
                listeners.append(listener)
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=_echo, args=(listeners, theirs))
    thread.start()
    try:
        yield
    finally:
        ours.close()
        thread.join()


def _echo(listeners: Sequence[socket.socket], end: socket.socket) -> None:
    connections: list[socket.socket] = []
    with contextlib.ExitStack() as stack:
        for sock in (*listeners, end):
            stack.enter_context(sock)
        while True:
            ready, _, _ = select.select([end, *listeners, *connections], [], [])
            if end in ready:
                return
            for sock in ready:
                if sock in listeners:
                    connections.append(stack.enter_context(sock.accept()[0]))
                    continue
                try:
                    said = sock.recv(1 << 16)
                    sock.sendall(said)
                except ConnectionError:  # it may be reset before the answer
                    said = b""
                if not said:
                    connections.remove(sock)
                    sock.close()
