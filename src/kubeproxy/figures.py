"""Figures that parts of the program publish: named numbers, and distributions of them.

A part counts in plain attributes and returns them from a method `figures()`, which is called for each scrape.
There is no registry, and nothing is formatted here: see `serve.metrics`.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import inf
from typing import Final, Literal

from msgspec import Struct, structs

Kind = Literal["counter", "gauge", "histogram"]


class Histogram:
    """How often a value was at most each bound.

    Attributes:
        bounds: upper bounds of the buckets, ascending; one without bound follows.
        sum: of all values.
    """

    __slots__ = ("_counts", "bounds", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.sum = 0.0
        self._counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Adds a value."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def plus(self, other: "Histogram") -> "Histogram":
        """The distribution of the values of both, which have the same bounds."""
        total = Histogram(self.bounds)
        total.sum = self.sum + other.sum
        total._counts = [a + b for a, b in zip(self._counts, other._counts, strict=True)]  # noqa: SLF001 its own class
        return total

    def quantile(self, share: float) -> float:
        """The bound that this share of the values is within; infinity if some of them exceed all bounds.

        0 if there are no values.
        """
        counts = self.cumulative()
        if not counts[-1]:
            return 0.0
        at = bisect_left(counts, share * counts[-1])
        return self.bounds[at] if at < len(self.bounds) else inf

    def cumulative(self) -> list[int]:
        """How many values were at most each bound; the last number is how many there were."""
        return list(accumulate(self._counts))


class Figure(Struct, frozen=True, gc=False):
    """One number, or one distribution, under its name in Prometheus."""

    name: str
    kind: Kind
    help: str
    value: float | Histogram
    labels: Mapping[str, str] = {}


def added(figure: Figure, before: Figure) -> Figure:
    """A counter or histogram that continues an earlier one of the same name and labels."""
    a, b = figure.value, before.value
    if isinstance(a, Histogram) and isinstance(b, Histogram):
        return structs.replace(figure, value=a.plus(b) if a.bounds == b.bounds else a)
    assert not isinstance(a, Histogram)
    assert not isinstance(b, Histogram)
    return structs.replace(figure, value=a + b)


DURATIONS: Final = tuple(0.001 * 2**i for i in range(15))
"""The bounds, in seconds, that the reference uses for durations between a millisecond and 16 seconds."""
