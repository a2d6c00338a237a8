"""What all Services together need, and what changes when some of them do.

Services may need the same thing: an endpoint of two of them needs one element for its hairpins, several ports
of one have one address. So each thing is counted, and the kernel is changed only with its first and its last
use. A virtual server belongs to one Service, as plans have no front in common; it may pass from one to
another between two plans.
"""

from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

from kubeproxy.backends.ipvs.compile import ServiceServers, Target
from kubeproxy.backends.ipvs.names import SETS
from kubeproxy.model.plan import Key
from kubeproxy.netlink.ipset import Element
from kubeproxy.netlink.ipvs import Virtual

T = TypeVar("T")


class Counted(Generic[T]):
    """Things, each with the number of Services that need it."""

    def __init__(self) -> None:
        self._counts: dict[T, int] = {}
        self._touched: dict[T, bool] = {}

    def __contains__(self, item: T) -> bool:
        return item in self._counts

    def __iter__(self) -> Iterator[T]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def take(self, item: T) -> None:
        """One more user."""
        count = self._counts.get(item, 0)
        self._touched.setdefault(item, count > 0)
        self._counts[item] = count + 1

    def drop(self, item: T) -> None:
        """One user less."""
        count = self._counts[item]
        self._touched.setdefault(item, True)
        if count == 1:
            del self._counts[item]
        else:
            self._counts[item] = count - 1

    def settle(self) -> tuple[list[T], list[T]]:
        """What was added and what was removed since the last call."""
        came = [item for item, was in self._touched.items() if not was and item in self._counts]
        went = [item for item, was in self._touched.items() if was and item not in self._counts]
        self._touched.clear()
        return came, went


class Delta(NamedTuple):
    """What changed.

    Attributes:
        virtuals: virtual servers, as they were and as they are to be; None: not at all.
        came: new elements of each set that has some.
        went: elements to be deleted of each set that has some.
        drops: rules to be added to and deleted from KUBE-IPVS-OUT-FILTER.
    """

    virtuals: dict[Virtual, tuple[Target | None, Target | None]]
    came: dict[str, list[Element]]
    went: dict[str, list[Element]]
    drops: tuple[list[str], list[str]]


class Desired:
    """What all Services need.

    Attributes:
        entries: the elements of each set.
        drops: the rules of KUBE-IPVS-OUT-FILTER.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Counted[Element]] = {name: Counted() for name in SETS}
        self.drops: Counted[str] = Counted()
        self._virtuals: dict[Virtual, tuple[Key, Target]] = {}
        self._touched: dict[Virtual, Target | None] = {}

    def virtuals(self) -> Iterator[tuple[Virtual, Target]]:
        """Every virtual server and what it is to be."""
        for virtual, (_, target) in self._virtuals.items():
            yield virtual, target

    def owners(self) -> Iterator[tuple[Virtual, Key]]:
        """Every virtual server and the Service that needs it."""
        for virtual, (key, _) in self._virtuals.items():
            yield virtual, key

    def target(self, virtual: Virtual) -> Target | None:
        """What a virtual server is to be; None: no Service needs it."""
        found = self._virtuals.get(virtual)
        return None if found is None else found[1]

    def used(self) -> frozenset[str]:
        """The sets that have elements."""
        return frozenset(name for name, elements in self.entries.items() if len(elements))

    def replace(self, key: Key, before: ServiceServers, after: ServiceServers) -> None:
        """Replaces what a Service needs."""
        for virtual in {**before.virtuals, **after.virtuals}:
            target = after.virtuals.get(virtual)
            if target != before.virtuals.get(virtual):
                self._set(virtual, key, target)
        for name, element in after.entries.keys() - before.entries.keys():
            self.entries[name].take(element)
        for name, element in before.entries.keys() - after.entries.keys():
            self.entries[name].drop(element)
        for rule in after.drops:
            if rule not in before.drops:
                self.drops.take(rule)
        for rule in before.drops:
            if rule not in after.drops:
                self.drops.drop(rule)

    def _set(self, virtual: Virtual, key: Key, target: Target | None) -> None:
        self._touched.setdefault(virtual, self.target(virtual))
        if target is not None:
            self._virtuals[virtual] = key, target
        elif self._virtuals[virtual][0] == key:  # else it has passed to another Service already
            del self._virtuals[virtual]

    def settle(self) -> Delta:
        """What changed since the last call."""
        virtuals = {}
        for virtual, before in self._touched.items():
            after = self.target(virtual)
            if after != before:
                virtuals[virtual] = before, after
        self._touched.clear()
        came, went = {}, {}
        for name, counted in self.entries.items():
            came[name], went[name] = counted.settle()
        return Delta(
            virtuals,
            {name: elements for name, elements in came.items() if elements},
            {name: elements for name, elements in went.items() if elements},
            self.drops.settle(),
        )
