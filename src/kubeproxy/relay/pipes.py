"""What bytes of a connection's direction are in while they are on their way: a pipe, or without descriptors a little memory.

A pipe is filled and drained by splice(2): the bytes stay in the kernel. Pipes are lent to a direction only while it has bytes. When
there is no descriptor left for one, bytes are copied through memory, so that nobody waits for a pipe that a slow reader has.
"""

import contextlib
import os
from typing import Final

from kubeproxy.relay.slots import Slots

SIZE: Final = 256 << 10
"""Bytes a pipe holds: all that is ever kept of one direction of a connection."""

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
        # Without privilege many large pipes are refused; a small one only moves less at a time.
        with contextlib.suppress(OSError):
            import fcntl  # not on Windows, where modules that import this one must load

            fcntl.fcntl(self._write, fcntl.F_SETPIPE_SZ, SIZE)

    def fill(self, source: int) -> int:
        """Takes what a socket has into the empty pipe; returns how much, 0 at the end.

        Raises:
            OSError: BlockingIOError when there is nothing now.
        """
        self.held = os.splice(source, self._write, SIZE, flags=_FLAGS)
        return self.held

    def drain(self, sink: int) -> None:
        """Gives to a socket what it takes.

        Raises:
            OSError: BlockingIOError when it takes nothing now.
        """
        self.held -= os.splice(self._read, sink, self.held, flags=_FLAGS)

    def close(self) -> None:
        """Closes both ends; what is held is lost."""
        os.close(self._read)
        os.close(self._write)


class Copy:
    """The same without descriptors."""

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
    """Lends pipes."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._spare: list[Pipe] = []

    def lend(self) -> Pipe | Copy:
        """Something empty."""
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
        """Takes it back; what is in it is lost."""
        if isinstance(pipe, Copy):
            return
        if pipe.held or len(self._spare) >= _MOST_SPARE or self._slots.wanted:
            self._close(pipe)
        else:
            self._spare.append(pipe)

    def shrink(self) -> None:
        """Closes what is not lent."""
        while self._spare:
            self._close(self._spare.pop())

    def _close(self, pipe: Pipe) -> None:
        pipe.close()
        self._slots.give_back(_DESCRIPTORS)
