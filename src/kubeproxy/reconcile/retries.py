"""When Services that the kernel refused are tried again.

Usually a full sync tries all of them, at growing intervals. A driver that distinguishes the refused pieces
has a time for each, and tries only those whose time has come.
"""

import math
from collections.abc import Collection
from typing import Final, Protocol

from kubeproxy.backends.base import Failures, Retrying
from kubeproxy.clock import Clock
from kubeproxy.model.plan import Key

LONGEST_REFUSAL_SECONDS: Final = 300.0


class RefusalTimes(Protocol):
    """When and how refused Services are tried again."""

    @property
    def next(self) -> float:
        """The next time, by the control loop's clock; infinite if nothing was refused."""

    def reported(self, refused: Collection[Key], tried: float | None) -> None:
        """A sync ended.

        Args:
            refused: the Services that are refused now.
            tried: when these were tried; None if they were not.
        """

    async def retry(self) -> Failures | None:
        """Tries them: what is refused now; None: a full sync has to do it.

        Raises:
            SyncError: it was not possible.
        """


class AllTogether:
    """All refused Services are tried together. See `RefusalTimes`."""

    def __init__(self, clock: Clock, first_seconds: float) -> None:
        self.next = math.inf
        self._clock = clock
        self._first = first_seconds
        self._delay = 0.0

    def reported(self, refused: Collection[Key], tried: float | None) -> None:
        """See `RefusalTimes`."""
        if not refused:
            self._delay, self.next = 0.0, math.inf
        elif tried is not None:
            self._delay = min(max(2 * self._delay, self._first), LONGEST_REFUSAL_SECONDS)
            self.next = tried + self._delay
        elif self.next == math.inf:
            self.next = self._clock.now() + self._first

    async def retry(self) -> Failures | None:
        """See `RefusalTimes`."""
        return None


class PieceByPiece:
    """The driver has a time for each piece. See `RefusalTimes`."""

    def __init__(self, driver: Retrying) -> None:
        self._driver = driver
        self._reported = False

    @property
    def next(self) -> float:
        """See `RefusalTimes`. What the driver did when it looked for drift is asked for at once."""
        due = self._driver.next_retry
        return -math.inf if due == math.inf and self._reported else due

    def reported(self, refused: Collection[Key], tried: float | None) -> None:  # noqa: ARG002
        """See `RefusalTimes`."""
        self._reported = bool(refused)

    async def retry(self) -> Failures | None:
        """See `RefusalTimes`."""
        return await self._driver.retry()
