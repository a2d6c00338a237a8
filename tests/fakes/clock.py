"""A clock that stands still until a test moves it."""

import asyncio
import contextlib

_TURNS = 50


class FakeClock:
    """See `kubeproxy.clock.Clock`. Between the calls of `advance` everybody who can run has run.

    Attributes:
        time: the time. Whoever "works" for a while adds to it.
    """

    def __init__(self, time: float = 1000.0) -> None:
        self.time = time
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def now(self) -> float:
        """See `Clock`."""
        return self.time

    async def wait(self, event: asyncio.Event, seconds: float | None) -> None:
        """See `Clock`."""
        over = asyncio.Event()
        sleeper = (float("inf") if seconds is None else self.time + seconds, over)
        self._sleepers.append(sleeper)
        waits = [asyncio.ensure_future(each.wait()) for each in (event, over)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._sleepers.remove(sleeper)
            for wait in waits:
                wait.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*waits, return_exceptions=True)

    async def advance(self, seconds: float = 0.0) -> None:
        """Lets time pass, waking each sleeper at its time."""
        end = self.time + seconds
        await self.settle()
        while (due := min((at for at, _ in self._sleepers), default=end)) <= end and self._sleepers:
            self.time = max(self.time, due)
            for at, over in list(self._sleepers):
                if at <= self.time:
                    over.set()
            await self.settle()
        self.time = max(self.time, end)

    @staticmethod
    async def settle() -> None:
        """Lets everybody run who can, in no time."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)
