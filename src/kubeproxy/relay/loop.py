"""The event loop of the relay process: waits for sockets and timers, and calls their handlers.

Events are level-triggered: a handler that cannot handle an event now removes it from its mask. Sockets are
closed after all events of a round were handled, because the kernel may give the number of a closed descriptor
to another socket.
"""

import heapq
import select
import socket
import time
from collections.abc import Callable
from itertools import count
from typing import Final, Protocol

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT
ERROR: Final = select.EPOLLERR
HANGUP: Final = select.EPOLLHUP

_EVENTS = 256


class Handler(Protocol):
    """Handles the events of a descriptor."""

    def ready(self, descriptor: int, events: int) -> None:
        """Handles events. A read or write may still block."""


class Timer:
    """A call in the future."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Prevents the call."""
        self.call = None


class PollLoop:
    """The events of one thread.

    Attributes:
        stopped: set it to end `run`.
        urgent: a descriptor whose events are handled before all others of a round.
    """

    def __init__(self, failed: Callable[[], None] | None = None) -> None:
        """Makes a loop.

        Args:
            failed: called in an `except` block when a handler fails; without it the error ends the loop.
        """
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = count()
        self._closing: list[socket.socket] = []
        self._failed = failed
        self.stopped = False
        self.urgent = -1

    def add(self, descriptor: int, mask: int, handler: Handler) -> None:
        """Registers a descriptor and its handler."""
        self._epoll.register(descriptor, mask)
        self._handlers[descriptor] = handler

    def change(self, descriptor: int, mask: int) -> None:
        """Changes the events to wait for. Errors are always reported."""
        self._epoll.modify(descriptor, mask)

    def hand_over(self, descriptor: int, mask: int, handler: Handler) -> None:
        """Gives a descriptor another handler."""
        self._epoll.modify(descriptor, mask)
        self._handlers[descriptor] = handler

    def remove(self, descriptor: int) -> None:
        """Removes a descriptor."""
        if self._handlers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def close(self, sock: socket.socket) -> None:
        """Removes a socket, and closes it at the end of this round. No other process may have it open."""
        self._handlers.pop(sock.fileno(), None)
        self._closing.append(sock)

    @property
    def handlers(self) -> set[Handler]:
        """All handlers."""
        return set(self._handlers.values())

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Calls after some seconds."""
        timer = Timer(call)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), timer))
        return timer

    def run(self) -> None:
        """Runs until stopped."""
        while not self.stopped:
            self.turn()

    def turn(self, longest: float = -1) -> None:
        """Waits for the next events or timers, and handles them.

        Args:
            longest: seconds to wait at most; negative for no limit.
        """
        found = self._epoll.poll(self._wait(longest), _EVENTS)
        if len(found) > 1:
            found.sort(key=lambda event: event[0] != self.urgent)
        for descriptor, events in found:
            handler = self._handlers.get(descriptor)
            if handler is not None:
                try:
                    handler.ready(descriptor, events)
                except Exception:
                    self._handle_error()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            call = heapq.heappop(self._timers)[2].call
            if call is not None:
                try:
                    call()
                except Exception:
                    self._handle_error()
        if self._closing:
            for sock in self._closing:
                sock.close()
            self._closing.clear()

    def _wait(self, longest: float) -> float:
        """Seconds until the first timer, at most `longest`."""
        while self._timers and self._timers[0][2].call is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return longest
        wait = max(0.0, self._timers[0][0] - time.monotonic())
        return wait if longest < 0 else min(wait, longest)

    def _handle_error(self) -> None:
        if self._failed is None:
            raise  # noqa: PLE0704 called where an error is handled
        self._failed()
