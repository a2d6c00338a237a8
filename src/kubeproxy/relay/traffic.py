"""The daemon's side of the counts: what the relay's processes have counted so far, by group and target.

The processes are asked when a command needs the counts. Each target has the number of its last change, so
the next answer has only what has changed since then, and the cost follows the traffic.
"""

import secrets
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from kubeproxy.relay.values import Tally, Target

MOST_TOTALS: Final = 65536
"""So many targets are kept; of others, those that have no connection are forgotten, the oldest first."""


class Total(Struct, frozen=True, gc=False, array_like=True):
    """What was counted of a target.

    Attributes:
        tally: the counts.
        began: a number that differs if they began at 0 again.
    """

    tally: Tally
    began: int


class TrafficReport(Struct, frozen=True, gc=False):
    """What a relay has counted.

    Attributes:
        token: to be given with the next question.
        full: these are all targets; the counts given before are void, because another relay has begun.
        totals: the counts so far, of targets where they have changed.
    """

    token: str
    full: bool = True
    totals: tuple[Total, ...] = ()


class Traffic:
    """The counts of all processes of one relay. Not thread-safe."""

    def __init__(self) -> None:
        self._name = secrets.token_hex(4)
        self._revision = 0
        self._totals: OrderedDict[tuple[str, Target], tuple[int, Total]] = OrderedDict()

    def add(self, tallies: Iterable[Tally]) -> None:
        """A process has counted this since its last report."""
        self._revision += 1
        for tally in tallies:
            before = self._totals.get((tally.group, tally.target))
            if before is None:
                self._put(Total(tally, self._revision))
            else:
                self._put(Total(plus(before[1].tally, tally), before[1].began))
        for _ in range(len(self._totals) - MOST_TOTALS):
            _, (_, oldest) = self._totals.popitem(last=False)
            if oldest.tally.open or oldest.tally.waiting:
                self._put(oldest)

    def lost(self) -> None:
        """The process has ended, and its connections with it."""
        self._revision += 1
        for _, total in list(self._totals.values()):
            if total.tally.open or total.tally.waiting:
                self._put(Total(replace(total.tally, open=0, waiting=0), total.began))

    def since(self, token: str) -> TrafficReport:
        """What has changed since a report with this token; everything if it is not one of ours."""
        name, _, last = token.partition(".")
        full = name != self._name or not last.isdecimal()
        found: list[Total] = []
        for revision, total in reversed(self._totals.values()):
            if not full and revision <= int(last):
                break
            found.append(total)
        return TrafficReport(f"{self._name}.{self._revision}", full, tuple(found))

    def _put(self, total: Total) -> None:
        key = total.tally.group, total.tally.target
        self._totals[key] = self._revision, total
        self._totals.move_to_end(key)


def plus(total: Tally, more: Tally) -> Tally:
    """A total with what was counted since; what is open is that of the latter."""
    return Tally(
        total.group,
        total.target,
        total.connections + more.connections,
        more.open,
        more.waiting,
        total.sent + more.sent,
        total.received + more.received,
        total.unanswered + more.unanswered,
        total.resets + more.resets,
    )


def minus(total: Tally, before: Tally) -> Tally:
    """What was counted since an earlier total; what is open is that of the later one."""
    return Tally(
        total.group,
        total.target,
        total.connections - before.connections,
        total.open,
        total.waiting,
        total.sent - before.sent,
        total.received - before.received,
        total.unanswered - before.unanswered,
        total.resets - before.resets,
    )
