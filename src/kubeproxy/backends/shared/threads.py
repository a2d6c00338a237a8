"""Runs work of drivers in threads, which cannot be interrupted."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
    """Does blocking work in a thread, and waits for its end also when the caller is cancelled.

    A thread does not end when its caller is cancelled. Without the wait, a sync that was cancelled would
    still write to the kernel while the next driver, possibly of another mode in the same process, programs
    its own state.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **more))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # not needed any more
        raise
