"""Looks up keys in sets and maps of nf_tables, in the form in which the kernel lists them."""

from collections.abc import Iterator, Sequence
from ipaddress import ip_address, summarize_address_range

from kubeproxy.netlink import wire
from kubeproxy.netlink.nft import messages


class SetContents:
    """A set or map.

    Attributes:
        timeout: so many seconds its elements last; 0 for no limit.
    """

    def __init__(self, flags: int, fields: Sequence[int], timeout: int) -> None:
        self.timeout = timeout
        self._intervals = bool(flags & messages.INTERVAL)
        self._fields = fields
        self._exact: dict[bytes, wire.Attributes] = {}
        self._ranges: list[tuple[bytes, bytes, wire.Attributes]] = []
        self._starts: list[tuple[bytes, bool, wire.Attributes]] = []

    def add(self, element: wire.Attributes) -> None:
        """Takes in an element as the kernel lists it."""
        key = bytes(wire.attributes(element[1])[1])
        data = wire.attributes(element[2]) if 2 in element else {}
        if not self._intervals:
            self._exact[key] = data
        elif 10 in element:
            self._ranges.append((key, bytes(wire.attributes(element[10])[1]), data))
        elif len(self._fields) > 1:
            self._ranges.append((key, key, data))
        else:
            ends = 3 in element and bool(element[3][3] & 1)
            self._starts.append((key, ends, data))

    def verdicts(self) -> Iterator[bytes]:
        """The keys that a verdict is for, as long as they are no ranges."""
        return (key for key, data in self._exact.items() if 2 in data)

    def ranges(self) -> Iterator[tuple[bytes, bytes]]:
        """The first and last keys of ranges, where keys have one part."""
        starts = sorted((key, not ends) for key, ends, _ in self._starts)
        for at, (key, begins) in enumerate(starts):
            following = starts[at + 1 :]
            if begins:
                end = int.from_bytes(following[0][0]) - 1 if following else (1 << 8 * len(key)) - 1
                yield key, end.to_bytes(len(key))

    def find(self, register: bytes) -> wire.Attributes | None:
        """The data of the element for the key at the beginning of some registers; None if there is none."""
        if not self._intervals:
            for size in {len(key) for key in self._exact}:
                if (found := self._exact.get(register[:size])) is not None:
                    return found
            return None
        for low, high, data in self._ranges:
            at = 0
            for size in self._fields or (len(low),):
                padded = size + 3 & ~3
                if not low[at : at + padded] <= register[at : at + padded] <= high[at : at + padded]:
                    break
                at += padded
            else:
                return data
        best: tuple[bytes, bool, wire.Attributes] | None = None
        for key, ends, data in self._starts:
            # Of an end and a beginning at one place the beginning counts.
            if key <= register[: len(key)] and (best is None or (key, not ends) >= (best[0], not best[1])):
                best = key, ends, data
        return None if best is None or best[1] else best[2]


def cidrs(first: bytes, last: bytes) -> Iterator[str]:
    """The ranges of addresses that make up one from a first to a last address."""
    return (str(network) for network in summarize_address_range(ip_address(first), ip_address(last)))


def fields(a: wire.Attributes) -> tuple[int, ...]:
    """The sizes of the parts of a set's keys, in bytes; empty if they have one part."""
    description = wire.attributes(a.get(9, b""))
    if 2 not in description:
        return ()
    return tuple(
        int.from_bytes(wire.attributes(field)[1]) for _, field in wire.attribute_list(description[2])
    )
