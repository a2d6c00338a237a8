"""The command line of another process.

Source: NtQueryInformationProcess with ProcessCommandLineInformation (Windows 8.1), CommandLineToArgvW.
"""

import ctypes
from ctypes import POINTER, c_int32, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Final, Protocol

from kubeproxy.windows.dll import SystemLibrary, error, load, pointer
from kubeproxy.windows.text import narrow, wide

_QUERY_LIMITED: Final = 0x1000
_COMMAND_LINE: Final = 60
_TOO_SHORT: Final = 0xC0000004 - 2**32
"""STATUS_INFO_LENGTH_MISMATCH"""

_FAILED: Final = 31
"""ERROR_GEN_FAILURE"""

_FIRST_SIZE: Final = 4096


class Processes(Protocol):
    """The processes of a host."""

    def arguments(self, process: int) -> tuple[str, ...]:
        """The command line of a process, with the program itself first.

        Raises:
            OSError: there is no such process, or this one may not read it.
        """


class CommandLineText(ctypes.Structure):
    """UNICODE_STRING: its length in bytes, and where it is."""

    _fields_ = (("length", c_uint16), ("maximum_length", c_uint16), ("buffer", c_void_p))


class SystemProcesses:
    """See `Processes`."""

    def __init__(
        self,
        *,
        kernel: SystemLibrary | None = None,
        native: SystemLibrary | None = None,
        shell: SystemLibrary | None = None,
    ) -> None:
        """Loads the libraries.

        Args:
            kernel: the functions of kernel32.dll; None for those of this host.
            native: those of ntdll.dll.
            shell: those of shell32.dll.

        Raises:
            OSError: one cannot be loaded.
        """
        self._kernel = kernel = kernel or load("kernel32.dll")
        native, shell = native or load("ntdll.dll"), shell or load("shell32.dll")
        self._open = kernel.function("OpenProcess", c_void_p, c_uint32, c_int32, c_uint32)
        self._close = kernel.function("CloseHandle", c_int32, c_void_p)
        self._free = kernel.function("LocalFree", c_void_p, c_void_p)
        self._query = native.function(
            "NtQueryInformationProcess", c_int32, c_void_p, c_uint32, c_void_p, c_uint32, POINTER(c_uint32)
        )
        self._divide = shell.function("CommandLineToArgvW", c_void_p, c_void_p, POINTER(c_int32))
        self._shell = shell

    def arguments(self, process: int) -> tuple[str, ...]:
        """See `Processes`."""
        handle = self._open(_QUERY_LIMITED, 0, process)
        if not handle:
            raise self._kernel.failed("OpenProcess")
        try:
            return self._divided(self._line(handle))
        finally:
            self._close(handle)

    def _line(self, handle: int) -> str:
        size = c_uint32(_FIRST_SIZE)
        while True:
            memory = (c_uint64 * (size.value // 8 + 1))()
            given = size.value
            status = self._query(
                handle, _COMMAND_LINE, ctypes.cast(memory, c_void_p), given, ctypes.byref(size)
            )
            if status == _TOO_SHORT and size.value > given:
                continue
            if status < 0:
                raise error(_FAILED, f"NtQueryInformationProcess (status {status & 0xFFFFFFFF:#x})")
            found = CommandLineText.from_buffer(memory)
            return ctypes.string_at(found.buffer, found.length).decode("utf-16-le", "surrogatepass")

    def _divided(self, line: str) -> tuple[str, ...]:
        """The arguments of a command line, divided as the C library of Windows does."""
        if not line:
            return ()
        text, count = wide(line), c_int32()
        found = self._divide(pointer(text), ctypes.byref(count))
        if not found:
            raise self._shell.failed("CommandLineToArgv")
        try:
            return tuple(narrow(address) for address in (c_void_p * count.value).from_address(found))
        finally:
            self._free(found)
