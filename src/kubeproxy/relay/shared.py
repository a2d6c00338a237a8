"""What all listeners of a relay share."""

import errno
import logging
import time
from collections.abc import Callable, Hashable
from typing import Final

from kubeproxy.relay.balancer import Clients
from kubeproxy.relay.loop import Loop
from kubeproxy.relay.pipes import Pool

QUIET_SECONDS: Final = 60.0
"""A message about the same thing is not repeated sooner."""

_MOST_SAID: Final = 1000
_RETRY_SECONDS: Final = 1.0

Speak = Callable[[int, str], None]
"""Takes a logging level and a message."""


class Slots:
    """Counts descriptors, so that those who are here never lack one: new ones wait outside."""

    def __init__(self, limit: int, loop: Loop, say: Callable[[int, str, Hashable], None]) -> None:
        self._left = self._limit = limit
        self._loop = loop
        self._say = say
        self._waiting: dict[Callable[[], None], None] = {}

    def take(self, count: int) -> bool:
        """Takes some; returns whether there were as many."""
        if self._left < count:
            self._say(
                logging.WARNING,
                f"the limit of {self._limit} descriptors is reached: new connections wait until others end",
                "limit",
            )
            return False
        self._left -= count
        return True

    def reserve(self, count: int) -> None:
        """Takes some, however few there are."""
        self._left -= count

    def give_back(self, count: int) -> None:
        """Gives some back; who waited may go on when there are some more left."""
        self._left += count
        if self._waiting and self._left > self._limit // 50:
            self.freed()

    def when_free(self, call: Callable[[], None]) -> None:
        """Calls back, once, when there are some again."""
        self._waiting[call] = None

    def freed(self) -> None:
        """Calls those who wait."""
        waiting, self._waiting = self._waiting, {}
        for call in waiting:
            call()

    def exhausted(self, error: OSError) -> None:
        """The system has none although there should be some: others have them. Tried again soon."""
        if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
            self._say(
                logging.WARNING,
                f"new connections wait, the system is short of something: {error.strerror}",
                "system",
            )
            self._loop.after(_RETRY_SECONDS, self.freed)


class Shared:
    """What all listeners of a relay share.

    Attributes:
        loop: the events.
        pool: pipes.
        slots: descriptors.
        mark: the mark of packets to targets; 0 for none.
    """

    def __init__(self, loop: Loop, speak: Speak, *, limit: int, mark: int = 0) -> None:
        self.loop = loop
        self.pool = Pool()
        self.slots = Slots(limit, loop, self.say)
        self.mark = mark
        self._speak = speak
        self._said: dict[Hashable, float] = {}
        self._clients: dict[str, Clients] = {}

    def say(self, level: int, text: str, about: Hashable) -> None:
        """Says something to the operator, unless something was said about the same a short while ago."""
        now = time.monotonic()
        if now - self._said.get(about, -QUIET_SECONDS) < QUIET_SECONDS:
            return
        if len(self._said) >= _MOST_SAID:
            self._said.clear()
        self._said[about] = now
        self._speak(level, text)

    def clients(self, group: str) -> Clients:
        """What a group remembers of its clients."""
        return self._clients.setdefault(group, Clients())

    def forget(self, groups: set[str]) -> None:
        """Forgets the groups that are not among these."""
        for group in self._clients.keys() - groups:
            del self._clients[group]
