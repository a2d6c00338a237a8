"""Text in memory as Windows has it: UTF-16, terminated by a 0.

It is in buffers of our own, because a `wchar_t` of ctypes has another size on Linux, where this is tested.
"""

import contextlib
import ctypes
from array import array
from ctypes import c_uint16
from typing import Any, Final

_PAGE: Final = 4096
_LONGEST: Final = 64 * 2**20
"""Bytes in a text, at most."""


def wide(text: str) -> Any:
    """A text as Windows takes it: UTF-16 with a 0 at its end. It ends at its first 0."""
    data = text.encode("utf-16-le", "replace") + bytes(2)
    return (c_uint16 * (len(data) // 2)).from_buffer_copy(data)


def narrow(address: int | None) -> str:
    """Copies a text of Windows: UTF-16 that ends with a 0; "" for no address.

    It is read up to the end of a page at a time, because the next page may not exist.
    """
    units = array("H")
    while address and 2 * len(units) < _LONGEST:
        at = address + 2 * len(units)
        part = array("H", ctypes.string_at(at, (_PAGE - at % _PAGE) & ~1 or 2))
        with contextlib.suppress(ValueError):
            del part[part.index(0) :]
            units += part
            break
        units += part
    return units.tobytes().decode("utf-16-le", "replace")
