"""Running as a service of Windows: the service control manager starts it, asks it to end and shows its state.

The manager expects a service to call it within 30 seconds of its start. It then runs the service in a thread
of its own, and calls back in the first thread with what is asked of it.

Source: winsvc.h.
"""

import ctypes
import threading
from collections.abc import Callable
from ctypes import POINTER, c_int32, c_uint32, c_void_p
from typing import Any, Final

from kubeproxy.windows.dll import SystemLibrary, callback, error, load, pointer
from kubeproxy.windows.text import wide

STOP: Final = 1
INTERROGATE: Final = 4
SHUTDOWN: Final = 5
PARAMETERS_CHANGED: Final = 6

STOPPED: Final = 1
START_PENDING: Final = 2
STOP_PENDING: Final = 3
RUNNING: Final = 4

NOT_A_SERVICE: Final = 1063
"""ERROR_FAILED_SERVICE_CONTROLLER_CONNECT: the service control manager has not started the process."""

_OWN_PROCESS: Final = 0x10
_ACCEPTED: Final = 0x1 | 0x4 | 0x8
"""STOP, SHUTDOWN, PARAMCHANGE."""

_SPECIFIC: Final = 1066
"""ERROR_SERVICE_SPECIFIC_ERROR: the exit status is in another field."""

_OK, _NOT_IMPLEMENTED = 0, 120
_WAIT_MILLISECONDS: Final = 30_000


class NotAServiceError(Exception):
    """The service control manager has not started this process."""


class ServiceEntry(ctypes.Structure):
    """SERVICE_TABLE_ENTRYW; one without name ends a table."""

    _fields_ = (("name", c_void_p), ("main", c_void_p))


class WindowsServiceStatus(ctypes.Structure):
    """SERVICE_STATUS."""

    _fields_ = (
        ("kind", c_uint32),
        ("state", c_uint32),
        ("accepted", c_uint32),
        ("exit_code", c_uint32),
        ("specific_exit_code", c_uint32),
        ("check_point", c_uint32),
        ("wait_hint", c_uint32),
    )


class WindowsService:
    """A service of this process.

    Its thread runs `work`, which is to call `started` when the service runs.
    """

    def __init__(
        self, name: str, work: Callable[["WindowsService"], int], *, library: SystemLibrary | None = None
    ) -> None:
        """Nothing is done before `run`.

        Args:
            name: the name of the service.
            work: does the work, and returns the exit status.
            library: the functions of advapi32.dll; None for those of this host.

        Raises:
            OSError: the library cannot be loaded.
        """
        self._name = wide(name)
        self._work = work
        self._library = library = library or load("advapi32.dll")
        self._dispatch = library.function("StartServiceCtrlDispatcherW", c_int32, c_void_p)
        self._register = library.function(
            "RegisterServiceCtrlHandlerExW", c_void_p, c_void_p, c_void_p, c_void_p
        )
        self._report = library.function("SetServiceStatus", c_int32, c_void_p, POINTER(WindowsServiceStatus))
        self._status = WindowsServiceStatus(
            kind=_OWN_PROCESS, state=START_PENDING, wait_hint=_WAIT_MILLISECONDS
        )
        self._lock = threading.Lock()
        self._handle: int | None = None
        self._end: Callable[[], object] | None = None
        self._asked = False
        self._exit_code = 1
        self._error: BaseException | None = None

    def run(self) -> int:
        """Runs the service until its work ends; returns the exit status of the work.

        Raises:
            NotAServiceError: the service control manager has not started this process.
            OSError: it refused.
        """
        main: Any = callback(None, c_uint32, c_void_p)(self._main)
        table = (ServiceEntry * 2)(
            ServiceEntry(pointer(self._name), ctypes.cast(main, c_void_p)), ServiceEntry(None, None)
        )
        if not self._dispatch(ctypes.cast(table, c_void_p)):
            code = self._library.last_error()
            if code == NOT_A_SERVICE:
                raise NotAServiceError
            raise error(code, "StartServiceCtrlDispatcher")
        if self._error is not None:
            raise self._error
        return self._exit_code

    def started(self, end: Callable[[], object]) -> None:
        """The service runs.

        Args:
            end: ends it; called on another thread, at once if that was asked for before.
        """
        with self._lock:
            self._end = end
            asked = self._asked
        if asked:
            end()
        else:
            self._set(RUNNING)

    def _main(self, _count: int, _arguments: int) -> None:
        """The thread of the service."""
        handler: Any = callback(c_uint32, c_uint32, c_uint32, c_void_p, c_void_p)(self._control)
        self._handle = self._register(pointer(self._name), ctypes.cast(handler, c_void_p), None)
        if not self._handle:
            self._error = self._library.failed("RegisterServiceCtrlHandlerEx")
            return
        self._set(START_PENDING)
        try:
            self._exit_code = self._work(self)
        except BaseException as e:
            self._error = e
        finally:
            self._set(STOPPED)

    def _control(self, control: int, _kind: int, _data: int, _context: int) -> int:
        """What the service control manager asks; called in the first thread."""
        if control in {STOP, SHUTDOWN}:
            with self._lock:
                self._asked, end = True, self._end
            self._set(STOP_PENDING)
            if end is not None:
                end()
            return _OK
        if control in {INTERROGATE, PARAMETERS_CHANGED}:
            self._set(self._status.state)
            return _OK
        return _NOT_IMPLEMENTED

    def _set(self, state: int) -> None:
        """Reports a state. After STOPPED the process may be ended at any time."""
        with self._lock:
            if self._status.state == STOPPED or (self._status.state == STOP_PENDING and state != STOPPED):
                state = self._status.state
            status = self._status
            status.state = state
            status.accepted = _ACCEPTED if state == RUNNING else 0
            status.wait_hint = _WAIT_MILLISECONDS if state in {START_PENDING, STOP_PENDING} else 0
            if state == STOPPED and self._exit_code:
                status.exit_code, status.specific_exit_code = _SPECIFIC, self._exit_code
            if self._handle:  # a control may come before the function that registers for them returns
                self._report(self._handle, ctypes.byref(status))
