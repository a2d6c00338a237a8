"""The end of a program in a console: Ctrl-C, Ctrl-Break, a closed console, and the end of the host.

Windows calls back on a thread of its own. After a closed console, a log-off or a shutdown it ends the process
as soon as the callback returns, so the callback waits until the program has ended its work. The runtime of
HostProcess containers sends Ctrl-Break or the event of a shutdown.

Source: SetConsoleCtrlHandler, HandlerRoutine.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from ctypes import c_int32, c_uint32, c_void_p, cast
from typing import Any, Final

from kubeproxy.windows.dll import SystemLibrary, callback, load

CTRL_C: Final = 0
CTRL_BREAK: Final = 1
CLOSED: Final = 2
LOGGED_OFF: Final = 5
SHUT_DOWN: Final = 6

_PATIENCE_SECONDS: Final = 4.0
"""Windows ends the process 5 seconds after it closed the console."""


@contextlib.contextmanager
def handled(end: Callable[[int], None], *, library: SystemLibrary | None = None) -> Iterator[None]:
    """Calls back, on another thread, when the console asks the process to end, until the block ends.

    A service has no console and is not ended when a user logs off; this event is ignored.

    Args:
        end: called with one of the numbers above.
        library: the functions of kernel32.dll; None for those of this host.

    Raises:
        OSError: Windows refused.
    """
    kernel = library or load("kernel32.dll")
    set_handler = kernel.function("SetConsoleCtrlHandler", c_int32, c_void_p, c_int32)
    done = threading.Event()

    def called(event: int) -> int:
        if event == LOGGED_OFF:
            return 0
        end(event)
        if event in {CLOSED, SHUT_DOWN}:
            done.wait(_PATIENCE_SECONDS)
        return 1

    function: Any = callback(c_int32, c_uint32)(called)
    if not set_handler(cast(function, c_void_p), 1):
        raise kernel.failed("SetConsoleCtrlHandler")
    try:
        yield
    finally:
        done.set()
        set_handler(cast(function, c_void_p), 0)
