"""The number of each Service port.

A program that has read a number may still use it. So a number that is free is not given again for a while.
"""

from collections.abc import Callable, Mapping

from kubeproxy.backends.ebpf import layout
from kubeproxy.backends.ebpf.blocks import FullError, Quarantine
from kubeproxy.backends.ebpf.compile import LEFT, PortFronts
from kubeproxy.backends.ebpf.layout import FIRST, PASSING
from kubeproxy.model.plan import PortId


class Numbers:
    """Gives numbers to Service ports.

    Attributes:
        of: the number of each.
    """

    def __init__(self, limit: int, now: Callable[[], float], of: Mapping[PortId, int]) -> None:
        """Makes it; `adopt` must be called first.

        Args:
            limit: numbers are below it.
            now: the time in seconds.
            of: the numbers that the ports had so far.
        """
        self.of: dict[PortId, int] = dict(of)
        self._limit = limit
        self._now = now
        self._next = FIRST
        self._free: list[int] = []
        self._freed: Quarantine[int] = Quarantine(now)

    def adopt(self, wanted: Mapping[PortId, PortFronts], held: Mapping[bytes, bytes]) -> None:
        """Ports get the number that their fronts have in the maps, or that they had; others have none yet.

        Args:
            wanted: what the ports need.
            held: the fronts in the maps.
        """
        limit = self._limit
        in_use = {layout.index_of(value) >> 1 for value in held.values()}
        numbers: dict[PortId, int] = {}
        for number, names in _claims(wanted, held).items():
            # If several ports have fronts there, it changes for none of them before its fronts do.
            name = next(iter(names))
            if FIRST <= number < limit and len(names) == 1:
                numbers.setdefault(name, number)
        for name, number in self.of.items():
            if name in wanted and name not in numbers and number < limit and number not in in_use:
                numbers[name] = number
        taken = set(numbers.values())
        in_use |= taken
        self._next = max((n for n in in_use if n < limit), default=FIRST - 1) + 1
        self._free = [n for n in range(FIRST, self._next) if n not in in_use]
        self._freed = Quarantine(self._now)
        for number in in_use - taken - {PASSING}:
            if number < limit:
                self._freed.add(number)
        self.of = numbers

    def take(self, name: PortId) -> int:
        """Gives a port a number.

        Raises:
            FullError: all are in use.
        """
        self._free.extend(self._freed.released())
        if self._free:
            number = self._free.pop()
        elif self._next < self._limit:
            number, self._next = self._next, self._next + 1
        else:
            raise FullError
        self.of[name] = number
        return number

    def give(self, name: PortId) -> None:
        """A port is gone."""
        self._freed.add(self.of.pop(name))


def _claims(wanted: Mapping[PortId, PortFronts], held: Mapping[bytes, bytes]) -> dict[int, set[PortId]]:
    """Which ports have fronts that lead to a number."""
    found: dict[int, set[PortId]] = {}
    if held:
        for name, needed in wanted.items():
            for key, side in needed.fronts.items():
                if side != LEFT and key in held:
                    found.setdefault(layout.index_of(held[key]) >> 1, set()).add(name)
    return found
