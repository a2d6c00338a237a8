"""What all listeners of a relay share."""

import logging
import time
from collections.abc import Callable, Hashable
from typing import Final

from kubeproxy.relay.balancer import Clients
from kubeproxy.relay.loop import PollLoop
from kubeproxy.relay.pipes import Pool
from kubeproxy.relay.slots import Slots, is_shortage
from kubeproxy.relay.values import Counts

QUIET_SECONDS: Final = 60.0
"""A message about the same thing is not repeated sooner."""

_MOST_SAID: Final = 1000
_RETRY_SECONDS: Final = 1.0

Speak = Callable[[int, str], None]
"""Takes a logging level and a message."""


class Shared:
    """What all listeners of a relay share.

    Attributes:
        loop: the events.
        pool: pipes.
        slots: descriptors.
        counts: what is done.
        mark: the mark of packets to targets; 0 for none.
    """

    def __init__(self, loop: PollLoop, speak: Speak, *, limit: int, mark: int = 0) -> None:
        self.loop = loop
        self.slots = Slots(limit)
        self.pool = Pool(self.slots)
        self.counts = Counts()
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

    def admit(self, count: int) -> bool:
        """Takes descriptors for somebody new; returns whether there are as many."""
        if self.slots.take(count):
            return True
        self.pool.shrink()
        if self.slots.take(count):
            return True
        self.say(
            logging.WARNING,
            f"the limit of {self.slots.limit} descriptors is reached: new connections wait until others end",
            "limit",
        )
        return False

    def short(self, error: OSError) -> None:
        """The system may have no descriptor or memory although there should be some. Tried again soon."""
        if is_shortage(error):
            self.say(
                logging.WARNING,
                f"new connections wait, the system is short of something: {error.strerror}",
                "system",
            )
            self.loop.after(_RETRY_SECONDS, self.slots.freed)

    def clients(self, group: str) -> Clients:
        """What a group remembers of its clients."""
        return self._clients.setdefault(group, Clients())

    def forget(self, groups: set[str]) -> None:
        """Forgets the groups that are not among these."""
        for group in self._clients.keys() - groups:
            del self._clients[group]
