"""Connections of one Service port, counted by endpoint: since the beginning, and in the last interval."""

import math
from collections.abc import Collection, Mapping
from typing import Final

Endpoint = tuple[str, int]
"""Address and port."""

_DEVIATIONS: Final = 4.5
_LEAST: Final = 8
"""So many connections of each endpoint are needed to compare shares."""


class Rates:
    """Counts that only grow, of one Service port, and how fast they grow.

    Attributes:
        since: the counts since the beginning, by endpoint.
        per_second: how fast they grew between the last two readings; None before there are two.
        total: the last reading.
        at: when that was.
    """

    __slots__ = ("_base", "at", "per_second", "since", "total")

    def __init__(self) -> None:
        self.since: dict[Endpoint, int] = {}
        self.per_second: dict[Endpoint, float] | None = None
        self.total: Mapping[Endpoint, int] = {}
        self._base: dict[Endpoint, int] | None = None
        self.at = 0.0

    def read(self, counts: Mapping[Endpoint, int], at: float) -> None:
        """The counts were read.

        Args:
            counts: by endpoint.
            at: the time in seconds.
        """
        if self._base is None:
            self._base = dict(counts)
        elif at > self.at:
            before, passed = self.total, at - self.at
            self.per_second = {
                endpoint: (count - before.get(endpoint, 0)) / passed
                for endpoint, count in counts.items()
                if count != before.get(endpoint, 0)
            }
            self.since = {
                endpoint: grown
                for endpoint, count in counts.items()
                if (grown := count - self._base.get(endpoint, 0))
            }
        self.total, self.at = dict(counts), at

    def rest(self, at: float) -> None:
        """Until a time, the counts were as they were read last."""
        self.at = max(at, self.at)

    def begin(self) -> None:
        """From now on counts are compared with those of now: the endpoints changed."""
        self._base, self.since = dict(self.total), {}


def uneven(counts: Mapping[Endpoint, int], planned: Collection[Endpoint]) -> frozenset[Endpoint]:
    """The endpoints whose counts differ from those of the others by more than chance explains.

    Each is compared with an equal share, and may differ by four and a half standard deviations of the
    binomial distribution, which one of 150,000 endpoints does by chance.

    Args:
        counts: connections by endpoint.
        planned: the endpoints that are chosen with equal chance.
    """
    number = len(planned)
    found = {endpoint: counts.get(endpoint, 0) for endpoint in planned}
    expected = sum(found.values()) / number if number else 0
    if number < 2 or expected < _LEAST:
        return frozenset()
    most = _DEVIATIONS * math.sqrt(expected * (1 - 1 / number))
    return frozenset(endpoint for endpoint, count in found.items() if abs(count - expected) > most)
