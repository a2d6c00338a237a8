"""Counts descriptors, so that existing connections never lack one.

When all are in use, new connections wait in the kernel.
"""

import errno
from collections.abc import Callable
from typing import Final

_FULL: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def is_shortage(error: OSError) -> bool:
    """Whether an error means that the system has no more descriptors or memory."""
    return error.errno in _FULL


class Slots:
    """The descriptors that may be used.

    Attributes:
        limit: their number.
    """

    def __init__(self, limit: int) -> None:
        self.limit = self._left = limit
        self._waiting: dict[Callable[[], None], None] = {}

    @property
    def wanted(self) -> bool:
        """Whether a listener waits for descriptors."""
        return bool(self._waiting)

    def take(self, count: int) -> bool:
        """Takes some; returns False, without taking any, if there are fewer."""
        if self._left < count:
            return False
        self._left -= count
        return True

    def reserve(self, count: int) -> None:
        """Takes some, even if there are fewer; then none can be taken until enough are given back."""
        self._left -= count

    def give_back(self, count: int) -> None:
        """Gives some back; those that wait are called when at least 2 % of the limit is free."""
        self._left += count
        if self._waiting and self._left > self.limit // 50:
            self.freed()

    def when_free(self, call: Callable[[], None]) -> None:
        """Calls back, once, when descriptors are free again."""
        self._waiting[call] = None

    def freed(self) -> None:
        """Calls those that wait."""
        waiting, self._waiting = self._waiting, {}
        for call in waiting:
            call()
