"""Reports fronts that several Services name: in the log, as a metric, and as an Event of the Service that loses.

Who owns a front is decided by `model.claims`; a plan lists what its Service lost. This follows the plans of all families and
reports each loss once, when it begins, when the owner changes, and when it ends. A node port is lost in both families at
the same time, so families are taken together.

Every node finds the same. To keep the API server from a flood, the Event is written by one node: that of the first
endpoint, by address, of the Service that loses, else of the owner. Without an endpoint on a known node every node writes it.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from kubeproxy.api.addresses import Family
from kubeproxy.figures import Figure
from kubeproxy.log import ObjectRef
from kubeproxy.model.plan import Front, Key, LostFront, ServicePlan
from kubeproxy.model.state import State
from kubeproxy.reconcile.reconciler import Reconciler, Synced

log = logging.getLogger(__name__)

MOST_LINES: Final = 20
"""So many lines of a kind are logged after one sync; the rest is counted in one more line."""

REASON: Final = "FrontOfAnotherService"

Event = Callable[[Key, str, str, str], None]
"""Writes an Event of a Service: its key, a reason, an action and a note; see `events.Events.service`."""

_Lost = tuple[Key, LostFront]


class Contests:
    """The fronts that Services lost, in all families."""

    def __init__(self, state: State, node: str, event: Event) -> None:
        """Makes it; `follow` adds the control loops.

        Args:
            state: the Services and their endpoints.
            node: the own Node's name.
            event: writes an Event.
        """
        self._state = state
        self._node = node
        self._event = event
        self._lost: dict[Family, dict[Key, tuple[LostFront, ...]]] = {}

    def follow(self, loop: Reconciler) -> None:
        """Reports what changes by each sync of a loop."""
        self._lost[loop.family] = {}
        loop.on_sync(lambda done: self._synced(loop.family, done))

    def figures(self) -> Iterable[Figure]:
        """How many fronts are contested."""
        text = "Fronts that several Services name; one of them has each."
        for family, lost in self._lost.items():
            count = len({each.front for fronts in lost.values() for each in fronts})
            yield Figure("kubeproxy_contested_fronts", "gauge", text, count, {"ip_family": family})

    def _synced(self, family: Family, done: Synced) -> None:
        mine = self._lost[family]
        plans = {c.key: c.after for c in done.changes}
        touched = [key for key, plan in plans.items() if mine.get(key, ()) != (plan.lost if plan else ())]
        if done.full:
            touched += mine.keys() - plans.keys()
        if not touched:
            return
        before = self._all(touched)
        for key in touched:
            plan = plans.get(key)
            if plan is not None and plan.lost:
                mine[key] = plan.lost
            else:
                mine.pop(key, None)
        after = self._all(touched)
        self._report(sorted([each for each in after if each not in before], key=_order))
        fronts = {(key, front.front) for key, front in after}
        ended = [(key, front) for key, front in before if (key, front.front) not in fronts]
        self._report_ends(sorted(ended, key=_order), plans)

    def _all(self, keys: Iterable[Key]) -> dict[_Lost, None]:
        """What some Services lost, in any family."""
        return {
            (key, front): None for key in keys for lost in self._lost.values() for front in lost.get(key, ())
        }

    def _report(self, found: Sequence[_Lost]) -> None:
        for key, front in found[:MOST_LINES]:
            log.warning(
                "Service %(service)s: %(front)s %(reason)s",
                {"service": ObjectRef(*key), "front": front, "reason": _words(key, front)},
            )
        if len(found) > MOST_LINES:
            log.warning("%(count)d more fronts belong to another Service", {"count": len(found) - MOST_LINES})
        for key, front in found:
            if self._is_writer(key, front.owner):
                self._event(key, REASON, "AssignFront", f"{front} {_words(key, front)}")

    def _report_ends(self, ended: Sequence[_Lost], plans: Mapping[Key, ServicePlan | None]) -> None:
        left = [(key, front) for key, front in ended if plans.get(key) is not None]
        for key, front in left[:MOST_LINES]:
            log.info(
                "Service %(service)s: %(front)s does not belong to another Service any more",
                {"service": ObjectRef(*key), "front": front},
            )
        if len(left) > MOST_LINES:
            log.info(
                "%(count)d more fronts do not belong to another Service any more",
                {"count": len(left) - MOST_LINES},
            )

    def _is_writer(self, *keys: Key) -> bool:
        """Whether this node writes the Event: the first endpoint of the first Service that has one is here."""
        for key in keys:
            endpoints = [(e.address, e.node) for s in self._state.slices(key) for e in s.endpoints if e.node]
            if endpoints:
                return min(endpoints)[1] == self._node
        return True


def _order(lost: _Lost) -> tuple[Key, Front]:
    return lost[0], lost[1].front


def _words(key: Key, front: LostFront) -> str:
    if front.owner == key:
        return "is also a node port of the same Service and is not served"
    return f"belongs to Service {'/'.join(front.owner)} and is not served for this one"
