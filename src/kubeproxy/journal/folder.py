"""The folder of a journal: numbered segments that only its owner can read, together not larger than a limit.

The folder is locked as long as a daemon writes in it, so that two daemons cannot write in one.
"""

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from kubeproxy.journal.frames import HEADER

SUFFIX: Final = ".journal"
_DIGITS: Final = 10
_SHARED: Final = 0o022


def segments(folder: Path) -> list[Path]:
    """The segments in a folder, the oldest first.

    Raises:
        OSError: it cannot be read.
    """
    found = (Path(entry.path) for entry in os.scandir(folder) if entry.name.endswith(SUFFIX))
    return sorted((path for path in found if _number(path) is not None), key=lambda path: _number(path) or 0)


def _number(path: Path) -> int | None:
    stem = path.name.removesuffix(SUFFIX)
    return int(stem) if stem.isascii() and stem.isdigit() else None


class JournalFolder:
    """A folder that is written in.

    Attributes:
        path: where it is.
        limit: how many bytes all segments may have.
        written: the bytes of the segment that is written, 0 if there is none.
    """

    def __init__(self, path: Path, limit: int) -> None:
        """Nothing is done before `open`."""
        self.path = path
        self.limit = limit
        self.written = 0
        self._lock = -1
        self._file = -1
        self._current: Path | None = None
        self._sizes: dict[Path, int] = {}

    def open(self) -> None:
        """Makes the folder if it does not exist, and locks it. It may be called again after it has failed.

        Raises:
            OSError: it cannot be made, belongs to another user, can be changed by others, or is locked.
        """
        if self._lock < 0:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if sys.platform != "win32":
                self._take()
        self._sizes = {path: path.stat().st_size for path in segments(self.path)}

    def begin(self) -> None:
        """Begins another segment.

        Raises:
            OSError: it cannot be made.
        """
        self.end()
        last = max((_number(path) or 0 for path in self._sizes), default=0)
        path = self.path / f"{last + 1:0{_DIGITS}}{SUFFIX}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self._file = os.open(path, flags, 0o600)
        self._current, self._sizes[path], self.written = path, 0, 0
        self.append(HEADER)

    def append(self, data: bytes) -> None:
        """Writes at the end of the segment, then removes the oldest segments beyond the limit.

        Raises:
            OSError: it cannot be written; what was written of it is removed.
        """
        assert self._current is not None
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self.written)
            raise
        self.written += len(data)
        self._sizes[self._current] = self.written
        self._drop()

    def end(self) -> None:
        """Ends the segment that is written, if there is one."""
        if self._file >= 0:
            os.close(self._file)
        self._file, self._current, self.written = -1, None, 0

    def discard(self) -> None:
        """Removes the segment that is written.

        Raises:
            OSError: it cannot be removed.
        """
        path = self._current
        self.end()
        if path is not None:
            del self._sizes[path]
            path.unlink()

    def close(self) -> None:
        """Ends writing, and unlocks the folder."""
        self.end()
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def _drop(self) -> None:
        """Removes the oldest segments, but never the one that is written."""
        total = sum(self._sizes.values())
        for path in list(self._oldest()):
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= self._sizes.pop(path)

    def _oldest(self) -> Iterable[Path]:
        return (path for path in self._sizes if path != self._current)

    if sys.platform != "win32":

        def _take(self) -> None:
            """Locks the folder.

            Raises:
                OSError: it belongs to another user, can be changed by others, or is locked.
            """
            import fcntl

            lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                found = os.fstat(lock)
                if found.st_uid != os.geteuid():
                    raise PermissionError(
                        f"{self.path} belongs to user {found.st_uid}, not to {os.geteuid()}"
                    )
                if found.st_mode & _SHARED:
                    raise PermissionError(f"{self.path} can be changed by other users; chmod 700 {self.path}")
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as e:
                    raise BlockingIOError(f"another process writes a journal in {self.path}") from e
            except OSError:
                os.close(lock)
                raise
            self._lock = lock
