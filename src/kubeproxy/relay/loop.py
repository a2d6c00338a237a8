"""Waits for sockets and times; calls back whom they concern.

Level-triggered: whoever cannot go on takes the event out of its mask. Sockets are closed after the events of a round, so that
no event of a round meets a descriptor that has become another socket.
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
    """Whom events of a descriptor concern."""

    def ready(self, descriptor: int, events: int) -> None:
        """Something happened. It may be less than expected: to read or write may still block."""


class Timer:
    """A call in the future."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """It is not to be called."""
        self.call = None


class PollLoop:
    """One thread's events.

    Attributes:
        stopped: set it to end `run`.
        urgent: a descriptor whose events come before all others of a round.
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
        """Events of a descriptor go to a handler from now on."""
        self._epoll.register(descriptor, mask)
        self._handlers[descriptor] = handler

    def change(self, descriptor: int, mask: int) -> None:
        """Other events are waited for. Errors always are."""
        self._epoll.modify(descriptor, mask)

    def hand_over(self, descriptor: int, mask: int, handler: Handler) -> None:
        """A descriptor has another handler now."""
        self._epoll.modify(descriptor, mask)
        self._handlers[descriptor] = handler

    def remove(self, descriptor: int) -> None:
        """No events of a descriptor are waited for."""
        if self._handlers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def close(self, sock: socket.socket) -> None:
        """Closes a socket, at the end of this round. No other process may have it."""
        self._handlers.pop(sock.fileno(), None)
        self._closing.append(sock)

    @property
    def handlers(self) -> set[Handler]:
        """Whoever waits for events."""
        return set(self._handlers.values())

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Calls in so many seconds."""
        timer = Timer(call)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), timer))
        return timer

    def run(self) -> None:
        """Runs until stopped."""
        while not self.stopped:
            self.turn()

    def turn(self, longest: float = -1) -> None:
        """Waits for the next events or times, and deals with them.

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
                    self._complain()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            call = heapq.heappop(self._timers)[2].call
            if call is not None:
                try:
                    call()
                except Exception:
                    self._complain()
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

    def _complain(self) -> None:
        if self._failed is None:
            raise  # noqa: PLE0704 called where an error is handled
        self._failed()
