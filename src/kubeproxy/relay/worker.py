"""The relay process: receives messages from the daemon over a socket, and ends when the daemon ends.

When the daemon ends for any reason, the kernel closes its end of the socket. All connections are then reset,
because a client could take an orderly end for the end of a complete transfer.
"""

import gc
import logging
import signal
import socket
import traceback
from collections import deque
from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from kubeproxy.relay import gate, listing, tcp, udp
from kubeproxy.relay.connection import Connection
from kubeproxy.relay.loop import IN, PollLoop
from kubeproxy.relay.presence import RemovedTargets
from kubeproxy.relay.shared import Shared
from kubeproxy.relay.sockets import raise_limit
from kubeproxy.relay.values import (
    AskFlows,
    AskTallies,
    Close,
    Counts,
    Decoder,
    ListedFlows,
    LogLine,
    Mark,
    Message,
    Open,
    OpenGate,
    Presence,
    Tallied,
    Update,
    encode,
)

_SPARE = 64
"""Descriptors for everything but listeners and connections."""

_TIDY_SECONDS = 60.0
_REPORT_SECONDS = 5.0
_ANSWER_SECONDS = 0.1
_RECEIVED_BYTES = 1 << 16
_RECEIVED_SOCKETS = 250  # SCM_MAX_FD is 253
_DESCRIPTOR = 4
_MOST_AT_ONCE = 128
"""So many tallies or flows are sent at once; then connections are served.

They have 20 KB at most, which the kernel takes as a whole or not at all.
"""


class Worker:
    """Serves listeners."""

    def __init__(self, control: socket.socket, *, mark: int = 0, limit: int = 0) -> None:
        """Prepares to serve.

        Args:
            control: the socket on which messages of the daemon arrive.
            mark: the mark of packets to targets; 0 for none.
            limit: how many descriptors connections may use; 0 for as many as the system allows.
        """
        self._control = control
        self._loop = PollLoop(self._failed)
        limit = limit or raise_limit() - _SPARE
        self._shared = Shared(self._loop, self._log, limit=limit, mark=mark)
        self._removed = RemovedTargets(self._loop, self._shared.tallies)
        self._decoder = Decoder()
        self._sockets: deque[socket.socket] = deque()
        self._servers: dict[int, tcp.TCPServer | udp.UDPServer | gate.TCPBehind | gate.UDPBehind] = {}
        self._gates: dict[bool, gate.TCPGate | gate.UDPGate] = {}
        self._closed_gates: list[gate.TCPGate | gate.UDPGate] = []
        self._groups: dict[int, tuple[str, int]] = {}
        self._reported = Counts()
        self._replies: deque[Iterator[Message]] = deque()
        self._unsent: Message | None = None
        control.setblocking(False)
        self._loop.add(control.fileno(), IN, self)
        # Messages are handled before new connections, so that none of these is sent to a target that was
        # removed.
        self._loop.urgent = control.fileno()
        self._loop.after(_TIDY_SECONDS, self._tidy)
        self._loop.after(_REPORT_SECONDS, self._report_counts)

    def run(self) -> None:
        """Serves until the daemon's end of the socket is closed."""
        self._loop.run()
        for handler in self._loop.handlers:
            if isinstance(handler, Connection | tcp.Dialing):
                handler.reset()
        self._loop.turn(0)

    def ready(self, descriptor: int, events: int) -> None:  # noqa: ARG002 see Handler
        """Messages of the daemon arrived."""
        try:
            data, ancillary, _, _ = self._control.recvmsg(
                _RECEIVED_BYTES, socket.CMSG_SPACE(_RECEIVED_SOCKETS * _DESCRIPTOR)
            )
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        self._take(ancillary)
        if not data:
            self._loop.stopped = True
            return
        for message in self._decoder.feed(data):
            if isinstance(message, Open):
                self._open(message)
            elif isinstance(message, Update):
                self._groups[message.number] = message.listener.group, message.listener.affinity
                self._servers[message.number].change(message.listener)
            elif isinstance(message, Close):
                del self._groups[message.number]
                server = self._servers.pop(message.number)
                server.close()
                if isinstance(server, tcp.TCPServer | udp.UDPServer):
                    self._shared.slots.give_back(1)
            elif isinstance(message, OpenGate):
                self._add_gate(message)
            elif isinstance(message, Mark):
                while self._closed_gates:
                    self._closed_gates.pop().begin()
                self._answer(message)
            elif isinstance(message, Presence):
                self._removed.change(message)
            elif isinstance(message, AskTallies):
                self._reply(self._tallies(message))
            elif isinstance(message, AskFlows):
                self._reply(self._flows(message))

    def _take(self, ancillary: Sequence[tuple[int, int, bytes]]) -> None:
        """Stores the sockets that arrived; `Open` messages use them in this order."""
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                for start in range(0, len(data) - len(data) % _DESCRIPTOR, _DESCRIPTOR):
                    descriptor = int.from_bytes(data[start : start + _DESCRIPTOR], "little")
                    sock = socket.socket(fileno=descriptor)
                    sock.setblocking(False)
                    self._sockets.append(sock)

    def _open(self, message: Open) -> None:
        listener = message.listener
        self._groups[message.number] = listener.group, listener.affinity
        if message.behind is not None:
            self._servers[message.number] = self._gates[listener.udp].open(message.behind, listener)
            return
        kind = udp.UDPServer if listener.udp else tcp.TCPServer
        self._shared.slots.reserve(1)
        self._servers[message.number] = kind(self._sockets.popleft(), listener, self._shared)

    def _add_gate(self, message: OpenGate) -> None:
        """A gate begins to accept when everything that was sent with it is there."""
        self._shared.slots.reserve(1)
        kind = gate.UDPGate if message.udp else gate.TCPGate
        self._gates[message.udp] = made = kind(self._sockets.popleft(), self._shared)
        self._closed_gates.append(made)

    def _tidy(self) -> None:
        """Removes clients that have not been seen for as long as their affinity lasts."""
        self._shared.forget({group for group, _ in self._groups.values()})
        for group, seconds in set(self._groups.values()):
            self._shared.clients(group).forget_old(seconds)
        self._loop.after(_TIDY_SECONDS, self._tidy)

    def _report_counts(self) -> None:
        """Sends the counts if they have changed."""
        self._shared.counts.ended = self._removed.ended
        if self._shared.counts != self._reported:
            self._reported = replace(self._shared.counts)
            self._send(self._reported)
        self._loop.after(_REPORT_SECONDS, self._report_counts)

    def _log(self, level: int, text: str) -> None:
        self._send(LogLine(level, text))

    def _answer(self, mark: Mark) -> None:
        """Sends a mark back.

        If the daemon does not read now, this is retried: without it, the daemon assumes that we hang.
        """
        if not self._send(mark):
            self._loop.after(_ANSWER_SECONDS, lambda: self._answer(mark))

    def _tallies(self, question: AskTallies) -> Iterator[Tallied]:
        tallies = self._shared.tallies
        left = tallies.changed  # what is counted from now on is not waited for
        while True:
            counted = tallies.take(min(_MOST_AT_ONCE, left))
            left -= len(counted) or left
            yield Tallied(question.number, counted, left > 0)
            if not left:
                return

    def _flows(self, question: AskFlows) -> Iterator[ListedFlows]:
        found = listing.flows(self._loop.handlers, question)
        for start in range(0, len(found), _MOST_AT_ONCE):
            yield ListedFlows(question.number, found[start : start + _MOST_AT_ONCE], more=True)
        yield ListedFlows(question.number, ())

    def _reply(self, parts: Iterator[Message]) -> None:
        """Answers a question when those before it are answered."""
        self._replies.append(parts)
        if len(self._replies) == 1:
            self._loop.after(0, self._send_part)

    def _send_part(self) -> None:
        """Sends a part of an answer, then connections are served before the next part."""
        part = self._unsent or next(self._replies[0], None)
        sent = part is None or self._send(part)
        self._unsent = None if sent else part
        if part is None:
            self._replies.popleft()
        if self._replies:
            self._loop.after(0 if sent else _ANSWER_SECONDS, self._send_part)

    def _send(self, message: Message) -> bool:
        """Sends a message unless the socket's buffer is full, since a busy daemon must not block traffic.

        Returns whether it was sent.
        """
        try:
            self._control.send(encode(message))
        except OSError:
            return False
        return True

    def _failed(self) -> None:
        self._log(logging.ERROR, f"a connection failed with an unexpected error: {traceback.format_exc()}")


def main(control: int, mark: int, limit: int) -> None:
    """Runs a worker as a process."""
    # Signals to the whole process group or terminal are for the daemon. It ends this process by closing the
    # socket.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    gc.disable()  # no object of this process is part of a reference cycle
    Worker(socket.socket(fileno=control), mark=mark, limit=limit).run()
