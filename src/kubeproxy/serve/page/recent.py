"""What happened last: syncs and warnings, a bounded number of each."""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from kubeproxy.log import one_line
from kubeproxy.reconcile.reconciler import Reconciler, Synced

MOST_SYNCS: Final = 200
MOST_WARNINGS: Final = 50
LONGEST_WARNING: Final = 500
"""Characters of a message; the log has the whole of it."""


class SyncSample(Struct, frozen=True, array_like=True, gc=False):
    """A sync that succeeded.

    Attributes:
        number: its number, ascending.
        at: when it ended, in seconds of Unix time.
        family: its IP family.
        full: whether everything was compared.
        seconds: how long it took.
        latency: seconds from the oldest change in the cluster that it programmed; None if that is not known.
        repairs: how often drift was detected since the sync before it.
    """

    number: int
    at: float
    family: str
    full: bool
    seconds: float
    latency: float | None
    repairs: int


class WarningSample(Struct, frozen=True, gc=False):
    """A line of the log, with severity warning or above.

    Attributes:
        number: its number, ascending.
        at: when it was written, in seconds of Unix time.
        severity: "warning" or "error".
        message: its text.
    """

    number: int
    at: float
    severity: str
    message: str


class RecentSyncs:
    """The last syncs of all control loops."""

    def __init__(self, *, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._samples: deque[SyncSample] = deque(maxlen=MOST_SYNCS)
        self._number = 0

    def follow(self, loop: Reconciler) -> None:
        """Keeps the syncs of a loop from now on."""
        repairs = loop.repairs

        def synced(done: Synced) -> None:
            nonlocal repairs
            now, before, repairs = self._wall(), repairs, loop.repairs
            latency = now - min(done.triggered) if done.triggered else None
            self._number += 1
            self._samples.append(
                SyncSample(self._number, now, loop.family, done.full, done.seconds, latency, repairs - before)
            )

        loop.on_sync(synced)

    def after(self, number: int) -> list[SyncSample]:
        """Those after the one with this number, the oldest first."""
        return [sample for sample in self._samples if sample.number > number]


class RecentWarnings(logging.Handler):
    """The last warnings and errors of the log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._samples: deque[WarningSample] = deque(maxlen=MOST_WARNINGS)
        self._number = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Takes one record; called with the handler's lock held."""
        try:
            message = one_line(record.getMessage())
        except Exception:
            self.handleError(record)
            return
        if len(message) > LONGEST_WARNING:
            message = f"{message[:LONGEST_WARNING]}…"
        self._number += 1
        severity = "error" if record.levelno >= logging.ERROR else "warning"
        self._samples.append(WarningSample(self._number, record.created, severity, message))

    def after(self, number: int) -> list[WarningSample]:
        """Those after the one with this number, the oldest first."""
        self.acquire()  # other threads log, too
        try:
            return [sample for sample in self._samples if sample.number > number]
        finally:
            self.release()
