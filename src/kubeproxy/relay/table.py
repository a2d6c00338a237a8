"""The table of listeners as it should be in the relay process, and what the process must still be sent.

Only the numbers of listeners that differ are kept, no messages: what is sent is what the table says then. So a process that
reads slowly, or not at all, is sent the last of a hundred changes, and one that was started again everything once.
"""

import itertools
import socket
from collections import OrderedDict
from collections.abc import Callable

from kubeproxy.relay.values import Close, Listener, Mark, Message, Open, Update

Take = Callable[[Message, socket.socket | None], bool]
"""Takes a message, and a socket with it; returns whether it did. If not, it is offered again later."""

_BATCH = 64
"""So many listeners are sent before other threads may have the table."""


class ListenerTable:
    """Listeners and their sockets, by number. Not thread-safe.

    Attributes:
        listeners: what should be.
        marked: the last mark that should come back.
        settled: the last one that did.
    """

    def __init__(self) -> None:
        self.listeners: dict[int, tuple[socket.socket, Listener]] = {}
        self.marked = self.settled = 0
        self._numbers = itertools.count(1)
        self._unsent: OrderedDict[int, None] = OrderedDict()
        self._served: set[int] = set()  # what the process has, or will have when it has read everything
        self._asked = 0

    @property
    def unsent(self) -> int:
        """How many listeners the process must be told about."""
        return len(self._unsent)

    def add(self, sock: socket.socket, listener: Listener) -> int:
        """A new listener; returns its number."""
        number = next(self._numbers)
        self.listeners[number] = sock, listener
        self._unsent[number] = None
        return number

    def change(self, number: int, listener: Listener) -> bool:
        """A listener is another one now; returns whether that is a change."""
        sock, before = self.listeners[number]
        if listener == before:
            return False
        self.listeners[number] = sock, listener
        self._unsent[number] = None
        return True

    def remove(self, number: int) -> None:
        """A listener is no more. Its socket is closed; the process may still have it."""
        sock, _ = self.listeners.pop(number)
        sock.close()
        self._unsent[number] = None

    def clear(self) -> None:
        """No listener is there any more; the process is not told."""
        for sock, _ in self.listeners.values():
            sock.close()
        self.listeners.clear()
        self._unsent.clear()

    def mark(self) -> int:
        """A new mark, which comes back when the process has done everything that is wanted now."""
        self.marked += 1
        return self.marked

    def restart(self) -> None:
        """There is a new process, which knows nothing."""
        self._served.clear()
        self._unsent = OrderedDict.fromkeys(self.listeners)
        self._asked = 0
        self.mark()

    def send(self, take: Take) -> bool:
        """Sends a part of what the process must be told. Returns whether everything has been sent and taken."""
        for _ in range(min(_BATCH, len(self._unsent))):
            number = next(iter(self._unsent))
            if not self._send(number, take):
                return False
            del self._unsent[number]
        if self._unsent:
            return False
        if self._asked < self.marked:
            if not take(Mark(self.marked), None):
                return False
            self._asked = self.marked
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
        if not take(Open(number, listener), sock):
            return False
        self._served.add(number)
        return True
