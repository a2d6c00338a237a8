"""Counts descriptors, so that those who are here never lack one: new ones wait outside."""

import errno
from collections.abc import Callable
from typing import Final

_FULL: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def is_shortage(error: OSError) -> bool:
    """Whether the system is short of descriptors or memory."""
    return error.errno in _FULL


class Slots:
    """The descriptors there are to be had.

    Attributes:
        limit: how many there are in all.
    """

    def __init__(self, limit: int) -> None:
        self.limit = self._left = limit
        self._waiting: dict[Callable[[], None], None] = {}

    @property
    def wanted(self) -> bool:
        """Somebody waits for some."""
        return bool(self._waiting)

    def take(self, count: int) -> bool:
        """Takes some; returns whether there were as many."""
        if self._left < count:
            return False
        self._left -= count
        return True

    def reserve(self, count: int) -> None:
        """Takes some, however few there are."""
        self._left -= count

    def give_back(self, count: int) -> None:
        """Gives some back; who waited may go on when there are some more left."""
        self._left += count
        if self._waiting and self._left > self.limit // 50:
            self.freed()

    def when_free(self, call: Callable[[], None]) -> None:
        """Calls back, once, when there are some again."""
        self._waiting[call] = None

    def freed(self) -> None:
        """Calls those who wait."""
        waiting, self._waiting = self._waiting, {}
        for call in waiting:
            call()
