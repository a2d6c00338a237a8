"""The table of one IP family: for each Service the plan that is wanted, and the plan that is in the kernel.

Only the reconciler writes it. Everything that depends on what is in the kernel (stale flows, health-check
ports, metrics, contested fronts, Events) subscribes to it and keeps no table of its own. So of a Service that
the kernel refuses all of them use what the kernel has: a driver leaves in the kernel what was there before,
see `kept`.

The plan in the kernel is nearly always the wanted one. So the table consists of the plans in the kernel, and
in addition only of what differs: an idle Service needs one entry of a dict.

Changes by other programs are not recorded here: until they are repaired, the table has what we programmed
last.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

from msgspec import Struct, structs

from kubeproxy.api.addresses import Family
from kubeproxy.backends.base import Change, Failures
from kubeproxy.model.plan import Front, Key, ServicePlan, fronts_of, without_fronts
from kubeproxy.reconcile.listeners import Listeners

Progress = Literal["pending", "done", "refused"]
"""Whether the kernel has the wanted plan: not yet, yes, or it refuses it."""


class Row(Struct, frozen=True, gc=False):
    """The row of a Service.

    Attributes:
        wanted: the plan that was made last; None: the Service is not to be in the kernel.
        in_kernel: the plan that was programmed last; None: nothing of the Service is in the kernel.
        status: whether these are the same.
        words: the message of the kernel that refused the wanted plan.
    """

    wanted: ServicePlan | None
    in_kernel: ServicePlan | None
    status: Progress
    words: str = ""


class Recorded(Struct, frozen=True, gc=False):
    """What a sync changed in the table.

    Attributes:
        full: all Services were compared with the kernel, so rules may have been missing before.
        changes: the Services whose plans in the kernel have changed.
    """

    full: bool
    changes: Sequence[Change]


class Ledger:
    """The table of one IP family.

    Attributes:
        family: the IP family.
    """

    def __init__(self, family: Family, *, piecewise: bool = False) -> None:
        """Creates an empty table: it is not known that the kernel has anything.

        Args:
            family: the IP family.
            piecewise: of a Service that the kernel refuses, everything is there but the pieces it refuses. So
                it counts with the plan that is wanted.
        """
        self.family = family
        self._piecewise = piecewise
        self._plans: dict[Key, ServicePlan] = {}
        self._different: dict[Key, ServicePlan | None] = {}
        self._refused: Failures = {}
        self._listeners: Listeners[Recorded] = Listeners(family)

    @property
    def plans(self) -> Mapping[Key, ServicePlan]:
        """The plans that are in the kernel, by Service. Each sync changes it: copy what is used later."""
        return self._plans

    @property
    def refused(self) -> Mapping[Key, str]:
        """The Services whose wanted plan the kernel refuses, each with its message."""
        return self._refused

    def row(self, key: Key) -> Row:
        """The row of a Service."""
        plan = self._plans.get(key)
        if key in self._refused:
            return Row(self._different.get(key, plan), plan, "refused", self._refused[key])
        return Row(self._different.get(key, plan), plan, "pending" if key in self._different else "done")

    def subscribe(self, listener: Callable[[Recorded], None]) -> None:
        """Calls back after each successful sync, when both the kernel and the table have its changes."""
        self._listeners.add(listener)

    def known(self) -> list[Key]:
        """The Services that are in the kernel or wanted there."""
        return list(self._plans | self._different)

    def wanted(self) -> dict[Key, ServicePlan]:
        """The wanted plans of all Services."""
        plans = self._plans | self._different
        return {key: plan for key, plan in plans.items() if plan is not None}

    def restored(self) -> dict[Key, ServicePlan]:
        """The plans that a repair restores: the wanted ones; of refused Services what the kernel keeps."""
        plans = {key: plan for key, plan in self.wanted().items() if key not in self._refused}
        return plans | self._kept(self._refused)

    def want(self, key: Key, plan: ServicePlan | None) -> None:
        """Records the plan that is wanted for a Service; None: it is to be removed."""
        if plan == self._plans.get(key):
            self._different.pop(key, None)
        else:
            self._different[key] = plan

    def due(self) -> list[Change]:
        """The changes of a partial sync: what differs, without refused Services, which need a full sync."""
        return [
            Change(key, self._plans.get(key), plan)
            for key, plan in self._different.items()
            if key not in self._refused
        ]

    def applied(self, changes: Sequence[Change]) -> None:
        """A partial sync has programmed these changes."""
        for change in changes:
            del self._different[change.key]
        self._record(Recorded(full=False, changes=changes))

    def loaded(self, failures: Failures) -> Sequence[Change]:
        """A full sync has programmed all wanted plans but those the kernel refuses; returns what changed."""
        lacking = failures if not self._piecewise else ()
        programmed = {key: plan for key, plan in self._different.items() if key not in lacking}
        changes = [
            Change(key, self._plans.get(key), plan)
            for key, plan in (*programmed.items(), *self._kept(lacking).items())
            if plan != self._plans.get(key)
        ]
        self._different = {key: plan for key, plan in self._different.items() if key in lacking}
        self._refused = dict(failures)
        self._record(Recorded(full=True, changes=changes))
        return changes

    def retried(self, failures: Failures) -> None:
        """In a mode that is piecewise, refused pieces were tried again; these Services lack some now."""
        self._refused = dict(failures)
        self._record(Recorded(full=False, changes=()))

    def _kept(self, refused: Collection[Key]) -> dict[Key, ServicePlan]:
        """What the kernel keeps of Services that it refuses when all others are programmed as is wanted."""
        had = {key: self._plans[key] for key in refused if key in self._plans}
        if not had:
            return {}
        theirs = {front for plan in had.values() for front in fronts_of(plan)}
        others = (plan for key, plan in self.wanted().items() if key not in refused)
        taken = {front for plan in others for front in fronts_of(plan) if front in theirs}
        return {key: kept(plan, self._different.get(key, plan), taken) for key, plan in had.items()}

    def _record(self, done: Recorded) -> None:
        for change in done.changes:
            if change.after is None:
                self._plans.pop(change.key, None)
            else:
                self._plans[change.key] = change.after
        self._listeners.call(done)


def kept(plan: ServicePlan, refused: ServicePlan | None, taken: Collection[Front]) -> ServicePlan:
    """What the kernel keeps of a plan when it refuses another one for the same Service.

    Args:
        plan: the plan that is in the kernel.
        refused: the plan that is refused; None: the Service cannot be removed.
        taken: fronts that were programmed for other Services.
    """
    gone = {front for front in fronts_of(plan) if front in taken}
    if not gone:
        return plan
    lost = [each for each in refused.lost if each.front in gone] if refused else []
    return structs.replace(without_fronts(plan, gone), lost=(*plan.lost, *lost))
