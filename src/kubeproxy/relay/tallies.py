"""Counts of the process by group of listeners and target, and which of them the daemon does not have yet.

The daemon asks for the counts when a command needs them. It is sent what was counted since it asked
last, so the cost of an answer follows the traffic in between, and the process keeps nothing of a target that
has been reported and has no connection.
"""

from collections import OrderedDict
from typing import Final, Protocol

from kubeproxy.relay.values import Tally, Target

MOST_TALLIES: Final = 65536
"""So many targets are counted. If there are more, those without open connections begin at 0 again."""


class Carried(Protocol):
    """A connection, or an attempt to connect."""

    def lost_target(self) -> None:
        """Its target was removed: it ends, or another target is tried."""


class TargetCounts:
    """What happens to the connections of one group to one target.

    Attributes:
        group: the group.
        target: the target.
        open: connections and flows that are open now.
        waiting: attempts to connect that have no answer yet.
        carried: the TCP connections and attempts.
        keepers: how many balancers read it; until there is none it is not forgotten.
    """

    __slots__ = (
        "_changed",
        "_connections",
        "_received",
        "_resets",
        "_sent",
        "_unanswered",
        "carried",
        "group",
        "keepers",
        "open",
        "target",
        "waiting",
    )

    def __init__(self, group: str, target: Target, changed: "OrderedDict[TargetCounts, None]") -> None:
        """Begins to count.

        Args:
            group: the group.
            target: the target.
            changed: it is put there whenever it counts something.
        """
        self.group = group
        self.target = target
        self.open = self.waiting = self.keepers = 0
        self._connections = self._sent = self._received = self._unanswered = self._resets = 0
        self._changed = changed
        self.carried: set[Carried] = set()

    @property
    def idle(self) -> bool:
        """Whether it has no connection and no attempt, and no balancer reads it."""
        return not self.open and not self.waiting and not self.keepers

    def attempt(self, by: Carried) -> None:
        """The target is being connected."""
        self.waiting += 1
        self.carried.add(by)
        self._changed[self] = None

    def reached(self, by: Carried) -> None:
        """An attempt succeeded, so a connection is open."""
        self.abandoned(by)
        self.began()

    def began(self) -> None:
        """A connection or flow is open."""
        self._connections += 1
        self.open += 1
        self._changed[self] = None

    def unanswered(self, by: Carried) -> None:
        """An attempt ended without an answer."""
        self._unanswered += 1
        self.abandoned(by)

    def refused(self, by: Carried) -> None:
        """An attempt was refused."""
        self._resets += 1
        self.abandoned(by)

    def abandoned(self, by: Carried) -> None:
        """An attempt ended for another reason."""
        self.waiting -= 1
        self.carried.discard(by)
        self._changed[self] = None

    def reset(self) -> None:
        """One side has reset a connection, or the target refuses packets."""
        self._resets += 1
        self._changed[self] = None

    def ended(self) -> None:
        """A connection or flow has ended."""
        self.open -= 1
        self._changed[self] = None

    def moved(self, sent: int, received: int) -> None:
        """Bytes were read from a client and from the target."""
        self._sent += sent
        self._received += received
        self._changed[self] = None

    def report(self) -> Tally:
        """What was counted since the last report."""
        found = Tally(
            self.group,
            self.target,
            self._connections,
            self.open,
            self.waiting,
            self._sent,
            self._received,
            self._unanswered,
            self._resets,
        )
        self._connections = self._sent = self._received = self._unanswered = self._resets = 0
        return found


class Tallies:
    """The counts of all targets."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, Target], TargetCounts] = {}
        self._changed: OrderedDict[TargetCounts, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def changed(self) -> int:
        """For how many targets something was counted that has not been taken."""
        return len(self._changed)

    def of(self, group: str, target: Target) -> TargetCounts:
        """The counts of a target."""
        found = self._counts.get((group, target))
        if found is None:
            if len(self._counts) >= MOST_TALLIES:
                self._forget_idle()
            found = self._counts[group, target] = TargetCounts(group, target, self._changed)
        return found

    def carried(self, group: str, target: Target) -> list[Carried]:
        """The TCP connections to a target, and attempts."""
        found = self._counts.get((group, target))
        return [] if found is None else list(found.carried)

    def keep(self, group: str, target: Target) -> TargetCounts:
        """The counts of a target, which are not forgotten until they are released as often."""
        found = self.of(group, target)
        found.keepers += 1
        return found

    def release(self, counts: TargetCounts) -> None:
        """Counts are not read any more, see `keep`."""
        counts.keepers -= 1
        if counts.idle and counts not in self._changed:
            del self._counts[counts.group, counts.target]

    def take(self, most: int) -> tuple[Tally, ...]:
        """What was counted since it was taken last, of so many targets at most.

        Those that have waited longest are the first.
        """
        found: list[Tally] = []
        while self._changed and len(found) < most:
            counts, _ = self._changed.popitem(last=False)
            found.append(counts.report())
            if counts.idle:
                del self._counts[counts.group, counts.target]
        return tuple(found)

    def _forget_idle(self) -> None:
        for key, counts in list(self._counts.items()):
            if counts.idle:
                self._changed.pop(counts, None)
                del self._counts[key]
