"""How clients are divided among some targets: which one is tried first, and in which order the others follow.

Without a `Division` the targets are used in turn, starting at a random one. The connections that count
are those of the listener's group in this process, which has all of its IP family on this node, and attempts
to connect.
"""

import math
import random
from collections.abc import Sequence
from socket import AF_INET, AF_INET6, inet_pton
from typing import Protocol, TypeVar

from kubeproxy.model.jenkins import jhash, scaled
from kubeproxy.relay.tallies import Tallies, TargetCounts
from kubeproxy.relay.values import Division, Target

T = TypeVar("T")


class Chooser(Protocol):
    """Divides clients among targets."""

    def choose(self, client: str, port: int) -> tuple[Target, ...]:
        """All targets in the order in which they are to be tried for a client at an address and port."""

    def close(self) -> None:
        """It is not used any more."""


def chooser(
    targets: tuple[Target, ...], division: Division | None, tallies: Tallies, group: str
) -> Chooser | None:
    """What divides clients among targets; None if there are none.

    Args:
        targets: the targets.
        division: how.
        tallies: the connections.
        group: the group of the listener, whose connections count.
    """
    if not targets:
        return None
    if division is None:
        return InTurn(targets)
    if division.table:
        return Hashed(targets, division.table, by_port=division.by_port)
    if not division.least and not division.preferred:
        return InTurn(targets, division.weights)
    loads = TargetLoads([tallies.keep(group, target) for target in targets], tallies)
    if not division.preferred:
        return Fewest(targets, division.weights, loads)
    kind = Fewest if division.least else InTurn
    preferred = frozenset(division.preferred)

    def pool(numbers: Sequence[int]) -> InTurn | Fewest:
        weights = tuple([division.weights[number] for number in numbers]) if division.weights else ()
        return kind(tuple([targets[number] for number in numbers]), weights, loads.of(numbers))

    near = pool([number for number in range(len(targets)) if number in preferred])
    far = pool([number for number in range(len(targets)) if number not in preferred])
    return NearFirst(near, far, division.bound, loads)


class TargetLoads:
    """The connections of some targets."""

    def __init__(self, counts: Sequence[TargetCounts], tallies: Tallies) -> None:
        """Takes their counts, see `Tallies.keep`."""
        self._counts = counts
        self._tallies = tallies

    def now(self) -> list[int]:
        """How many each has."""
        return [counts.open + counts.waiting for counts in self._counts]

    def of(self, numbers: Sequence[int]) -> "TargetLoads":
        """Those of some of the targets; they need not be closed."""
        return TargetLoads([self._counts[number] for number in numbers], self._tallies)

    def close(self) -> None:
        """They are not read any more."""
        for counts in self._counts:
            self._tallies.release(counts)
        self._counts = ()


class InTurn:
    """One after the other, each as often as its weight says.

    Attributes:
        targets: the targets.
    """

    def __init__(
        self, targets: tuple[Target, ...], weights: tuple[int, ...] = (), loads: TargetLoads | None = None
    ) -> None:
        """Starts at a random target.

        Args:
            targets: the targets.
            weights: their weights; none if they are equal.
            loads: their connections, which `below` needs.
        """
        self.targets = targets
        self._weights = weights
        self._loads = loads
        self._order: Sequence[int] = () if weights else range(len(targets))
        self._at = 0 if weights else random.randrange(len(targets))  # noqa: S311 no secret

    def choose(self, client: str, port: int) -> tuple[Target, ...]:  # noqa: ARG002 see Chooser
        """See `Chooser`."""
        return rotated(self.targets, self._next())

    def below(self, bound: int) -> int | None:
        """The next target that has fewer connections than this; None if there is none."""
        assert self._loads is not None
        counts = self._loads.now()
        for _ in self.targets:
            if counts[number := self._next()] < bound:
                return number
        fewest = min(counts)
        return counts.index(fewest) if fewest < bound else None

    def close(self) -> None:
        """See `Chooser`."""
        if self._loads is not None:
            self._loads.close()

    def _next(self) -> int:
        if not self._order:  # made for the first client, because many Services have none
            self._order = interleaved(self._weights)
            self._at = random.randrange(len(self._order))  # noqa: S311 no secret
        found = self._order[self._at]
        self._at = (self._at + 1) % len(self._order)
        return found


class Fewest:
    """The one that has the fewest connections in proportion to its weight; of several, in turn.

    Attributes:
        targets: the targets.
    """

    def __init__(self, targets: tuple[Target, ...], weights: tuple[int, ...], loads: TargetLoads) -> None:
        """Begins at a random one. See `InTurn`."""
        self.targets = targets
        self._weights = weights
        self._loads = loads
        self._at = random.randrange(len(targets))  # noqa: S311 no secret

    def choose(self, client: str, port: int) -> tuple[Target, ...]:  # noqa: ARG002 see Chooser
        """See `Chooser`."""
        return rotated(self.targets, self._first(self._loads.now()))

    def below(self, bound: int) -> int | None:
        """The target to be used of those that have fewer connections than this; None if there is none."""
        counts = self._loads.now()
        return self._first(counts, bound) if min(counts) < bound else None

    def close(self) -> None:
        """See `Chooser`."""
        self._loads.close()

    def _first(self, counts: Sequence[int], bound: float = math.inf) -> int:
        loads: list[float] = [*counts]
        if self._weights:
            # One connection more, so that of targets without any the one with the largest weight is used.
            loads = [(count + 1) / weight for count, weight in zip(counts, self._weights, strict=True)]
        if bound < math.inf:
            loads = [load if count < bound else math.inf for load, count in zip(loads, counts, strict=True)]
        at = self._at = (self._at + 1) % len(loads)
        turned = rotated(loads, at)
        return (turned.index(min(turned)) + at) % len(loads)


class Hashed:
    """The one that a table has for the hash of the client: with the same table, the same on every node."""

    def __init__(self, targets: tuple[Target, ...], table: bytes, *, by_port: bool) -> None:
        """Takes a table, see `Division`."""
        self._targets = targets
        self._table = memoryview(table).cast("H")
        self._by_port = by_port

    def choose(self, client: str, port: int) -> tuple[Target, ...]:
        """See `Chooser`."""
        key = packed(client)
        if self._by_port:
            key += port.to_bytes(2) + bytes(2)  # as nftables has it in its registers
        return rotated(self._targets, self._table[scaled(jhash(key), len(self._table))])

    def close(self) -> None:
        """See `Chooser`."""


class NearFirst:
    """Near targets as long as one of them has fewer connections than a limit, otherwise the others."""

    def __init__(self, near: InTurn | Fewest, far: InTurn | Fewest, bound: int, loads: TargetLoads) -> None:
        """Takes both pools, and the counts of all targets, which are closed."""
        self._near, self._far, self._bound = near, far, bound
        self._loads = loads

    def choose(self, client: str, port: int) -> tuple[Target, ...]:
        """See `Chooser`. Where no target of the one kind can be connected, those of the other are tried."""
        first = self._near.below(self._bound)
        far = self._far.choose(client, port)
        if first is None:
            return *far, *self._near.targets
        return *rotated(self._near.targets, first), *far

    def close(self) -> None:
        """See `Chooser`."""
        self._loads.close()


def interleaved(weights: Sequence[int]) -> Sequence[int]:
    """A cycle of numbers in which each occurs as often as its weight, in steps as even as possible."""
    steps = [((2 * i + 1) / weight, number) for number, weight in enumerate(weights) for i in range(weight)]
    return [number for _, number in sorted(steps)]


def rotated(values: Sequence[T], first: int) -> tuple[T, ...]:
    """All values, starting with that at a place."""
    return *values[first:], *values[:first]


def packed(address: str) -> bytes:
    """An address in network order."""
    address = address.partition("%")[0]  # a link-local address is followed by its interface
    return inet_pton(AF_INET6 if ":" in address else AF_INET, address)
