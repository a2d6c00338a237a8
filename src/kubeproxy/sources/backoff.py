"""Exponential back-off with jitter, with client-go's values for watches."""

from collections.abc import Callable
from typing import Final

BASE_SECONDS: Final = 0.8
CAP_SECONDS: Final = 30.0


class Backoff:
    """Delays that double from 0.8 s to 30 s, each multiplied by a random factor from 1 to 2.

    Because of the jitter the nodes of a cluster, which all lose an API server together, do not retry
    together.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        """Starts at the shortest delay.

        Args:
            random: gives numbers from 0 up to 1.
        """
        self._random = random
        self._step = BASE_SECONDS

    def next(self) -> float:
        """The delay before the next attempt, in seconds; the following one is longer."""
        delay = self._step * (1 + self._random())
        self._step = min(CAP_SECONDS, self._step * 2)
        return delay

    def reset(self) -> None:
        """Returns to the shortest delay, after the connection worked for a while."""
        self._step = BASE_SECONDS
