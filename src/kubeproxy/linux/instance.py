"""The lock of a network namespace, so that only one kube-proxy programs it.

The kernel releases the lock when the process ends for any reason.

The lock is a listening Unix socket with an abstract name. Such names belong to the network namespace, as the
rules do, and need no file system that all instances share. An instance that finds the name in use connects to
it, and the kernel reports the process that listens.

Any process of the namespace can use the name, even one without privileges. Therefore only a process that runs
as root or as our own user counts as another instance; any other process is reported and ignored.
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

ANSWERS: Final = "\0kube-proxy/answers"
"""The name of the socket on which that instance answers questions of commands."""

UNKNOWN: Final = -1
"""The user of a process whose queue of connections is full, because it accepts none; a kube-proxy does."""

_CREDENTIALS: Final = struct.Struct("3i")
_POLL_SECONDS: Final = 0.1


Make = Callable[[int, int], socket.socket]
"""Creates a socket of a domain and a type."""


class Holder(NamedTuple):
    """The process that holds the lock.

    Attributes:
        process: its process ID; 0 if it is in another PID namespace.
        user: the user ID it runs as, or UNKNOWN.
    """

    process: int
    user: int

    def __str__(self) -> str:
        return f"process {self.process}" if self.process else "a process in another PID namespace"


class HeldError(Exception):
    """Another instance holds the lock.

    Attributes:
        holder: the process of that instance.
    """

    def __init__(self, holder: Holder, where: str = "in this network namespace") -> None:
        super().__init__(f"another kube-proxy ({holder}) runs {where}")
        self.holder = holder


class Instance:
    """The lock that this process holds. Keep a reference: without one, the lock is released."""

    def __init__(self, listener: socket.socket | None, release: Callable[[], object] = lambda: None) -> None:
        """Holds a lock.

        Args:
            listener: the socket that is the lock; None if it is something else, or there is none.
            release: releases what is the lock instead.
        """
        self._listener = listener
        self._release = release

    def fileno(self) -> int:
        """The descriptor that becomes readable when another process asks who holds the lock.

        -1 if there is no lock.
        """
        return -1 if self._listener is None else self._listener.fileno()

    def answer(self) -> None:
        """Accepts and closes the connections of other processes. The kernel has answered them.

        This keeps the queue from filling up.
        """
        assert self._listener is not None
        with contextlib.suppress(OSError):
            while True:
                self._listener.accept()[0].close()

    def release(self) -> None:
        """Releases the lock."""
        if self._listener is not None:
            self._listener.close()
        self._release()


def acquire(
    make: Make,
    patience: float,
    *,
    waiting: Callable[[Holder], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Instance:
    """Acquires the lock.

    Args:
        make: creates a socket in the network namespace.
        patience: how many seconds to wait for another instance to end.
        waiting: called once, before the wait, with the process that holds the lock.
        clock: returns the time in seconds.
        sleep: sleeps for some seconds.

    Raises:
        HeldError: another instance still has the lock after that time.
    """
    deadline, reported = clock() + patience, False
    while True:
        listener = make(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.bind(NAME)
            listener.listen()
        except OSError as e:
            listener.close()
            if e.errno != errno.EADDRINUSE:
                log.warning(
                    "Cannot acquire the lock of this node, continuing without it; another kube-proxy would not be detected: %(err)s",
                    {"err": e},
                )
                return Instance(None)
        else:
            return Instance(listener)
        found = holder(make)
        if found is not None:
            if found.user not in (0, os.geteuid()):
                log.warning(
                    "The abstract socket @%(socket)s is held by %(holder)s of user %(user)s, which cannot be a kube-proxy;"
                    " continuing without the lock; another kube-proxy on this node would not be detected",
                    {"socket": NAME[1:], "holder": found, "user": "unknown" if found.user == UNKNOWN else found.user},
                )  # fmt: skip
                return Instance(None)
            if clock() >= deadline:
                raise HeldError(found)
            if not reported:
                reported = True
                waiting(found)
        sleep(_POLL_SECONDS)


def holder(make: Make) -> Holder | None:
    """The process that holds the lock; None if there is none, or it does not listen yet.

    Args:
        make: creates a socket in the network namespace.
    """
    with make(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(NAME)
        except ConnectionRefusedError:
            return None
        except BlockingIOError:
            return Holder(0, UNKNOWN)
        return peer(probe)


def listen_for_questions(make: Make) -> socket.socket:
    """Makes the socket on which questions are answered.

    Raises:
        OSError: another process has it.
    """
    made = make(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        made.bind(ANSWERS)
    except OSError:
        made.close()
        raise
    return made


def connect_to_ask(make: Make, seconds: float) -> socket.socket:
    """Connects to the instance of this network namespace, to ask it.

    Args:
        make: makes a socket in the network namespace.
        seconds: how long to wait for the connection, and for each part of an answer.

    Raises:
        OSError: no process listens, or one whose user is neither root nor our own.
    """
    made = make(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.settimeout(seconds)
        made.connect(ANSWERS)
        if not is_trusted(made):
            raise PermissionError(errno.EPERM, "the socket belongs to another user")
    except OSError:
        made.close()
        raise
    return made


def is_trusted(connection: socket.socket) -> bool:
    """Whether the process at the other end of a Unix socket runs as root or as our own user."""
    return peer(connection).user in {0, os.geteuid()}


def peer(connection: socket.socket) -> Holder:
    """The process at the other end of a connected Unix socket.

    Raises:
        OSError: the kernel does not report it.
    """
    process, user, _ = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return Holder(process, user)
