"""BPF maps: what they are made of, and access to their contents.

A hash map is accessed by system calls, many elements at once. An array is mapped into memory: reading and
storing a word needs no system call, and programs see an aligned store of 8 bytes at once.
"""

import contextlib
import mmap
import os
import struct
import weakref
from collections.abc import Iterable, Iterator
from typing import Final, Literal

from msgspec import Struct

from kubeproxy.linux.bpf import btf, syscall
from kubeproxy.linux.bpf.btf import Layout

Kind = Literal["hash", "array", "lru_hash", "sockmap", "sk_storage"]

_KINDS: Final[dict[Kind, int]] = {"hash": 1, "array": 2, "lru_hash": 9, "sockmap": 15, "sk_storage": 24}
_NO_PREALLOC, _MMAPABLE = 1, 1 << 10
_FLAGS: Final[dict[Kind, int]] = {"hash": _NO_PREALLOC, "array": _MMAPABLE, "sk_storage": _NO_PREALLOC}
_WITHOUT_TYPES: Final = frozenset({"sockmap"})

_PIECE: Final = 4096
"""How many elements of a hash map are read or written by one system call."""

WORD: Final = 8
"""The bytes that an array is divided into."""


class MapSpec(Struct, frozen=True, gc=False):
    """What a map is made of.

    Attributes:
        name: its name, 15 bytes at most.
        kind: its kind.
        key: the layout of its keys.
        value: the layout of its values; those of arrays consist of words of 8 bytes.
        entries: how many it can hold; 0 for the storage of sockets.
    """

    name: str
    kind: Kind
    key: Layout
    value: Layout
    entries: int

    def create(self) -> int:
        """Makes it; returns its descriptor.

        Raises:
            OSError: the kernel refused.
        """
        sizes = _KINDS[self.kind], self.key.size, self.value.size, self.entries
        flags = _FLAGS.get(self.kind, 0)
        if self.kind in _WITHOUT_TYPES:
            return syscall.create_map(*sizes, flags=flags, name=self.name)
        blob, (key, value) = btf.layouts(self.key, self.value)
        types = syscall.load_btf(blob)
        try:
            return syscall.create_map(*sizes, flags=flags, name=self.name, types=(types, key, value))
        finally:
            os.close(types)

    def fits(self, info: "MapInfo") -> bool:
        """Whether a map that is there can be used in its place; it may have another number of entries."""
        return (info.kind, info.key, info.value) == (_KINDS[self.kind], self.key.size, self.value.size)


class MapInfo(Struct, frozen=True, gc=False):
    """What the kernel reports of a map: kind, ID, sizes in bytes and the number of entries."""

    kind: int
    number: int
    key: int
    value: int
    entries: int


def info(fd: int) -> MapInfo:
    """What the kernel reports of a map."""
    return MapInfo(*struct.unpack_from("=IIIII", syscall.info(fd)))


class BpfObject:
    """A descriptor of an object of the kernel, closed when it is no longer referred to."""

    def __init__(self, fd: int) -> None:
        """Takes over a descriptor."""
        self.fd = fd
        self._finalizer = weakref.finalize(self, os.close, fd)

    def close(self) -> None:
        """Closes it; may be called twice."""
        self._finalizer()

    def release(self) -> int:
        """Gives up the descriptor, which the caller must close."""
        self._finalizer.detach()
        return self.fd


class HashMap(BpfObject):
    """A hash map."""

    def __init__(self, fd: int) -> None:
        """Takes over a descriptor of one."""
        super().__init__(fd)
        self._info = info(fd)

    @property
    def entries(self) -> int:
        """How many elements it can hold."""
        return self._info.entries

    def get(self, key: bytes) -> bytes | None:
        """The value of a key; None if there is none."""
        return syscall.lookup(self.fd, key, self._info.value)

    def put(self, elements: Iterable[tuple[bytes, bytes]]) -> None:
        """Sets the values of keys.

        Raises:
            OSError: it is full (E2BIG).
        """
        found = list(elements)
        if len(found) == 1:
            syscall.update(self.fd, *found[0])
            return
        for at in range(0, len(found), _PIECE):
            piece = found[at : at + _PIECE]
            keys, values = b"".join([k for k, _ in piece]), b"".join([v for _, v in piece])
            syscall.update_batch(self.fd, keys, values, len(piece))

    def delete(self, keys: Iterable[bytes]) -> None:
        """Deletes keys, as far as they are there."""
        for key in keys:
            syscall.delete(self.fd, key)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every key and value. What other programs change meanwhile may be missing."""
        key, value = self._info.key, self._info.value
        for keys, values in self.pieces():
            for i in range(len(keys) // key):
                yield keys[i * key : (i + 1) * key], values[i * value : (i + 1) * value]

    def pieces(self) -> Iterator[tuple[bytes, bytes]]:
        """The same, many keys and their values at once."""
        token, ended = None, False
        while not ended:
            token, keys, values, ended = syscall.lookup_batch(
                self.fd, token, (self._info.key, self._info.value), _PIECE
            )
            yield keys, values


class WordArray(BpfObject):
    """An array, mapped into memory.

    Attributes:
        words: its contents as words of 8 bytes.
    """

    def __init__(self, fd: int, *, writable: bool = True) -> None:
        """Takes over a descriptor of one.

        Raises:
            OSError: it cannot be mapped.
        """
        super().__init__(fd)
        found = info(fd)
        self.entries = found.entries
        size = found.entries * found.value
        whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._mapped = mmap.mmap(fd, whole, mmap.MAP_SHARED, access)
        self.words: memoryview = memoryview(self._mapped).cast("Q")[: size // WORD]

    def close(self) -> None:
        """See `BpfObject`."""
        self.words.release()
        with contextlib.suppress(BufferError):
            self._mapped.close()
        super().close()
