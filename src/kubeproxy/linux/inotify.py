"""Word from the kernel that files in a folder came, went or were written (inotify(7)).

Folders are watched, not files: a file that is replaced is another file, and a ConfigMap volume replaces a link. What
happened is not told, only that something did; the listener looks for itself. Without inotify (a limit reached, a file
system that does not tell) the listener must look from time to time anyway, and it is then that a folder which went and
came back is watched again.
"""

import asyncio
import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

_MASK = 0x8 | 0x40 | 0x80 | 0x200 | 0x400 | 0x800 | 0x4
"""CLOSE_WRITE, MOVED_FROM, MOVED_TO, DELETE, DELETE_SELF, MOVE_SELF, ATTRIB.

Not CREATE nor MODIFY: a file that is being written is not to be read before it is closed. So new links are not told.
"""


@contextlib.contextmanager
def changes(folders: Collection[Path], tell: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Calls back in the running event loop whenever something changed in one of these folders.

    Yields what to call now and then: it watches those folders that are others now than when it was last called.

    Raises:
        OSError: the kernel gives no notifications.
    """
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = _checked(libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))

    def watch(folder: Path) -> None:
        _checked(libc.inotify_add_watch(descriptor, os.fsencode(folder), _MASK))

    def again() -> None:
        for folder in folders:
            with contextlib.suppress(OSError):
                watch(folder)

    try:
        for folder in folders:
            watch(folder)

        def readable() -> None:
            with contextlib.suppress(BlockingIOError):
                os.read(descriptor, 1 << 16)
                tell()

        loop = asyncio.get_running_loop()
        loop.add_reader(descriptor, readable)
        try:
            yield again
        finally:
            loop.remove_reader(descriptor)
    finally:
        os.close(descriptor)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
