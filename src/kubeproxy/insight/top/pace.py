"""How often a source may be read: its share of a processor is limited."""

import os
from collections.abc import Callable
from typing import Final

SHARE: Final = 0.003
"""The share of a processor that each of the lists may take."""


def processor_seconds() -> float:
    """The processor time of this process and of the programs it ran."""
    return sum(os.times()[:4])


class Pace:
    """When something may be read again: its share of a processor is limited."""

    def __init__(self, cost: Callable[[], float]) -> None:
        self._cost = cost
        self._due = 0.0
        self.at: float | None = None

    def due(self, now: float) -> bool:
        """Whether it may be read."""
        return now >= self._due

    def read(self, work: Callable[[], None], now: float) -> None:
        """Reads it."""
        before = self._cost()
        work()
        self.at = now
        self._due = now + (self._cost() - before) / SHARE
