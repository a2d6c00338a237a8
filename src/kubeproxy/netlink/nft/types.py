"""The data types of nft for the parts of keys and data.

The kernel itself only uses lengths. It stores a number for nft, by which nft prints keys as addresses,
protocols and ports. In the language of nft an integer has no size, so a set with integers is described by
expressions of these sizes (`typeof` instead of `type`), which the kernel stores as userdata. Without this,
`nft -f` could not read a listing.

Sources: nftables' datatype.h, expression.h, meta.h, proto.h; libnftnl's udata.h.
"""

import struct
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple


class Type(NamedTuple):
    """The type of one part.

    Attributes:
        name: its name in nft, as in `type`.
        number: its number in nft.
        size: its size in bytes.
        source: an expression of this type, as in `typeof`.
        userdata: this expression in the form in which nft stores it.
    """

    name: str
    number: int
    size: int
    source: str
    userdata: bytes

    @property
    def padded(self) -> int:
        """The bytes that it occupies in a key."""
        return self.size + 3 & ~3


def tlv(kind: int, value: bytes) -> bytes:
    """An attribute of userdata."""
    return struct.pack("BB", kind, len(value)) + value


def tlvs(userdata: memoryview | bytes) -> dict[int, bytes]:
    """The attributes of userdata."""
    found = {}
    offset = 0
    while offset + 2 <= len(userdata):
        kind, length = userdata[offset : offset + 2]
        found[kind] = bytes(userdata[offset + 2 : offset + 2 + length])
        offset += 2 + length
    return found


def comment(userdata: memoryview | bytes, kind: int = 0) -> str:
    """The comment in userdata; "" if there is none."""
    return tlvs(userdata).get(kind, b"").rstrip(b"\0").decode(errors="replace")


def _words(*values: int) -> bytes:
    return b"".join(tlv(kind, struct.pack("=I", value)) for kind, value in enumerate(values))


def _expression(kind: int, inner: bytes) -> bytes:
    """An expression in userdata: its number (enum expr_types) and its description."""
    return _words(kind) + tlv(1, inner)


COMMENT, SET_COMMENT = 0, 7
_KEY_TYPEOF, _DATA_TYPEOF = 3, 4
_PAYLOAD, _META, _CONCAT, _NUMGEN = 7, 9, 13, 23
_TH, _IP, _IP6 = 11, 12, 13

ADDRESS4: Final = Type("ipv4_addr", 7, 4, "ip daddr", _expression(_PAYLOAD, _words(_IP, 12)))
ADDRESS6: Final = Type("ipv6_addr", 8, 16, "ip6 daddr", _expression(_PAYLOAD, _words(_IP6, 9)))
PROTOCOL: Final = Type("inet_proto", 12, 1, "meta l4proto", _expression(_META, _words(16)))
SERVICE: Final = Type("inet_service", 13, 2, "th dport", _expression(_PAYLOAD, _words(_TH, 2)))
_NAMED = {part.number: part for part in (ADDRESS4, ADDRESS6, PROTOCOL, SERVICE)}

INTEGER: Final = 4
VERDICT: Final = 0xFFFFFF00


def below(modulus: int) -> Type:
    """The type of numbers below `modulus`, in the host's byte order."""
    source = f"numgen random mod {modulus}"
    return Type("integer", INTEGER, 4, source, _expression(_NUMGEN, _words(1, modulus, 0)))


def number(parts: Sequence[Type]) -> int:
    """The number that nft uses for a concatenation: six bits per part. No parts mean a verdict."""
    result = 0 if parts else VERDICT
    for part in parts:
        result = result << 6 | part.number
    return result


def size(parts: Sequence[Type]) -> int:
    """The size of a key or of data in bytes; a verdict has sixteen."""
    return sum(part.padded for part in parts) if parts else 16


def typeof(key: Sequence[Type], data: Sequence[Type]) -> bytes:
    """Userdata that describes a set by expressions; b"" if all its types have names."""
    if not any(part.number == INTEGER for part in (*key, *data)):
        return b""
    described = tlv(_KEY_TYPEOF, _concatenation(key))
    return described + tlv(_DATA_TYPEOF, _concatenation(data)) if data else described


def read(number: int, userdata: memoryview | bytes, *, data: bool = False) -> tuple[Type, ...]:
    """The types of the parts of a set's keys, or of its data.

    Args:
        number: the number that nft uses for their concatenation.
        userdata: the userdata of the set.
        data: return the types of its data instead of its keys.
    """
    if number == VERDICT:
        return ()
    numbers = []
    while number:
        numbers.append(number & 63)
        number >>= 6
    described = tlvs(userdata).get(_DATA_TYPEOF if data else _KEY_TYPEOF)
    parts = [] if described is None else [described]
    if parts and len(numbers) > 1:
        parts = list(tlvs(tlvs(parts[0])[1]).values())
    sources = parts or [b""] * len(numbers)
    return tuple(
        _NAMED.get(n) or _read_below(part) for n, part in zip(reversed(numbers), sources, strict=True)
    )


def _read_below(userdata: bytes) -> Type:
    description = tlvs(tlvs(userdata).get(1, b""))
    return below(int.from_bytes(description.get(1, b""), sys.byteorder))


def _concatenation(parts: Sequence[Type]) -> bytes:
    if len(parts) == 1:
        return parts[0].userdata
    return _expression(_CONCAT, b"".join(tlv(i, part.userdata) for i, part in enumerate(parts)))
