"""The lock that only one kube-proxy of a host can hold, and the number of the process that holds it.

The lock is a named section of memory. Windows deletes it when the last process that has it open ends, for
any reason. Names that begin with `Global` can only be created by administrators and services, so no other
user can take the lock. HostProcess containers share these names with the host.

Source: CreateFileMapping, MapViewOfFile.
"""

from ctypes import c_int32, c_size_t, c_uint32, c_void_p
from typing import Final, Protocol

from kubeproxy.windows.dll import ALREADY_EXISTS, SystemLibrary, load, pointer
from kubeproxy.windows.text import wide

NAME: Final = "Global\\kube-proxy-instance"

_NO_FILE: Final = 2**64 - 1
"""INVALID_HANDLE_VALUE: memory that belongs to no file."""

_READ_WRITE: Final = 4
_MAP_WRITE: Final = 2
_MAP_READ: Final = 4
_SIZE: Final = 4
_NOT_FOUND: Final = 2


class SystemLock(Protocol):
    """The lock of a host."""

    def take(self, process: int) -> bool:
        """Takes it for a process; returns whether no other has it.

        Raises:
            OSError: Windows refused.
        """

    def holder(self) -> int | None:
        """The process that has it, 0 if that is not known yet; None if there is none.

        Raises:
            OSError: Windows refused.
        """

    def release(self) -> None:
        """Gives it back, if it was taken."""


class NamedSection:
    """See `SystemLock`."""

    def __init__(self, name: str = NAME, *, library: SystemLibrary | None = None) -> None:
        """Loads the library.

        Args:
            name: the name of the section.
            library: the functions of kernel32.dll; None for those of this host.

        Raises:
            OSError: it cannot be loaded.
        """
        self._name = wide(name)
        self._kernel = kernel = library or load("kernel32.dll")
        self._create = kernel.function(
            "CreateFileMappingW", c_void_p, c_void_p, c_void_p, c_uint32, c_uint32, c_uint32, c_void_p
        )
        self._open = kernel.function("OpenFileMappingW", c_void_p, c_uint32, c_int32, c_void_p)
        self._map = kernel.function(
            "MapViewOfFile", c_void_p, c_void_p, c_uint32, c_uint32, c_uint32, c_size_t
        )
        self._unmap = kernel.function("UnmapViewOfFile", c_int32, c_void_p)
        self._close = kernel.function("CloseHandle", c_int32, c_void_p)
        self._held: int | None = None

    def take(self, process: int) -> bool:
        """See `SystemLock`."""
        section = self._create(_NO_FILE, None, _READ_WRITE, 0, _SIZE, pointer(self._name))
        if not section:
            raise self._kernel.failed("CreateFileMapping")
        if self._kernel.last_error() == ALREADY_EXISTS:
            self._close(section)
            return False
        self._held = section
        view = self._view(section, _MAP_WRITE)
        c_uint32.from_address(view).value = process
        self._unmap(view)
        return True

    def holder(self) -> int | None:
        """See `SystemLock`."""
        section = self._open(_MAP_READ, 0, pointer(self._name))
        if not section:
            if self._kernel.last_error() == _NOT_FOUND:
                return None
            raise self._kernel.failed("OpenFileMapping")
        try:
            view = self._view(section, _MAP_READ)
            try:
                return c_uint32.from_address(view).value
            finally:
                self._unmap(view)
        finally:
            self._close(section)

    def release(self) -> None:
        """See `SystemLock`."""
        if self._held is not None:
            self._close(self._held)
            self._held = None

    def _view(self, section: int, access: int) -> int:
        view: int | None = self._map(section, access, 0, 0, _SIZE)
        if not view:
            raise self._kernel.failed("MapViewOfFile")
        return view
