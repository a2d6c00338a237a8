"""Who has a front that several Services want.

An API server gives a ClusterIP and a node port to one Service only, but nothing keeps two from naming the same external IP, or
the ClusterIP of another. A map has one element for it. Whose ClusterIP it is has it, whatever others name theirs
(CVE-2020-8554); of several others the one whose namespace and name come first. So what the table holds does not depend on the
order in which Services came; when the one that has it goes, the next one has it.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from kubeproxy.model.plan import Key

_NONE: frozenset[bytes] = frozenset()

Claim = tuple[bool, Key]
"""Whether the front is something else than the Service's ClusterIP, and the Service. The least one has it."""


class Claims:
    """The fronts of all Services, and which are contested."""

    def __init__(self) -> None:
        self._winners: dict[bytes, Claim] = {}
        self._rivals: dict[bytes, set[Claim]] = {}
        self._lost: dict[Key, frozenset[bytes]] = {}
        self._before: dict[Key, frozenset[bytes]] = {}

    def begin(self) -> None:
        """What comes now is one change: `lost_before` tells what was before it."""
        self._before.clear()

    @property
    def touched(self) -> AbstractSet[Key]:
        """The Services that won or lost a front since `begin`."""
        return self._before.keys()

    def lost(self, key: Key) -> frozenset[bytes]:
        """The fronts that a Service wants and another one has."""
        return self._lost.get(key, _NONE)

    def lost_before(self, key: Key) -> frozenset[bytes]:
        """The same before `begin`."""
        return self._before.get(key, self.lost(key))

    def change(self, key: Key, before: Mapping[bytes, bool], after: Mapping[bytes, bool]) -> None:
        """A Service wants other fronts now.

        Args:
            key: the Service.
            before: the fronts it wanted, each with whether it is something else than its ClusterIP.
            after: those it wants.
        """
        for front, other in before.items() - after.items():
            rivals = self._rivals.get(front)
            if rivals is None:
                self._winners.pop(front, None)
            else:
                rivals.discard((other, key))
                self._set_lost(key, self.lost(key) - {front})
                self._decide(front, rivals)
        for front, other in after.items() - before.items():
            claim = other, key
            winner = self._winners.setdefault(front, claim)
            if winner != claim:
                rivals = self._rivals.setdefault(front, {winner})
                rivals.add(claim)
                self._decide(front, rivals)

    def _decide(self, front: bytes, rivals: set[Claim]) -> None:
        """Gives a contested front to the first of its rivals."""
        winner = self._winners[front] = min(rivals)
        for rival in rivals:
            lost = self.lost(rival[1])
            self._set_lost(rival[1], lost - {front} if rival == winner else lost | {front})
        if len(rivals) == 1:
            del self._rivals[front]

    def _set_lost(self, key: Key, lost: frozenset[bytes]) -> None:
        if lost == self.lost(key):
            return
        self._before.setdefault(key, self.lost(key))
        if lost:
            self._lost[key] = lost
        else:
            del self._lost[key]
