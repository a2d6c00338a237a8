"""The maps of a family as one value: those of the kernel, or the same in memory."""

import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from kubeproxy.backends.ebpf.layout import Capacity, FamilyLayout
from kubeproxy.linux.bpf.maps import BpfObject, HashMap, WordArray

HASHES = ("fronts", "hosts", "members")
ARRAYS = ("words", "slots", "counts", "timeouts")
LASTING = ("sticky", "reverse", "peers")
"""Maps that only programs write; they keep their contents when the others are replaced by larger ones."""


class HashTable(Protocol):
    """A hash map; see `linux.bpf.maps.HashMap`."""

    def get(self, key: bytes) -> bytes | None:
        """The value of a key."""

    def put(self, elements: Iterable[tuple[bytes, bytes]]) -> None:
        """Sets the values of keys."""

    def delete(self, keys: Iterable[bytes]) -> None:
        """Deletes keys."""

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every key and value."""

    def pieces(self) -> Iterator[tuple[bytes, bytes]]:
        """The same, many keys and their values at once."""


class FrontMaps:
    """The maps of a family.

    Attributes:
        layout: what they are.
        capacity: how much they hold.
        fronts, hosts, members: hash maps; see `layout`.
        words, counts, timeouts: arrays of words of 8 bytes.
        slots: bytes; cells: the same as words of 8 bytes.
    """

    fronts: HashTable
    hosts: HashTable
    members: HashTable
    words: memoryview
    slots: memoryview
    cells: memoryview
    counts: memoryview
    timeouts: memoryview

    def __init__(self, layout: FamilyLayout, capacity: Capacity) -> None:
        """Without maps, which subclasses set."""
        self.layout = layout
        self.capacity = capacity

    def block(self, base: int, count: int) -> bytes:
        """Some slots."""
        size = self.layout.slot
        return self.slots[base * size : (base + count) * size].tobytes()

    def endpoints(self, base: int, count: int) -> list[bytes]:
        """Some slots, each by itself."""
        return self.split(self.block(base, count))

    def split(self, slots: bytes) -> list[bytes]:
        """Slots, each by itself."""
        size = self.layout.slot
        return [slots[at : at + size] for at in range(0, len(slots), size)]

    def digest(self) -> int:
        """A checksum of everything that only we write: equal if nothing was changed."""
        found = 0
        for words in (self.words, self.cells, self.timeouts):
            found = zlib.crc32(words, found)
        for table in (self.fronts, self.hosts):
            for keys, values in table.pieces():
                found = zlib.crc32(values, zlib.crc32(keys, found))
        for keys, _ in self.members.pieces():  # programs count in the values
            found = zlib.crc32(keys, found)
        return found

    def close(self) -> None:
        """Closes them."""


class KernelMaps(FrontMaps):
    """Those of the kernel.

    Attributes:
        objects: their descriptors, by name.
    """

    def __init__(
        self, layout: FamilyLayout, objects: Mapping[str, BpfObject], *, writable: bool = True
    ) -> None:
        """Takes over descriptors.

        Raises:
            OSError: an array cannot be mapped.
        """
        self.objects = dict(objects)
        entries = {}
        for name in HASHES:
            self.objects[name] = table = HashMap(objects[name].release())
            setattr(self, name, table)
        for name in ARRAYS:
            self.objects[name] = mapped = WordArray(objects[name].release(), writable=writable)
            entries[name] = mapped.entries
            setattr(self, name, mapped.words)
        self.cells, self.slots = self.slots, self.slots.cast("B")
        tables = {name: item.entries for name, item in self.objects.items() if isinstance(item, HashMap)}
        super().__init__(
            layout,
            Capacity(
                tables["fronts"],
                min(entries["words"] // 2, entries["timeouts"]),
                min(entries["slots"], entries["counts"]),
                tables["members"],
                tables["hosts"],
            ),
        )

    def close(self) -> None:
        """See `FrontMaps`."""
        for item in self.objects.values():
            item.close()


class MemoryMaps(FrontMaps):
    """The same in memory, empty."""

    def __init__(self, layout: FamilyLayout, capacity: Capacity) -> None:
        """Makes them."""
        super().__init__(layout, capacity)
        self.fronts, self.hosts, self.members = MemoryTable(), MemoryTable(), MemoryTable()
        self.words = _zeros(2 * capacity.ports)
        self.timeouts = _zeros(capacity.ports)
        self.cells = _zeros(capacity.slots * layout.slot // 8)
        self.slots = self.cells.cast("B")
        self.counts = _zeros(capacity.slots)


class MemoryTable:
    """A hash map in memory.

    Attributes:
        elements: its contents.
        writes: how many changes were made.
    """

    def __init__(self) -> None:
        """Makes an empty one."""
        self.elements: dict[bytes, bytes] = {}
        self.writes = 0

    def get(self, key: bytes) -> bytes | None:
        """See `HashTable`."""
        return self.elements.get(key)

    def put(self, elements: Iterable[tuple[bytes, bytes]]) -> None:
        """See `HashTable`."""
        for key, value in elements:
            self.elements[key] = value
            self.writes += 1

    def delete(self, keys: Iterable[bytes]) -> None:
        """See `HashTable`."""
        for key in keys:
            self.writes += self.elements.pop(key, None) is not None

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """See `HashTable`."""
        return iter(list(self.elements.items()))

    def pieces(self) -> Iterator[tuple[bytes, bytes]]:
        """See `HashTable`."""
        return iter([(b"".join(self.elements), b"".join(self.elements.values()))])


def _zeros(count: int) -> memoryview:
    return memoryview(array("Q", bytes(8 * count)))
