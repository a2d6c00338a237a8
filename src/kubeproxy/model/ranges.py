"""Ranges of clients without those that are denied: a list of who is allowed, which every mode can place."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from kubeproxy.api.addresses import BITS, IPV4, IPV6, Family, pack, unpack

NO_CLIENT: Final[Mapping[Family, str]] = {IPV4: "0.0.0.0/32", IPV6: "::/128"}
"""What is left if all are denied: the source of no connection."""

_Span = tuple[int, int]
"""The first address of a range as a number, and the first one behind it."""


def without(allowed: tuple[str, ...], denied: Sequence[str], family: Family) -> tuple[str, ...]:
    """The allowed ranges without the denied ones, as disjoint canonical ranges.

    Args:
        allowed: ranges; none for all addresses.
        denied: ranges. Without any, the result is `allowed`.
        family: the family of all ranges.
    """
    if not denied:
        return allowed
    bits = BITS[family]
    spans = _merged(_span(cidr, bits) for cidr in allowed) if allowed else [(0, 1 << bits)]
    for first, last in _merged(_span(cidr, bits) for cidr in denied):
        spans = [
            piece
            for begin, end in spans
            for piece in ((begin, min(end, first)), (max(begin, last), end))
            if piece[0] < piece[1]
        ]
    found = [cidr for begin, end in spans for cidr in _cidrs(begin, end, bits)]
    return tuple(found) or (NO_CLIENT[family],)


def _span(cidr: str, bits: int) -> _Span:
    network, _, length = cidr.partition("/")
    first = int.from_bytes(pack(network))
    return first, first + (1 << (bits - int(length)))


def _merged(spans: Iterable[_Span]) -> list[_Span]:
    """Spans in their order, those that touch or overlap made one."""
    found: list[_Span] = []
    for first, last in sorted(spans):
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], last)
        else:
            found.append((first, last))
    return found


def _cidrs(begin: int, end: int, bits: int) -> Iterator[str]:
    """The fewest ranges that are together a span."""
    while begin < end:
        size = begin & -begin or 1 << bits
        while size > end - begin:
            size >>= 1
        yield f"{unpack(begin.to_bytes(bits // 8))}/{bits - size.bit_length() + 1}"
        begin += size
