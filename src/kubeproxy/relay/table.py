"""The listeners that the relay process should have, and which of them must still be sent to it.

Not messages are queued but the numbers of listeners that differ. A message is made from the table when it is
sent. So a process that reads slowly, or not at all, is sent only the last of a hundred changes, and a new
process is sent each listener once.
"""

import itertools
import socket
from collections import OrderedDict
from collections.abc import Callable

from kubeproxy.relay.steering import SteeredPort
from kubeproxy.relay.values import Close, Listener, Mark, Message, Open, OpenGate, Update

Take = Callable[[Message, socket.socket | None], bool]
"""Sends a message, and a socket with it; returns whether it was accepted.

If not, it is called again later.
"""

_BATCH = 64
"""So many listeners are sent before the lock is released for other threads."""


class ListenerTable:
    """Listeners and their sockets, by number. Not thread-safe.

    Attributes:
        listeners: the listeners that the process should have.
        marked: the last mark that was requested.
        settled: the last mark that the process sent back.
    """

    def __init__(self) -> None:
        self.listeners: dict[int, tuple[socket.socket | SteeredPort, Listener]] = {}
        self.marked = self.settled = 0
        self._numbers = itertools.count(1)
        self._unsent: OrderedDict[int, None] = OrderedDict()
        self._served: set[int] = set()  # what the process has, or will have when it has read everything
        self._gates: set[bool] = set()  # the gates that the process has, by whether it is UDP
        self._mark_sent = 0

    @property
    def unsent(self) -> int:
        """How many listeners must be sent to the process."""
        return len(self._unsent)

    def add(self, sock: socket.socket | SteeredPort, listener: Listener) -> int:
        """Adds a listener; returns its number."""
        number = next(self._numbers)
        self.listeners[number] = sock, listener
        self._unsent[number] = None
        return number

    def change(self, number: int, listener: Listener) -> bool:
        """Replaces a listener; returns whether it differs from the one before."""
        sock, before = self.listeners[number]
        if listener == before:
            return False
        self.listeners[number] = sock, listener
        self._unsent[number] = None
        return True

    def remove(self, number: int) -> None:
        """Removes a listener and closes its socket. The process may still have a copy of the socket."""
        sock, _ = self.listeners.pop(number)
        sock.close()
        self._unsent[number] = None

    def clear(self) -> None:
        """Removes all listeners, without sending anything to the process."""
        for sock, _ in self.listeners.values():
            sock.close()
        self.listeners.clear()
        self._unsent.clear()

    def mark(self) -> int:
        """Requests a new mark. The process sends it back when it has everything that is in the table now."""
        self.marked += 1
        return self.marked

    def restart(self) -> None:
        """There is a new process, which has no listeners: everything must be sent."""
        self._served.clear()
        self._gates.clear()
        self._unsent = OrderedDict.fromkeys(self.listeners)
        self._mark_sent = 0
        self.mark()

    def send(self, take: Take) -> bool:
        """Sends a batch of what must be sent to the process. Returns whether everything has been sent."""
        for _ in range(min(_BATCH, len(self._unsent))):
            number = next(iter(self._unsent))
            if not self._send(number, take):
                return False
            del self._unsent[number]
        if self._unsent:
            return False
        if self._mark_sent < self.marked:
            if not take(Mark(self.marked), None):
                return False
            self._mark_sent = self.marked
        return True

    def _send(self, number: int, take: Take) -> bool:
        served = number in self._served
        if number not in self.listeners:
            if served and not take(Close(number), None):
                return False
            self._served.discard(number)
            return True
        sock, listener = self.listeners[number]
        if served:
            return take(Update(number, listener), None)
        if not self._open(number, sock, listener, take):
            return False
        self._served.add(number)
        return True

    def _open(self, number: int, sock: socket.socket | SteeredPort, listener: Listener, take: Take) -> bool:
        if not isinstance(sock, SteeredPort):
            return take(Open(number, listener), sock)
        if sock.udp not in self._gates:
            if not take(OpenGate(sock.udp), sock.gate):
                return False
            self._gates.add(sock.udp)
        if not take(Open(number, listener, sock.getsockname()), None):
            return False
        sock.sent()
        return True
