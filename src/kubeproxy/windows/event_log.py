"""The log of the system, in which administrators look for what services report.

The texts of events come from a file that is registered with the name of the source, which the installation of
the service does: `EventCreate.exe` of Windows, whose messages are the text that is reported. Without it, the
event viewer shows the text after a remark that the description is missing.

Source: RegisterEventSource, ReportEvent.
"""

import ctypes
import logging
from ctypes import POINTER, c_int32, c_uint16, c_uint32, c_void_p
from typing import Final

from kubeproxy.windows.dll import SystemLibrary, load, pointer
from kubeproxy.windows.text import wide

ERROR: Final = 1
WARNING: Final = 2
INFORMATION: Final = 4

_EVENT: Final = 1
"""EventCreate.exe has messages for the numbers 1 to 1000."""

_LONGEST: Final = 31_000
"""Characters that an event may have; Windows refuses more than 31,839."""


class EventLog:
    """The log, for the events of one source."""

    def __init__(self, source: str, *, library: SystemLibrary | None = None) -> None:
        """Opens it.

        Args:
            source: the name of the source.
            library: the functions of advapi32.dll; None for those of this host.

        Raises:
            OSError: Windows refused.
        """
        library = library or load("advapi32.dll")
        register = library.function("RegisterEventSourceW", c_void_p, c_void_p, c_void_p)
        self._deregister = library.function("DeregisterEventSource", c_int32, c_void_p)
        self._report = library.function(
            "ReportEventW",
            c_int32, c_void_p, c_uint16, c_uint16, c_uint32, c_void_p, c_uint16, c_uint32, POINTER(c_void_p), c_void_p,
        )  # fmt: skip
        self._handle = register(None, pointer(wide(source)))
        if not self._handle:
            raise library.failed("RegisterEventSource")

    def report(self, level: int, text: str) -> None:
        """Writes an event. An error is ignored: there is no other place to report it.

        Args:
            level: the level of logging, which decides the kind of the event.
            text: what to write; it is cut if it is too long.
        """
        kind = ERROR if level >= logging.ERROR else WARNING if level >= logging.WARNING else INFORMATION
        strings = (c_void_p * 1)(pointer(message := wide(text[:_LONGEST])))
        self._report(self._handle, kind, 0, _EVENT, None, 1, 0, ctypes.cast(strings, POINTER(c_void_p)), None)
        del message  # it was needed until here

    def close(self) -> None:
        """Closes it."""
        self._deregister(self._handle)
