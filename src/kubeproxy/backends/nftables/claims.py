"""Who has a front that several Services want.

An API server gives a ClusterIP and a node port to one Service only, but nothing keeps two from naming the same external IP. A
map has one element for it. The Service whose namespace and name come first has it, so what the table holds does not
depend on the order in which Services came; when it goes, the next one has it.
"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from kubeproxy.model.plan import Key

_NONE: frozenset[bytes] = frozenset()


class Claims:
    """The fronts of all Services, and which are contested."""

    def __init__(self) -> None:
        self._owners: dict[bytes, Key] = {}
        self._rivals: dict[bytes, set[Key]] = {}
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

    def change(self, key: Key, before: Iterable[bytes], after: Iterable[bytes]) -> None:
        """A Service wants other fronts now."""
        old, new = set(before), set(after)
        for front in old - new:
            rivals = self._rivals.get(front)
            if rivals is None:
                self._owners.pop(front, None)
            else:
                rivals.discard(key)
                self._set_lost(key, self.lost(key) - {front})
                self._decide(front, rivals)
        for front in new - old:
            owner = self._owners.setdefault(front, key)
            if owner != key:
                rivals = self._rivals.setdefault(front, {owner})
                rivals.add(key)
                self._decide(front, rivals)

    def _decide(self, front: bytes, rivals: set[Key]) -> None:
        """Gives a contested front to the first of its rivals."""
        winner = min(rivals)
        self._owners[front] = winner
        for rival in rivals:
            lost = self.lost(rival)
            self._set_lost(rival, lost - {front} if rival == winner else lost | {front})
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
