"""Network namespaces (network_namespaces(7)): a thread steps into one for as long as it makes something there.

A socket or a process belongs for good to the namespace its thread was in when it was made, and files below /proc/net and
/proc/sys/net are those of the thread that opens them. So whatever is bound to a namespace steps in to open, and works outside.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_CLONE_NEWNET: Final = 0x40000000  # linux/sched.h; os.setns is there from Python 3.12 on
_OWN: Final = Path("/proc/thread-self/ns/net")


def open_namespace(path: Path) -> int:
    """A descriptor of the namespace a file stands for, e.g. /run/netns/blue, to be closed by the caller.

    Raises:
        OSError: there is no such file.
    """
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


@contextlib.contextmanager
def inside(namespace: int) -> Iterator[None]:
    """The calling thread is in a namespace until the block ends. Nothing may be awaited meanwhile.

    Args:
        namespace: its descriptor.

    Raises:
        OSError: it is no network namespace, or CAP_SYS_ADMIN is missing.
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
