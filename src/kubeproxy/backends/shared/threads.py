"""Work of drivers in threads, which cannot be interrupted."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
    """Does blocking work in a thread, and waits for its end when it is cancelled, too.

    A thread goes on when nobody waits for it. Without this, a sync that was cancelled would still write to the kernel while the
    next driver, perhaps of another mode in the same process, programs its own state.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **more))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # it is of no interest any more
        raise
