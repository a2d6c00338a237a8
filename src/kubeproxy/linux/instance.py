"""One kube-proxy in a network namespace: a lock that the kernel releases when the process ends, however it ends.

The lock is a listening Unix socket with an abstract name. Such names belong to the network namespace, as the rules do, and need
no file system that all instances share. Whoever finds the name taken connects, and the kernel tells which process listens.

Any process of the namespace can take the name, also one without a right to anything. So only a process that runs as root or as
our own user counts as another instance; a different one is reported and ignored.
"""

import contextlib
import errno
import logging
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Final, NamedTuple

log = logging.getLogger(__name__)

NAME: Final = "\0kube-proxy/instance"

UNKNOWN: Final = -1
"""The user of a process that leaves thousands of questions in its queue, as no kube-proxy does."""

_CREDENTIALS: Final = struct.Struct("3i")
_POLL_SECONDS: Final = 0.1


Make = Callable[[int, int], socket.socket]
"""Makes a socket of a domain and a kind."""


class Holder(NamedTuple):
    """The process that has the lock.

    Attributes:
        process: its number; 0 if it is in another PID namespace.
        user: the user it runs as, or UNKNOWN.
    """

    process: int
    user: int

    def __str__(self) -> str:
        return f"process {self.process}" if self.process else "a process in another PID namespace"


class HeldError(Exception):
    """Another instance has the lock.

    Attributes:
        holder: which.
    """

    def __init__(self, holder: Holder) -> None:
        super().__init__(f"another kube-proxy ({holder}) runs in this network namespace")
        self.holder = holder


class Instance:
    """The lock, held. It must be kept: it is released with the last reference."""

    def __init__(self, listener: socket.socket | None) -> None:
        self._listener = listener

    def fileno(self) -> int:
        """What becomes readable when somebody asks who holds the lock; -1 where there is no lock."""
        return -1 if self._listener is None else self._listener.fileno()

    def answer(self) -> None:
        """Lets go those who asked: the kernel has answered them, and the queue must not fill up."""
        assert self._listener is not None
        with contextlib.suppress(OSError):
            while True:
                self._listener.accept()[0].close()

    def release(self) -> None:
        """Releases the lock."""
        if self._listener is not None:
            self._listener.close()


def acquire(
    make: Make,
    patience: float,
    *,
    waiting: Callable[[Holder], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Instance:
    """Takes the lock.

    Args:
        make: makes a socket in the network namespace.
        patience: how many seconds to wait for another instance to end.
        waiting: called once, before waiting.
        clock: the time in seconds.
        sleep: sleeps so many seconds.

    Raises:
        HeldError: another instance still has the lock after that time.
    """
    deadline, told = clock() + patience, False
    while True:
        listener = make(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.bind(NAME)
            listener.listen()
        except OSError as e:
            listener.close()
            if e.errno != errno.EADDRINUSE:
                log.warning("Another kube-proxy on this node would not be noticed: %(err)s", {"err": e})
                return Instance(None)
        else:
            return Instance(listener)
        found = holder(make)
        if found is not None:
            if found.user not in (0, os.geteuid()):
                log.warning(
                    "The abstract socket @%(socket)s is held by %(holder)s of user %(user)s, which is not taken for a kube-proxy:"
                    " another kube-proxy on this node would not be noticed",
                    {"socket": NAME[1:], "holder": found, "user": "unknown" if found.user == UNKNOWN else found.user},
                )  # fmt: skip
                return Instance(None)
            if clock() >= deadline:
                raise HeldError(found)
            if not told:
                told = True
                waiting(found)
        sleep(_POLL_SECONDS)


def holder(make: Make) -> Holder | None:
    """The process that has the lock; None if there is none, or it does not listen yet.

    Args:
        make: makes a socket in the network namespace.
    """
    with make(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(NAME)
        except ConnectionRefusedError:
            return None
        except BlockingIOError:
            return Holder(0, UNKNOWN)
        process, user, _ = _CREDENTIALS.unpack(
            probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        return Holder(process, user)
