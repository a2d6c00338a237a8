"""What all listeners of a relay share."""

import logging
import time
from collections.abc import Callable, Hashable
from typing import Final

from kubeproxy.relay.balancer import Balancer, Clients
from kubeproxy.relay.loop import PollLoop
from kubeproxy.relay.pipes import Pool
from kubeproxy.relay.slots import Slots, is_shortage
from kubeproxy.relay.tallies import Tallies
from kubeproxy.relay.values import Counts, Listener

QUIET_SECONDS: Final = 60.0
"""A message about the same subject is not repeated sooner."""

_MOST_REPORTED: Final = 1000
_RETRY_SECONDS: Final = 1.0

Log = Callable[[int, str], None]
"""Gets a logging level and a message."""


class Shared:
    """What all listeners of a relay share.

    Attributes:
        loop: the events.
        pool: pipes.
        slots: descriptors.
        counts: connections, flows and failures.
        tallies: the same and more, by target.
        mark: the mark of packets to targets; 0 for none.
    """

    def __init__(self, loop: PollLoop, log: Log, *, limit: int, mark: int = 0) -> None:
        self.loop = loop
        self.slots = Slots(limit)
        self.pool = Pool(self.slots)
        self.counts = Counts()
        self.tallies = Tallies()
        self.mark = mark
        self._log = log
        self._reported: dict[Hashable, float] = {}
        self._clients: dict[str, Clients] = {}

    def report(self, level: int, text: str, about: Hashable) -> None:
        """Logs a message, unless one about the same subject was logged within `QUIET_SECONDS`."""
        now = time.monotonic()
        if now - self._reported.get(about, -QUIET_SECONDS) < QUIET_SECONDS:
            return
        if len(self._reported) >= _MOST_REPORTED:
            self._reported.clear()
        self._reported[about] = now
        self._log(level, text)

    def admit(self, count: int) -> bool:
        """Takes descriptors for a new client; returns False if there are not enough."""
        if self.slots.take(count):
            return True
        self.pool.shrink()
        if self.slots.take(count):
            return True
        self.report(
            logging.WARNING,
            f"the limit of {self.slots.limit} descriptors is reached: new connections wait until others end",
            "limit",
        )
        return False

    def short(self, error: OSError) -> None:
        """If an error is a lack of descriptors or memory, logs it and lets listeners retry after a second."""
        if is_shortage(error):
            self.report(
                logging.WARNING,
                f"new connections wait, retrying every second: the system lacks descriptors or memory: {error.strerror}",
                "system",
            )
            self.loop.after(_RETRY_SECONDS, self.slots.freed)

    def balancer(self, listener: Listener) -> Balancer:
        """What chooses the targets of the clients of a listener; to be closed."""
        return Balancer(listener, self.clients(listener.group), self.tallies)

    def clients(self, group: str) -> Clients:
        """The clients of a group, with their targets."""
        return self._clients.setdefault(group, Clients())

    def forget(self, groups: set[str]) -> None:
        """Removes the groups that are not among these."""
        for group in self._clients.keys() - groups:
            del self._clients[group]
