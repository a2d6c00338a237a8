"""Elements of one family's sets and maps, put together from precomputed pieces.

An element's bytes are also its identity: what we pack is equal, to the byte, to what the kernel lists, so
sets of bytes are compared and nothing is ever decoded. That is why attributes are here in the kernel's order
and without the NESTED flag.

    element    len 1 | key: len 1 | len 1 | bytes | key end: len 10 | len 1 | bytes
               | data: len 2 | len 1 | bytes | counter | flags | userdata
    data of a verdict map:  len 2 | len 2 | code: len 1 | be32 | chain: len 2 | text

A front is its key's bytes: address, protocol and port, each padded to four. A slot is a number in the host's
order.
"""

import struct
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache

from kubeproxy.api.addresses import BITS, Family, pack
from kubeproxy.netlink.nft import objects
from kubeproxy.netlink.nft.messages import GOTO
from kubeproxy.netlink.wire import attribute, be32, text

_HEADER = struct.Struct("=HH")
PROTOCOLS = {"TCP": b"\x06\0\0\0", "UDP": b"\x11\0\0\0", "SCTP": b"\x84\0\0\0"}
_PORT = struct.Struct(">H2x")
_SLOTS = tuple(n.to_bytes(4, sys.byteorder) for n in range(4096))
_LONGEST_COMMENT = 127


def _nest(kind: int, *values: bytes) -> bytes:
    """A nested attribute as the kernel writes it: without the flag."""
    value = b"".join(values)
    return _HEADER.pack(4 + len(value), kind) + value


def slot(number: int) -> bytes:
    """A slot's part of a key."""
    return _SLOTS[number] if number < len(_SLOTS) else struct.pack("=I", number)


def front(address: str, protocol: str, port: int) -> bytes:
    """A destination's key."""
    return pack(address) + PROTOCOLS[protocol] + _PORT.pack(port)


def node_port(protocol: str, port: int) -> bytes:
    """A node port's key."""
    return PROTOCOLS[protocol] + _PORT.pack(port)


def member(key: bytes, comment: str = "") -> bytes:
    """An element of a set."""
    return _nest(1, _nest(1, attribute(1, key)), _comment(comment))


def between(first: bytes, last: bytes) -> bytes:
    """An element of an interval set whose keys have several parts: from one key to another, both in it."""
    return _nest(1, _nest(1, attribute(1, first)), _nest(10, attribute(1, last)))


def intervals(front: bytes, ends: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """The same as `between` for many intervals of addresses, first and last, of one front."""
    head = middle = b""
    for first, last in ends:
        if not head:
            size = len(front) + len(first)
            model = between(bytes(size), bytes(size))
            head, middle = model[:12] + front, model[12 + size : 20 + size] + front
        yield head + first + middle + last


def boundary(key: bytes, *, end: bool) -> bytes:
    """One end of an interval in a set whose keys have one part; the end is not in it."""
    return _nest(1, _nest(1, attribute(1, key)), be32(3, 1) if end else b"")


def goto(key: bytes, chain: str, comment: str = "") -> bytes:
    """An element of a verdict map."""
    return _nest(1, _nest(1, attribute(1, key)), _goto(chain), _comment(comment))


@lru_cache(1024)
def _goto(chain: str) -> bytes:
    return _nest(2, _nest(2, be32(1, GOTO), text(2, chain)))


def _comment(text: str) -> bytes:
    if not text:
        return b""
    value = text.encode()[:_LONGEST_COMMENT] + b"\0"
    return attribute(6, bytes((0, len(value))) + value)


class EndpointElements:
    """Elements that map a front and a slot to an endpoint, for fronts of one length."""

    def __init__(self, family: Family, key_bytes: int, *, counted: bool = False) -> None:
        """Precomputes what all elements have in common.

        Args:
            family: of the endpoints.
            key_bytes: length of a front.
            counted: each has a counter.
        """
        key, data = key_bytes + 4, BITS[family] // 8 + 4
        self._end = objects.COUNTER if counted else b""
        self._head = (
            _HEADER.pack(4 + 4 + 4 + key + 4 + 4 + data + len(self._end), 1)
            + _HEADER.pack(8 + key, 1)
            + _HEADER.pack(4 + key, 1)
        )
        self._middle = _HEADER.pack(8 + data, 2) + _HEADER.pack(4 + data, 1)

    def tail(self, address: str, port: int) -> bytes:
        """An endpoint's part of its elements."""
        return self._middle + pack(address) + _PORT.pack(port) + self._end

    def elements(self, key: bytes, tails: list[bytes]) -> list[bytes]:
        """The elements of a front, for endpoints in the order of their slots."""
        head = self._head + key
        if len(tails) <= len(_SLOTS):
            return [head + number + tail for number, tail in zip(_SLOTS, tails)]  # noqa: B905 as many slots as endpoints
        return [head + slot(i) + tail for i, tail in enumerate(tails)]
