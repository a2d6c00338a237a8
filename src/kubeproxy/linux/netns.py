"""Network namespaces (network_namespaces(7)).

A thread enters a namespace to create a socket or a process, or to open a file.

A socket or a process stays in the namespace in which its thread was when it was created, and files below
/proc/net and /proc/sys/net are those of the namespace of the thread that opens them. So an object that is
bound to a namespace enters it only to create and open, and leaves it afterwards.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_CLONE_NEWNET: Final = 0x40000000  # linux/sched.h; os.setns exists only since Python 3.12
_PROC: Final = Path("/proc")
_NAMED: Final = Path("/run/netns")
_OWN: Final = _PROC / "thread-self/ns/net"


def open_namespace(path: Path) -> int:
    """Opens the file of a namespace, e.g. /run/netns/blue; returns a descriptor that the caller must close.

    Raises:
        OSError: there is no such file.
    """
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def known() -> Iterator[Path]:
    """A file of each network namespace that processes are in or that has a name, without that of the caller.

    Only processes that the caller may see are looked at. A namespace may end before its file is opened.
    """
    seen = {_identity(_OWN)}
    for path in (*_PROC.glob("[0-9]*/ns/net"), *_NAMED.glob("*")):
        with contextlib.suppress(OSError):
            identity = _identity(path)
            if identity not in seen:
                seen.add(identity)
                yield path


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def inside(namespace: int) -> Iterator[None]:
    """The calling thread is in a namespace until the block ends. The block must not await anything.

    Args:
        namespace: its descriptor.

    Raises:
        OSError: the descriptor is not that of a network namespace, or CAP_SYS_ADMIN is missing.
    """
    home = open_namespace(_OWN)
    try:
        _enter(namespace)
        try:
            yield
        finally:
            _enter(home)
    finally:
        os.close(home)


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot enter the network namespace: {os.strerror(code)}")
