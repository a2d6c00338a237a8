"""Work on the kernel that is to be done a while after a sync, again and again until none is left."""

import asyncio
import logging
from collections.abc import Callable

from kubeproxy.backends.shared.threads import in_thread

log = logging.getLogger(__name__)


class Afterwards:
    """One kind of such work, of a driver."""

    def __init__(
        self,
        lock: asyncio.Lock,
        left: Callable[[], bool],
        wait: Callable[[], float],
        work: Callable[[], None],
    ) -> None:
        """Does nothing before `start`.

        Args:
            lock: excludes syncs of the driver.
            left: whether there is something to do.
            wait: in how many seconds.
            work: does it, in a thread; if it raises OSError, it is tried again.
        """
        self._lock = lock
        self._left = left
        self._wait = wait
        self._work = work
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """There may be something to do now."""
        if self._left() and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._run())

    def close(self) -> None:
        """Ends it; what is left is not done."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while self._left():
            await asyncio.sleep(self._wait())
            async with self._lock:
                try:
                    await in_thread(self._work)
                except OSError as e:
                    log.warning(
                        "The connections of real servers cannot be read, trying again later: %(err)s",
                        {"err": e},
                    )
