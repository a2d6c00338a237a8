"""Registers of nf_tables while a rule is evaluated: 64 bytes, and what expressions do with values in them."""

import operator
import sys
from typing import Final

from kubeproxy.insight.reference.outcome import UnknownRuleError
from kubeproxy.model.jenkins import jhash, scaled
from kubeproxy.netlink import wire

_COMPARE: Final = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)
_FIRST_REGISTER, _LARGE_REGISTER = 8, 16


def hashed(a: wire.Attributes, registers: bytes) -> bytes:
    """The result of a hash expression.

    Raises:
        UnknownRuleError: it is another hash, or its seed is not known.
    """
    if 5 not in a or word(a.get(7, b"")):
        raise UnknownRuleError("hash that is not Jenkins' with a known seed")
    value = jhash(value_at(registers, a[1], word(a[3])), word(a[5]))
    return scaled(value, word(a[4])).to_bytes(4, sys.byteorder)


def swapped(value: bytes) -> bytes:
    """A number in the host's byte order, in network byte order."""
    return int.from_bytes(value, sys.byteorder).to_bytes(len(value))


def holds(a: wire.Attributes, registers: bytes) -> bool:
    """Whether a comparison holds."""
    constant = bytes(wire.attributes(a[3])[1])
    value = value_at(registers, a[1], len(constant))
    return bool(_COMPARE[word(a[2])](value, constant))


def bitwise(a: wire.Attributes, registers: bytes) -> bytes:
    """The registers after a bitwise expression.

    Raises:
        UnknownRuleError: it shifts.
    """
    if 6 in a and word(a[6]):
        raise UnknownRuleError("bitwise shift")
    mask, xor = (bytes(wire.attributes(a[number])[1]) for number in (4, 5))
    value = value_at(registers, a[1], len(mask))
    changed = bytes(v & m ^ c for v, m, c in zip(value, mask, xor, strict=True))
    return load(registers, a[2], changed)


def word(value: memoryview | bytes) -> int:
    """A number in an attribute."""
    return int.from_bytes(value)


def offset(register: memoryview) -> int:
    """Where a register begins, in bytes; the large ones of the old numbering take four of the small ones."""
    number = word(register)
    return 4 * (number - _FIRST_REGISTER) if number >= _FIRST_REGISTER else _LARGE_REGISTER * (number - 1)


def value_at(registers: bytes, register: memoryview, size: int) -> bytes:
    """So many bytes from a register on."""
    start = offset(register)
    return registers[start : start + size]


def load(registers: bytes, register: memoryview, value: bytes) -> bytes:
    """The registers with a value in one and those after it; what is left of its last one is zero."""
    start = offset(register)
    padded = value.ljust(len(value) + 3 & ~3, b"\0")
    return registers[:start] + padded + registers[start + len(padded) :]
