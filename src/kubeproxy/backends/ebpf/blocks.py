"""Which slots are in use. Words name blocks of slots; a freed block is not used again for a while.

A program that has read a word may still read its slots. No program runs for a second, so a block is used
again after that time. Sizes are rounded, so that blocks of Services that grow and shrink fit again.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Final, Generic, TypeVar

T = TypeVar("T")

QUARANTINE_SECONDS: Final = 1.0

_STEPS: Final = 4
"""A block is at most a quarter larger than what it is for."""


class FullError(Exception):
    """There is no room: the maps must grow."""


@lru_cache(maxsize=1024)
def rounded(count: int) -> int:
    """The size of a block for so many slots."""
    if count <= _STEPS:
        return count
    step = 1 << max(0, count.bit_length() - 3)
    return -(-count // step) * step


class Quarantine(Generic[T]):
    """Things that were freed, until they may be used again."""

    def __init__(self, now: Callable[[], float]) -> None:
        """Makes an empty one; `now` is the time in seconds."""
        self._now = now
        self._items: deque[tuple[float, T]] = deque()

    def add(self, item: T, freed: float | None = None) -> None:
        """Something is freed, or was at a time that is not later than that of the last one."""
        at = self._now() if freed is None else freed
        self._items.append((at + QUARANTINE_SECONDS, item))

    def released(self) -> Sequence[T]:
        """What may be used again; each is returned once."""
        items = self._items
        if not items or items[0][0] > (now := self._now()):
            return ()
        found = []
        while items and items[0][0] <= now:
            found.append(items.popleft()[1])
        return found


class Blocks:
    """Allocates blocks of slots."""

    def __init__(self, slots: int, now: Callable[[], float]) -> None:
        """All slots are free.

        Args:
            slots: how many there are.
            now: the time in seconds.
        """
        self._slots = slots
        self._next = 0
        self._free: dict[int, list[int]] = {}
        self._freed: Quarantine[tuple[int, int]] = Quarantine(now)

    def adopt(self, used: Iterable[tuple[int, int]], freed: float) -> None:
        """At a start: these blocks, base and number of slots, are in use.

        Args:
            used: the blocks.
            freed: when the others were freed at the latest.

        Raises:
            ValueError: two of them overlap, or one is outside.
        """
        at = self._next
        for base, count in sorted(used):
            if base < at or base + rounded(count) > self._slots:
                raise ValueError(f"the block at slot {base} overlaps another one")
            self._free_between(at, base, freed)
            at = base + rounded(count)
        self._next = at

    def take(self, count: int) -> int:
        """The first slot of a block for so many.

        Raises:
            FullError: there is no room.
        """
        size = rounded(count)
        for base, freed in self._freed.released():
            self._free.setdefault(freed, []).append(base)
        if found := self._free.get(size):
            return found.pop()
        base = self._next
        if base + size > self._slots:
            return self._split(size)
        self._next += size
        return base

    def _split(self, size: int) -> int:
        """A part of a larger free block; the rest of it stays free."""
        larger = min((each for each, bases in self._free.items() if each > size and bases), default=0)
        if not larger:
            raise FullError
        base = self._free[larger].pop()
        start, end = base + size, base + larger
        while start < end:
            rest = _rounded_down(end - start)
            self._free.setdefault(rest, []).append(start)
            start += rest
        return base

    def give(self, base: int, count: int) -> None:
        """A block is not used any more."""
        self._freed.add((base, rounded(count)))

    def _free_between(self, start: int, end: int, freed: float) -> None:
        while start < end:
            size = _rounded_down(end - start)
            self._freed.add((start, size), freed)
            start += size


def _rounded_down(count: int) -> int:
    """The largest size of a block that is not above a number."""
    if count <= _STEPS:
        return count
    step = 1 << max(0, count.bit_length() - 3)
    return count // step * step
