"""The buffer of one direction of a connection: a pipe, or memory if there is no descriptor for a pipe.

A pipe is filled and drained by splice(2), so that the bytes stay in the kernel. A direction has a pipe only
while it has bytes. If there is no descriptor left for a pipe, bytes are copied through memory, so that no
connection waits for a pipe that another one uses.
"""

import contextlib
import os
from typing import Final

from kubeproxy.relay.slots import Slots

SIZE: Final = 256 << 10
"""The bytes that a pipe holds, which is the most that is buffered for one direction of a connection."""

_COPIED: Final = 64 << 10
_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_MOST_SPARE: Final = 64
_DESCRIPTORS: Final = 2


class Pipe:
    """A pipe and how many bytes are in it."""

    __slots__ = ("_read", "_write", "held")

    def __init__(self) -> None:
        """Makes a pipe.

        Raises:
            OSError: there is no descriptor left.
        """
        self.held = 0
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Without privileges the kernel refuses to enlarge many pipes (pipe-user-pages-soft); a small pipe
        # only moves less at a time.
        with contextlib.suppress(OSError):
            import fcntl  # not on Windows, where modules that import this one must load

            fcntl.fcntl(self._write, fcntl.F_SETPIPE_SZ, SIZE)

    def fill(self, source: int) -> int:
        """Moves bytes from a socket into the empty pipe; returns how many, 0 at the end of the stream.

        Raises:
            OSError: BlockingIOError if the socket has no bytes now.
        """
        self.held = os.splice(source, self._write, SIZE, flags=_FLAGS)
        return self.held

    def drain(self, sink: int) -> None:
        """Moves bytes from the pipe to a socket, as many as fit into its buffer.

        Raises:
            OSError: BlockingIOError if the socket's buffer is full.
        """
        self.held -= os.splice(self._read, sink, self.held, flags=_FLAGS)

    def close(self) -> None:
        """Closes both ends; the bytes in it are lost."""
        os.close(self._read)
        os.close(self._write)


class Copy:
    """The same in memory, without descriptors."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = memoryview(b"")

    @property
    def held(self) -> int:
        """How many bytes are in it."""
        return len(self._data)

    def fill(self, source: int) -> int:
        """See `Pipe`."""
        self._data = memoryview(os.read(source, _COPIED))
        return len(self._data)

    def drain(self, sink: int) -> None:
        """See `Pipe`."""
        self._data = self._data[os.write(sink, self._data) :]


class Pool:
    """A pool of pipes."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._spare: list[Pipe] = []

    def lend(self) -> Pipe | Copy:
        """An empty pipe, or an empty `Copy` if there is no descriptor left."""
        if self._spare:
            return self._spare.pop()
        if not self._slots.take(_DESCRIPTORS):
            return Copy()
        try:
            return Pipe()
        except OSError:
            self._slots.give_back(_DESCRIPTORS)
            return Copy()

    def give_back(self, pipe: Pipe | Copy) -> None:
        """Takes a pipe back; the bytes in it are lost."""
        if isinstance(pipe, Copy):
            return
        if pipe.held or len(self._spare) >= _MOST_SPARE or self._slots.wanted:
            self._close(pipe)
        else:
            self._spare.append(pipe)

    def shrink(self) -> None:
        """Closes all pipes that are not in use."""
        while self._spare:
            self._close(self._spare.pop())

    def _close(self, pipe: Pipe) -> None:
        pipe.close()
        self._slots.give_back(_DESCRIPTORS)
