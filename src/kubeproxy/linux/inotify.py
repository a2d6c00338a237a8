"""Notifications of the kernel that files in a folder were added, removed or written (inotify(7)).

Folders are watched, not files, because a file that is replaced is another file, and a ConfigMap volume
replaces a link. The callback only learns that something changed, and must read the folder itself. It must
also read the folder periodically, because inotify may not be available (a limit is reached, or the file
system sends no notifications). At these times, a folder that was deleted and created again is watched again.
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

Not CREATE and not MODIFY, because a file must not be read before its writer closes it. Therefore new links
are not reported.
"""


@contextlib.contextmanager
def changes(folders: Collection[Path], changed: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Calls back, in the running event loop, when something changed in one of these folders.

    Yields a function to call periodically: it watches the folders that were replaced since its last call.

    Raises:
        OSError: the kernel sends no notifications.
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
                changed()

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
