"""Expressions, the instructions of a rule.

The expressions of a rule are executed in order for each packet. Each reads and writes registers, and one that
does not match ends the rule. There are sixteen registers of four bytes, numbered from 0 here; a longer value
also uses the following ones.
"""

import struct
from typing import Final

from kubeproxy.netlink.wire import attribute, be32, be64, nested, text

_FIRST_REGISTER = 8  # NFT_REG32_00
_VERDICT_REGISTER = 0

# enum nft_meta_keys
META_MARK: Final = 3
META_INPUT_NAME: Final = 6
META_TRACE: Final = 12
META_L4PROTO: Final = 16

# enum nft_ct_keys
CT_STATE: Final = 0
CT_STATUS: Final = 2

CT_NEW: Final = 8
CT_CONFIRMED: Final = 8
CT_DNAT: Final = 0x20

NETWORK_HEADER: Final = 1
TRANSPORT_HEADER: Final = 2

EQUAL, NOT_EQUAL, BELOW = 0, 1, 2
_RANDOM_FULLY = 0x10
_NUMGEN_RANDOM = 1
_JENKINS = 0
_TO_NETWORK_ORDER = 1
_NAT_DESTINATION = 1
_NAT_MAP_ADDRESS_PORT = 0x3
_FIB_SOURCE, _FIB_DESTINATION = 0x1, 0x2
_FIB_TYPE = 3
LOCAL: Final = 2
"""RTN_LOCAL: an address of this host."""

_REJECT_ICMP_UNREACHABLE = 0
_PORT_UNREACHABLE = {2: 3, 10: 4}


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *attributes))


def _register(kind: int, register: int) -> bytes:
    return be32(kind, _FIRST_REGISTER + register)


def payload(register: int, base: int, offset: int, length: int) -> bytes:
    """Loads bytes of a packet header."""
    return _expression("payload", _register(1, register), be32(2, base), be32(3, offset), be32(4, length))


def meta(register: int, key: int) -> bytes:
    """Loads metadata of the packet."""
    return _expression("meta", be32(2, key), _register(1, register))


def set_meta(register: int, key: int) -> bytes:
    """Sets metadata of the packet."""
    return _expression("meta", be32(2, key), _register(3, register))


def ct(register: int, key: int) -> bytes:
    """Loads data of the tracked connection."""
    return _expression("ct", be32(2, key), _register(1, register))


def immediate(register: int, value: bytes) -> bytes:
    """Loads a constant."""
    return _expression("immediate", _register(1, register), nested(2, attribute(1, value)))


def verdict(data: bytes) -> bytes:
    """Ends the rule with a verdict of `messages.verdict`."""
    return _expression("immediate", be32(1, _VERDICT_REGISTER), nested(2, data))


def compare(register: int, value: bytes, operator: int = EQUAL) -> bytes:
    """Continues only if a register has this value, or with NOT_EQUAL if it has another one.

    With BELOW if it has a smaller one; both are in network byte order.
    """
    return _expression("cmp", _register(1, register), be32(2, operator), nested(3, attribute(1, value)))


def bitwise(register: int, mask: bytes, xor: bytes) -> bytes:
    """Changes a register to (register & mask) ^ xor."""
    return _expression(
        "bitwise",
        _register(1, register),
        _register(2, register),
        be32(3, len(mask)),
        nested(4, attribute(1, mask)),
        nested(5, attribute(1, xor)),
        be32(6, 0),
    )


def counter() -> bytes:
    """Counts packets and bytes, from 0 on."""
    return _expression("counter", be64(1, 0), be64(2, 0))


def limit(per_second: int) -> bytes:
    """Continues only for so many packets per second."""
    return _expression("limit", be64(1, per_second), be64(2, 1), be32(3, per_second))


def number(register: int, modulus: int) -> bytes:
    """Loads a random number below a modulus, in the host's byte order."""
    return _expression(
        "numgen", _register(1, register), be32(2, modulus), be32(3, _NUMGEN_RANDOM), be32(4, 0)
    )


def to_network_order(register: int) -> bytes:
    """Converts a number in the host's byte order, for BELOW."""
    return _expression(
        "byteorder",
        _register(1, register),
        _register(2, register),
        be32(3, _TO_NETWORK_ORDER),
        be32(4, 4),
        be32(5, 4),
    )


def jenkins(register: int, source: int, length: int, modulus: int, seed: int) -> bytes:
    """Loads Jenkins' hash of some bytes, scaled to a number below a modulus, in the host's byte order."""
    return _expression(
        "hash",
        _register(1, source),
        _register(2, register),
        be32(3, length),
        be32(4, modulus),
        be32(5, seed),
        be32(7, _JENKINS),
    )


def lookup(name: str, register: int, result: int | None = None, *, inverted: bool = False) -> bytes:
    """Continues only if a set or map contains the key in a register.

    Args:
        name: the set or map.
        register: the first register of the key.
        result: the first register for the data of a map; None for a set.
        inverted: continue only if the set does not contain the key.
    """
    attributes = [text(1, name), _register(2, register)]
    if result is not None:
        attributes.append(_register(3, result))
    if inverted:
        attributes.append(be32(5, 1))
    return _expression("lookup", *attributes)


def lookup_verdict(name: str, register: int) -> bytes:
    """Executes the verdict of the key in a register; continues if the map does not contain the key."""
    return _expression("lookup", text(1, name), _register(2, register), be32(3, _VERDICT_REGISTER))


def update(name: str, register: int) -> bytes:
    """Adds the key in a register to a dynamic set, or restarts its timeout."""
    return _expression("dynset", text(1, name), be32(3, 1), _register(4, register))


def fib_type(register: int, *, destination: bool) -> bytes:
    """Loads the type of the packet's source or destination address, for example LOCAL."""
    flags = _FIB_DESTINATION if destination else _FIB_SOURCE
    return _expression("fib", _register(1, register), be32(2, _FIB_TYPE), be32(3, flags))


def dnat(family: int, address: int, port: int) -> bytes:
    """Translates the destination of the connection to the address and port in these registers."""
    return _expression(
        "nat",
        be32(1, _NAT_DESTINATION),
        be32(2, family),
        _register(3, address),
        _register(4, address),
        _register(5, port),
        _register(6, port),
        be32(7, _NAT_MAP_ADDRESS_PORT),
    )


def masquerade() -> bytes:
    """Translates the source of the connection to an address of this host and a random port."""
    return _expression("masq", be32(1, _RANDOM_FULLY))


def reject(family: int) -> bytes:
    """Rejects the packet with ICMP "port unreachable"."""
    return _expression(
        "reject", be32(1, _REJECT_ICMP_UNREACHABLE), attribute(2, struct.pack("B", _PORT_UNREACHABLE[family]))
    )
