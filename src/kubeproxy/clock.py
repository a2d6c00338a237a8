"""Time for the control loop, so that a test can be its master."""

import asyncio
import contextlib
import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock and a way to wait."""

    def now(self) -> float:
        """Seconds since some moment; never goes back, whatever happens to the time of day."""

    async def wait(self, event: asyncio.Event, seconds: float | None) -> None:
        """Waits for an event, at most so many seconds; None is for ever."""


class SystemClock:
    """The real one."""

    def now(self) -> float:
        """See `Clock`."""
        return time.monotonic()

    async def wait(self, event: asyncio.Event, seconds: float | None) -> None:
        """See `Clock`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), seconds)
