"""Jenkins' hash of bytes (lookup3), as the Linux kernel computes it (include/linux/jhash.h).

With Maglev hashing the kernel chooses an endpoint by this hash of the client's address. It is computed here
to say which endpoint a client gets.
"""

import struct
from typing import Final

SEED: Final = 0
"""The initial value of the hash: the same on every node, so that each computes the same hash."""

_START: Final = 0xDEADBEEF
_MASK: Final = 0xFFFFFFFF
_WORDS: Final = struct.Struct("=III")
_REST: Final = struct.Struct("<III")


def jhash(data: bytes, seed: int = SEED) -> int:
    """The hash of some bytes: 32 bits.

    As in the kernel, all words but the last three are read in the byte order of the host.
    """
    a = b = c = (_START + len(data) + seed) & _MASK
    position = 0
    while len(data) - position > _WORDS.size:
        x, y, z = _WORDS.unpack_from(data, position)
        a, b, c = _mix((a + x) & _MASK, (b + y) & _MASK, (c + z) & _MASK)
        position += _WORDS.size
    if position == len(data):
        return c
    x, y, z = _REST.unpack(data[position:].ljust(_REST.size, b"\0"))
    return _final((a + x) & _MASK, (b + y) & _MASK, (c + z) & _MASK)


def scaled(value: int, size: int) -> int:
    """A hash as a number below `size`, as the kernel computes it (reciprocal_scale)."""
    return value * size >> 32


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> (32 - bits)) & _MASK


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    for bits in ((4, 6, 8), (16, 19, 4)):
        a = (a - c) & _MASK ^ _rotated(c, bits[0])
        c = (c + b) & _MASK
        b = (b - a) & _MASK ^ _rotated(a, bits[1])
        a = (a + c) & _MASK
        c = (c - b) & _MASK ^ _rotated(b, bits[2])
        b = (b + a) & _MASK
    return a, b, c


def _final(a: int, b: int, c: int) -> int:
    c = ((c ^ b) - _rotated(b, 14)) & _MASK
    a = ((a ^ c) - _rotated(c, 11)) & _MASK
    b = ((b ^ a) - _rotated(a, 25)) & _MASK
    c = ((c ^ b) - _rotated(b, 16)) & _MASK
    a = ((a ^ c) - _rotated(c, 4)) & _MASK
    b = ((b ^ a) - _rotated(a, 14)) & _MASK
    return ((c ^ b) - _rotated(b, 24)) & _MASK
