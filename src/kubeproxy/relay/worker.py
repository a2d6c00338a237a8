"""The relay process: takes orders from the daemon over a socket, and ends with it.

When the daemon ends, whatever way, its end of the socket closes. All connections are reset then, so that nobody takes a
transfer that was cut off for a complete one.
"""

import gc
import logging
import signal
import socket
import traceback
from collections import deque
from collections.abc import Sequence

from msgspec.structs import replace

from kubeproxy.relay import tcp, udp
from kubeproxy.relay.connection import Connection
from kubeproxy.relay.loop import IN, PollLoop
from kubeproxy.relay.shared import Shared
from kubeproxy.relay.sockets import raise_limit
from kubeproxy.relay.values import Close, Counts, Decoder, Mark, Message, Open, Said, Update, encode

_SPARE = 64
"""Descriptors for everything but listeners and connections."""

_TIDY_SECONDS = 60.0
_TELL_SECONDS = 5.0
_ANSWER_SECONDS = 0.1
_RECEIVED_BYTES = 1 << 16
_RECEIVED_SOCKETS = 250  # SCM_MAX_FD is 253
_DESCRIPTOR = 4


class Worker:
    """Serves listeners."""

    def __init__(self, control: socket.socket, *, mark: int = 0, limit: int = 0) -> None:
        """Prepares to serve.

        Args:
            control: the socket orders come by.
            mark: the mark of packets to targets; 0 for none.
            limit: how many descriptors connections may take; 0 for as many as the system gives.
        """
        self._control = control
        self._loop = PollLoop(self._failed)
        limit = limit or raise_limit() - _SPARE
        self._shared = Shared(self._loop, self._speak, limit=limit, mark=mark)
        self._decoder = Decoder()
        self._sockets: deque[socket.socket] = deque()
        self._servers: dict[int, tcp.TCPServer | udp.UDPServer] = {}
        self._groups: dict[int, tuple[str, int]] = {}
        self._told = Counts()
        control.setblocking(False)
        self._loop.add(control.fileno(), IN, self)
        self._loop.urgent = control.fileno()  # a target that is gone gets nobody who comes after that
        self._loop.after(_TIDY_SECONDS, self._tidy)
        self._loop.after(_TELL_SECONDS, self._tell)

    def run(self) -> None:
        """Serves until the daemon's end of the socket is closed."""
        self._loop.run()
        for handler in self._loop.handlers:
            if isinstance(handler, Connection | tcp.Dialing):
                handler.reset()
        self._loop.turn(0)

    def ready(self, descriptor: int, events: int) -> None:  # noqa: ARG002 see Handler
        """Orders came."""
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
        for order in self._decoder.feed(data):
            if isinstance(order, Open):
                self._open(order)
            elif isinstance(order, Update):
                self._groups[order.number] = order.listener.group, order.listener.affinity
                self._servers[order.number].change(order.listener)
            elif isinstance(order, Close):
                del self._groups[order.number]
                self._servers.pop(order.number).close()
                self._shared.slots.give_back(1)
            elif isinstance(order, Mark):
                self._answer(order)

    def _take(self, ancillary: Sequence[tuple[int, int, bytes]]) -> None:
        """Keeps the sockets that came."""
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                for start in range(0, len(data) - len(data) % _DESCRIPTOR, _DESCRIPTOR):
                    descriptor = int.from_bytes(data[start : start + _DESCRIPTOR], "little")
                    sock = socket.socket(fileno=descriptor)
                    sock.setblocking(False)
                    self._sockets.append(sock)

    def _open(self, order: Open) -> None:
        kind = udp.UDPServer if order.listener.udp else tcp.TCPServer
        self._shared.slots.reserve(1)
        self._groups[order.number] = order.listener.group, order.listener.affinity
        self._servers[order.number] = kind(self._sockets.popleft(), order.listener, self._shared)

    def _tidy(self) -> None:
        """Forgets clients that have not been seen for as long as their affinity lasts."""
        self._shared.forget({group for group, _ in self._groups.values()})
        for group, seconds in set(self._groups.values()):
            self._shared.clients(group).forget_old(seconds)
        self._loop.after(_TIDY_SECONDS, self._tidy)

    def _tell(self) -> None:
        """Says what was done, if anything was."""
        if self._shared.counts != self._told:
            self._told = replace(self._shared.counts)
            self._send(self._told)
        self._loop.after(_TELL_SECONDS, self._tell)

    def _speak(self, level: int, text: str) -> None:
        self._send(Said(level, text))

    def _answer(self, mark: Mark) -> None:
        """Sends a mark back, later if the daemon does not read now: it takes a process that owes one for stuck."""
        if not self._send(mark):
            self._loop.after(_ANSWER_SECONDS, lambda: self._answer(mark))

    def _send(self, message: Message) -> bool:
        """Sends a message if the daemon reads; a daemon that is busy must not stop the traffic."""
        try:
            self._control.send(encode(message))
        except OSError:
            return False
        return True

    def _failed(self) -> None:
        self._speak(logging.ERROR, f"a connection failed in an unforeseen way: {traceback.format_exc()}")


def main(control: int, mark: int, limit: int) -> None:
    """Runs a worker as a process."""
    # Only the daemon ends it: a signal to the whole group or terminal is meant for the daemon.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    gc.disable()  # nothing here refers to itself
    Worker(socket.socket(fileno=control), mark=mark, limit=limit).run()
