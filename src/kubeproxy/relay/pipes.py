"""Pipes for splice(2), lent to a direction of a connection only while bytes of it are on their way."""

import contextlib
import fcntl
import os

SIZE = 256 << 10
"""Bytes a pipe holds: all that is ever kept of one direction of a connection."""

_MOST_SPARE = 64


class Pipe:
    """A pipe and how many bytes are in it."""

    __slots__ = ("held", "read", "write")

    def __init__(self) -> None:
        """Makes a pipe.

        Raises:
            OSError: there is no descriptor left.
        """
        self.held = 0
        self.read, self.write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Without privilege many large pipes are refused; a small one only moves less at a time.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.write, fcntl.F_SETPIPE_SZ, SIZE)

    def close(self) -> None:
        """Closes both ends; what is held is lost."""
        os.close(self.read)
        os.close(self.write)


class Pool:
    """Pipes that nobody uses."""

    def __init__(self) -> None:
        self._spare: list[Pipe] = []

    def lend(self) -> Pipe:
        """An empty pipe.

        Raises:
            OSError: there is no descriptor left.
        """
        return self._spare.pop() if self._spare else Pipe()

    def give_back(self, pipe: Pipe) -> None:
        """Takes a pipe back."""
        if pipe.held or len(self._spare) >= _MOST_SPARE:
            pipe.close()
        else:
            self._spare.append(pipe)
