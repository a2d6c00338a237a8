"""How long to wait before the next try: jittered exponential back-off with client-go's figures for watches."""

from collections.abc import Callable
from typing import Final

BASE_SECONDS: Final = 0.8
CAP_SECONDS: Final = 30.0


class Backoff:
    """Delays that double from 0.8 s to 30 s, each stretched by up to as much again.

    The jitter keeps the nodes of a cluster apart, which all lose an API server at the same moment.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        """Starts at the shortest delay.

        Args:
            random: gives numbers from 0 up to 1.
        """
        self._random = random
        self._step = BASE_SECONDS

    def next(self) -> float:
        """The delay before the next try, in seconds; the one after it is longer."""
        delay = self._step * (1 + self._random())
        self._step = min(CAP_SECONDS, self._step * 2)
        return delay

    def reset(self) -> None:
        """All went well for a while: the next failure is news again."""
        self._step = BASE_SECONDS
