"""Time for the control loop, behind an interface so that tests can control it."""

import contextlib
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio


class Clock(Protocol):
    """A monotonic clock and a way to wait."""

    def now(self) -> float:
        """Seconds since some moment; monotonic, whatever happens to the time of day."""

    async def wait(self, event: "asyncio.Event", seconds: float | None) -> None:
        """Waits for an event, at most so many seconds; None is without a limit."""


class SystemClock:
    """The clock of the operating system."""

    def now(self) -> float:
        """See `Clock`."""
        return time.monotonic()

    async def wait(self, event: "asyncio.Event", seconds: float | None) -> None:
        """See `Clock`."""
        import asyncio  # commands that wait for nothing start in half the time without it

        # Not asyncio.wait_for: before Python 3.12 it loses a cancellation that arrives together with the
        # event.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
