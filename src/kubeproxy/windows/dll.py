"""Functions of the system's libraries. Outside of Windows `load` raises OSError."""

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple

_SYSTEM_FOLDER: Final = 0x800
"""LOAD_LIBRARY_SEARCH_SYSTEM32: a library of the same name elsewhere is not loaded."""

ACCESS_DENIED: Final = 5
ALREADY_EXISTS: Final = 183

_NUMBERS: Final = {
    2: errno.ENOENT,
    ACCESS_DENIED: errno.EACCES,
    87: errno.EINVAL,
    ALREADY_EXISTS: errno.EEXIST,
}
"""Error numbers of C for errors of Windows, as far as any caller compares them."""


class SystemLibrary(NamedTuple):
    """A library.

    Attributes:
        functions: has its functions as attributes.
        last_error: the error of the last function that this thread called.
    """

    functions: Any
    last_error: Callable[[], int]

    def function(self, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
        """A function with its types.

        Args:
            name: its name.
            result: the ctypes type of what it returns; None for nothing.
            arguments: those of its arguments.

        Raises:
            OSError: the library of this version of Windows has none.
        """
        try:
            found: Any = getattr(self.functions, name)
        except AttributeError:
            raise OSError(errno.ENOSYS, f"this version of Windows has no function {name}") from None
        found.restype, found.argtypes = result, arguments
        called: Callable[..., Any] = found
        return called

    def failed(self, call: str) -> OSError:
        """The exception for the last error of this thread.

        Args:
            call: the name of the function that failed.
        """
        return error(self.last_error(), call)


def load(name: str) -> SystemLibrary:
    """A library of the system folder, e.g. "iphlpapi.dll".

    Raises:
        OSError: there is none.
    """
    if sys.platform != "win32" or not hasattr(ctypes, "WinDLL"):
        raise OSError(errno.ENOSYS, f"{name} is a library of Windows")
    return SystemLibrary(
        ctypes.WinDLL(name, use_last_error=True, winmode=_SYSTEM_FOLDER), ctypes.get_last_error
    )


def error(code: int, call: str) -> OSError:
    """The exception for an error of Windows, with its number in the text.

    Args:
        code: the error.
        call: the name of the function that failed.
    """
    number = _NUMBERS.get(code, errno.EIO)
    text = os.strerror(number) if code in _NUMBERS else "failed"
    if sys.platform == "win32" and hasattr(ctypes, "FormatError"):
        text = ctypes.FormatError(code).strip()
    return OSError(number, f"{call}: {text} (Windows error {code})")


def pointer(text: Any) -> ctypes.c_void_p:
    """The pointer to text that `wide` made, which must exist as long as it is used."""
    return ctypes.cast(text, ctypes.c_void_p)


def callback(result: Any, *arguments: Any) -> Any:
    """The type of a function that Windows calls; x64 and ARM64 have one calling convention."""
    return ctypes.CFUNCTYPE(result, *arguments)
