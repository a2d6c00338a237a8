"""Reports fronts that several Services name: in the log, as a metric, and as an Event of the loser.

`model.claims` decides which Service owns a front; a plan lists the fronts its Service lost. This module
follows the plans that are in the kernel, of all families, and reports each loss when it begins, when the
owner changes, and when it ends. A node port is lost in both families at the same time, so the families are
compared together.

Every node finds the same. To spare the API server, the Event is written by one node (`model.writer`): that
of the first endpoint, by address, of the Service that lost the front, else of the owner, else another one.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from kubeproxy.api.addresses import Family
from kubeproxy.backends.base import Change
from kubeproxy.figures import Figure
from kubeproxy.log import ObjectRef
from kubeproxy.model.plan import Front, Key, LostFront, ServicePlan
from kubeproxy.model.state import State
from kubeproxy.model.writer import WriterChoice
from kubeproxy.reconcile.ledger import Ledger, Recorded

log = logging.getLogger(__name__)

MOST_LINES: Final = 20
"""How many lines of a kind are logged after one sync; one more line has the number of the rest."""

REASON: Final = "FrontOfAnotherService"

Event = Callable[[Key, str, str, str], None]
"""Writes an Event of a Service: its key, a reason, an action and a note; see `events.Events.service`."""

_Lost = tuple[Key, LostFront]


class Contests:
    """The fronts that Services lost, in all families."""

    def __init__(self, state: State, node: str, event: Event) -> None:
        """Follows no family yet, see `follow`.

        Args:
            state: the Services and their endpoints.
            node: the own Node's name.
            event: writes an Event.
        """
        self._state = state
        self._node = node
        self._event = event
        self._ledgers: dict[Family, Ledger] = {}

    def follow(self, ledger: Ledger) -> None:
        """Reports what changes by each sync of a family, from what an earlier ledger of the family had."""
        earlier = self._ledgers.get(ledger.family)
        self.use(ledger)

        def recorded(done: Recorded) -> None:
            nonlocal earlier
            changes = done.changes
            if earlier is not None:
                changes = [Change(c.key, earlier.plans.get(c.key), c.after) for c in changes]
                earlier = None
            self._recorded(ledger.family, changes)

        ledger.subscribe(recorded)

    def use(self, ledger: Ledger) -> None:
        """This is the ledger of its family now, which was followed before."""
        self._ledgers[ledger.family] = ledger

    def figures(self) -> Iterable[Figure]:
        """How many fronts are contested."""
        text = "Fronts that several Services name; each is served for one of them."
        for family, ledger in self._ledgers.items():
            count = len({lost.front for plan in ledger.plans.values() if plan.lost for lost in plan.lost})
            yield Figure("kubeproxy_contested_fronts", "gauge", text, count, {"ip_family": family})

    def _recorded(self, family: Family, recorded: Iterable[Change]) -> None:
        changes = [c for c in recorded if _lost(c.before) != _lost(c.after)]
        if not changes:
            return
        same = [(c.key, lost) for c in changes for lost in self._elsewhere(c.key, family)]
        before = {*same, *((c.key, lost) for c in changes for lost in _lost(c.before))}
        after = {*same, *((c.key, lost) for c in changes for lost in _lost(c.after))}
        self._report(sorted(after - before, key=_order))
        fronts = {(key, lost.front) for key, lost in after}
        gone = {c.key for c in changes if c.after is None}
        ended = [(key, lost) for key, lost in before if key not in gone and (key, lost.front) not in fronts]
        self._report_ends(sorted(ended, key=_order))

    def _elsewhere(self, key: Key, family: Family) -> Iterable[LostFront]:
        """The fronts that a Service lost in other families."""
        for ledger in self._ledgers.values():
            if ledger.family != family:
                yield from _lost(ledger.plans.get(key))

    def _report(self, found: Sequence[_Lost]) -> None:
        for key, front in found[:MOST_LINES]:
            log.warning(
                "Service %(service)s: %(front)s %(reason)s",
                {"service": ObjectRef(*key), "front": front, "reason": _words(key, front)},
            )
        if len(found) > MOST_LINES:
            log.warning("%(count)d more fronts belong to another Service", {"count": len(found) - MOST_LINES})
        writer = WriterChoice(self._state, self._node)
        for key, front in found:
            if writer.is_mine(key, front.owner):
                self._event(key, REASON, "AssignFront", f"{front} {_words(key, front)}")

    def _report_ends(self, ended: Sequence[_Lost]) -> None:
        for key, front in ended[:MOST_LINES]:
            log.info(
                "Service %(service)s: %(front)s does not belong to another Service any more",
                {"service": ObjectRef(*key), "front": front},
            )
        if len(ended) > MOST_LINES:
            log.info(
                "%(count)d more fronts do not belong to another Service any more",
                {"count": len(ended) - MOST_LINES},
            )


def _lost(plan: ServicePlan | None) -> tuple[LostFront, ...]:
    return plan.lost if plan else ()


def _order(lost: _Lost) -> tuple[Key, Front]:
    return lost[0], lost[1].front


def _words(key: Key, front: LostFront) -> str:
    if front.owner == key:
        return "is also a node port of the same Service and is not served"
    return f"belongs to Service {'/'.join(front.owner)} and is not served for this one"
