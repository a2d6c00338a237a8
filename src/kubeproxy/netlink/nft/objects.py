"""Reads the objects of one table from the kernel.

Elements are returned as the bytes of the kernel, without decoding, so that 100,000 are read in a third of a
second.
"""

import errno
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from kubeproxy.netlink import wire
from kubeproxy.netlink.nft import types
from kubeproxy.netlink.nft.kernel import NftKernel
from kubeproxy.netlink.nft.messages import (
    GETCHAIN,
    GETRULE,
    GETSET,
    GETSETELEM,
    GETTABLE,
    INET,
    IP,
    IP6,
    RULE_DIGEST,
    Hook,
    TableName,
)

_LENGTH = struct.Struct("=H")


def _nest(kind: int, *values: bytes) -> bytes:
    """A nested attribute as the kernel lists it: without the flag."""
    return wire.attribute(kind, b"".join(values))


_NAME = b"counter\0"
COUNTER = _nest(7, wire.text(1, "counter"), _nest(2, wire.be64(1, 0), wire.be64(2, 0)))
"""The counter of an element, as the kernel lists it before any packet. Its values are bytes and packets."""

_COUNTED = re.compile(re.escape(COUNTER[:24]) + rb".{8}" + re.escape(COUNTER[32:36]) + rb"(.{8})", re.DOTALL)


class ChainInfo(NamedTuple):
    """A chain. `hook` is None unless it is a base chain."""

    name: str
    hook: Hook | None


class RuleInfo(NamedTuple):
    """A rule: its chain, its digest (b"" if another program wrote it), its handle."""

    chain: str
    digest: bytes
    handle: int


class SetInfo(NamedTuple):
    """A set or map: its flags, and nft's numbers of the types of its keys and data (0 for a set)."""

    name: str
    flags: int
    key_type: int
    data_type: int
    timeout: int


class AnyChain(NamedTuple):
    """A chain of any table.

    Attributes:
        family: the number of its family: INET, IP or IP6.
        table: the name of its table.
        name: its name.
        hook: where it is called; None unless it is a base chain.
        drops: its policy is to drop.
    """

    family: int
    table: str
    name: str
    hook: Hook | None
    drops: bool


def all_chains(kernel: NftKernel) -> list[AnyChain]:
    """The chains of all tables of IPv4, IPv6 and both."""
    result = []
    for family in (INET, IP, IP6):
        for body in kernel.dump_all(GETCHAIN, family):
            found = wire.attributes(body)
            hook = _hook(found)
            drops = hook is not None and 5 in found and not int.from_bytes(found[5])
            result.append(AnyChain(family, wire.string(found[1]), wire.string(found[3]), hook, drops))
    return result


def _hook(found: wire.Attributes) -> Hook | None:
    """Where the chain with these attributes hooks in."""
    if 4 not in found:
        return None
    place = wire.attributes(found[4])
    return Hook(wire.string(found[7]), int.from_bytes(place[1]), struct.unpack(">i", place[2])[0])


def table_comment(kernel: NftKernel, table: TableName) -> str | None:
    """The comment of a table; None if there is no such table."""
    for body in kernel.dump_all(GETTABLE, table.family):
        found = wire.attributes(body)
        if wire.string(found[1]) == table.name:
            return types.comment(found.get(6, b""))
    return None


def chains(kernel: NftKernel, table: TableName) -> dict[str, ChainInfo]:
    """The chains of a table by name."""
    result = {}
    for body in kernel.dump_all(GETCHAIN, table.family):
        found = wire.attributes(body)
        if wire.string(found[1]) != table.name:
            continue
        name = wire.string(found[3])
        result[name] = ChainInfo(name, _hook(found))
    return result


def has_chain(kernel: NftKernel, table: TableName, name: str) -> bool:
    """Whether a table has a chain. Only this chain is requested from the kernel.

    Raises:
        NetlinkError: the kernel refused.
    """
    try:
        return bool(kernel.ask(GETCHAIN, table.family, wire.text(1, table.name) + wire.text(3, name)))
    except wire.NetlinkError as e:
        if e.errno == errno.ENOENT:
            return False
        raise


def rules(kernel: NftKernel, table: TableName) -> Iterator[RuleInfo]:
    """The rules of a table, grouped by chain, in their order."""
    for body in kernel.dump(GETRULE, table.family, wire.text(1, table.name)):
        found = wire.attributes(body)
        if wire.string(found[1]) == table.name:
            yield RuleInfo(
                wire.string(found[2]),
                types.tlvs(found.get(7, b"")).get(RULE_DIGEST, b""),
                int.from_bytes(found[3]),
            )


def sets(kernel: NftKernel, table: TableName) -> dict[str, SetInfo]:
    """The named sets and maps of a table by name."""
    result = {}
    for body in kernel.dump(GETSET, table.family, wire.text(1, table.name)):
        found = wire.attributes(body)
        if wire.string(found[1]) != table.name:
            continue
        name = wire.string(found[2])
        result[name] = SetInfo(
            name,
            int.from_bytes(found[3]) if 3 in found else 0,
            int.from_bytes(found[4]),
            int.from_bytes(found[6]) if 6 in found else 0,
            int.from_bytes(found[11]) if 11 in found else 0,
        )
    return result


def elements(kernel: NftKernel, table: TableName, name: str) -> Iterator[bytes]:
    """The elements of a set or map, each as the attribute with which it would be added; counters are at 0."""
    for listed in _listings(kernel, table, name):
        yield from split(_uncounted(listed))


def counted_elements(kernel: NftKernel, table: TableName, name: str) -> Iterator[bytes]:
    """The elements of a set or map as `elements` returns them, but counters have their values."""
    for listed in _listings(kernel, table, name):
        yield from split(listed)


def _listings(kernel: NftKernel, table: TableName, name: str) -> Iterator[bytes]:
    for body in kernel.dump(GETSETELEM, table.family, wire.text(1, table.name) + wire.text(2, name)):
        listed = wire.attributes(body).get(3)
        if listed is not None:
            yield bytes(listed)


def _uncounted(listed: bytes) -> bytes:
    """A list of elements whose counters are at 0."""
    return _COUNTED.sub(COUNTER, listed) if _NAME in listed else listed


def packets(element: bytes, at: int) -> int | None:
    """The packets that the counter of an element has counted; None if it has no counter.

    Args:
        element: an element of `counted_elements`.
        at: where in it the counter is.
    """
    found = _COUNTED.match(element, at)
    return None if found is None else int.from_bytes(found[1])


def element(
    kernel: NftKernel, table: TableName, name: str, key: bytes, *, counted: bool = False
) -> bytes | None:
    """One element of a set or map, found by its key; of an interval set the element that holds the key.

    Args:
        kernel: the kernel.
        table: the table.
        name: the set.
        key: an element with this key, as the attribute it would be added by.
        counted: its counter has its value; otherwise it is at 0.

    Returns:
        The element as `elements` has it; None if there is none, or no such set.

    Raises:
        NetlinkError: the kernel refused.
    """
    body = wire.text(1, table.name) + wire.text(2, name) + wire.nested(3, key)
    try:
        for reply in kernel.ask(GETSETELEM, table.family, body):
            listed = wire.attributes(reply).get(3)
            if listed is not None:
                found = bytes(listed)
                return split(found if counted else _uncounted(found))[0]
    except wire.NetlinkError as e:
        if e.errno != errno.ENOENT:
            raise
    return None


def split(listed: bytes) -> list[bytes]:
    """Splits a list attribute into its elements."""
    end = len(listed)
    if not end:
        return []
    size = _LENGTH.unpack_from(listed)[0] + 3 & ~3
    count, rest = divmod(end, size)
    if not rest and listed[0::size] + listed[1::size] == listed[:1] * count + listed[1:2] * count:
        # All elements have the same size, which is nearly always so.
        return [listed[at : at + size] for at in range(0, end, size)]
    found, at = [], 0
    while at < end:
        following = at + _LENGTH.unpack_from(listed, at)[0] + 3 & ~3
        found.append(listed[at:following])
        at = following
    return found


def key_of(element: bytes) -> bytes:
    """The part of an element that identifies it in its set: its key, and for intervals its end."""
    (length,) = _LENGTH.unpack_from(element, 4)
    end = 4 + length
    # NFTA_SET_ELEM_KEY_END, or the FLAGS that make it the end of an interval.
    if element[end + 2 : end + 4] in {b"\x0a\0", b"\x03\0"}:
        end += _LENGTH.unpack_from(element, end)[0]
    return element[4:end]
