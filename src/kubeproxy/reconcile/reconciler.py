"""The control loop of one IP family: programs the plans.

Changes are collected while a sync runs or rests, and the next sync plans each touched Service once, as it is
then; a change that was reverted costs nothing. `pacer` decides when a sync may begin, and states its
guarantees: in short, the first change after a quiet time or after a full sync is synced at once, and between
frequent changes the loop rests as long as a partial sync takes, one second at most.

What is wanted and what is in the kernel is recorded in the `ledger`. A full sync sends all plans to the
driver, which compares them with what the kernel holds. All Services are planned for it only if the plans may
have changed: at the start, when the node changed, and once an hour. Otherwise, in particular after drift, the
plans of the ledger are sent. After drift the plan that a refused Service had in the kernel is restored, too;
the refused one is not retried then.

A sync that fails is repeated as a full sync, with growing delays. A Service that the kernel refuses keeps
what it had, is reported, and retried when it changes and with growing delays; it does not delay others. Drift
is detected by the `watchdog`.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal

from msgspec import Struct, structs

from kubeproxy.api.addresses import Family
from kubeproxy.backends.base import (
    AwaitedError,
    Change,
    Driver,
    Failures,
    Leading,
    Measured,
    Retrying,
    StaleError,
    SyncError,
    meaning,
)
from kubeproxy.clock import Clock, SystemClock
from kubeproxy.figures import Figure
from kubeproxy.log import V2, V3, V5, ObjectRef
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, ServicePlan
from kubeproxy.model.state import State
from kubeproxy.reconcile.ledger import Ledger
from kubeproxy.reconcile.listeners import Listeners
from kubeproxy.reconcile.pacer import Kind, Pacer
from kubeproxy.reconcile.planner import Planner
from kubeproxy.reconcile.retries import AllTogether, PieceByPiece
from kubeproxy.reconcile.watchdog import Watchdog

log = logging.getLogger(__name__)


class Waiting(Struct, gc=False):
    """A Service that must be planned again.

    Attributes:
        since: when the first of its changes was received, by the reconciler's clock.
        triggered: the Unix times of these changes in the cluster, as far as they are known.
    """

    since: float
    triggered: list[float]


class Synced(Struct, frozen=True, gc=False):
    """A successful sync and its cost.

    What is in the kernel is reported by the ledger.

    Attributes:
        full: whether everything was compared.
        started: when it started, by the reconciler's clock.
        seconds: how long it took.
        kernel_seconds: how much of that the driver took.
        waited: how many seconds before it started the first of what led to it came in.
        changes: what it changed in the kernel because of changes in the cluster, and since when each waited.
    """

    full: bool
    started: float
    seconds: float
    kernel_seconds: float = 0.0
    waited: float = 0.0
    changes: Sequence[tuple[Change, Waiting]] = ()

    @property
    def triggered(self) -> list[float]:
        """The Unix times of the changes in the cluster that led to it, as far as they are known."""
        return [at for _, waiting in self.changes for at in waiting.triggered]


class Trouble(Struct, frozen=True, gc=False):
    """Drift was detected, or a sync failed; in `words` what was detected, or why it failed."""

    kind: Literal["drift", "failure"]
    words: str


class Reconciler:
    """The control loop of one family.

    Attributes:
        node: the node it plans for.
        ledger: the plans that are wanted, and those that are in the kernel.
        last_queued: when a change was last received, by the clock; None before the first.
        last_success: when a sync last succeeded, by the clock; None before the first.
        failures_in_row: the number of failed syncs since.
        trouble: the error of the last of them.
        failed: how many syncs failed, full ones and partial ones.
        synced: set after the first successful sync.
    """

    def __init__(
        self,
        state: State,
        driver: Driver,
        node: NodeConfig,
        *,
        sync_period: float = 30.0,
        min_sync_period: float | None = None,
        clock: Clock | None = None,
        piecewise: bool = False,
    ) -> None:
        """Makes a reconciler; `run` runs it.

        Args:
            state: the Services and endpoints of the cluster.
            driver: programs the plans.
            node: the node under this family.
            sync_period: seconds between checks for drift, and the longest delay before a failed sync is
                retried.
            min_sync_period: the minimum seconds between the end of a sync and the next; None: adapt to the
                cost of partial syncs.
            clock: the time.
            piecewise: see `backends.mode.Mode`.
        """
        self._driver = driver
        self.node = node
        self.ledger = Ledger(node.family, piecewise=piecewise)
        self._piecewise = piecewise
        self._planner = Planner(state, self.ledger)
        self._sync_period = sync_period
        self._clock = clock or SystemClock()
        self._pacer = Pacer(min_sync_period, sync_period)
        self._watchdog = Watchdog(
            driver,
            node.family,
            look_seconds=sync_period,
            restore=self._restore,
            compare=self.resync,
            detected=lambda words: self._troubled.call(Trouble("drift", words)),
        )
        self._wake = asyncio.Event()
        self._pending: dict[Key, Waiting] = {}
        self._retried: dict[Key, Waiting] = {}  # those of them that the kernel refused before
        self._unsynced: dict[Key, Waiting] = {}  # planned, but the syncs since then failed
        self._queued: float | None = None
        self._syncing: float | None = None
        self._full = True
        self._plan_all = True
        self._restoring = False  # the kernel may have lost rules since the last full sync
        self._node_changed = False
        self._refusals = (
            PieceByPiece(driver) if isinstance(driver, Retrying) else AllTogether(self._clock, sync_period)
        )
        self._listeners: Listeners[Synced] = Listeners(node.family)
        self._troubled: Listeners[Trouble] = Listeners(node.family)
        self._stopping = False
        self._stopped = asyncio.Event()
        self._stopped.set()
        self.last_queued: float | None = None
        self.last_success: float | None = None
        self.failures_in_row = 0
        self.trouble = ""
        self.failed = {True: 0, False: 0}
        self.synced = asyncio.Event()

    @property
    def family(self) -> Family:
        """The family it serves."""
        return self.node.family

    @property
    def pending(self) -> int:
        """How many Services wait for a sync."""
        return len(self._pending) + len(self._retried)

    @property
    def planned(self) -> tuple[int, int]:
        """How many Services are planned of the last time all were, and of how many."""
        return self._planner.progress

    @property
    def repairs(self) -> int:
        """How often drift was detected."""
        return self._watchdog.repairs

    @property
    def queued_since(self) -> float | None:
        """When the oldest change not yet in the kernel was received, by the clock; None if there is none."""
        return self._queued if self._syncing is None else self._syncing

    def in_kernel(self, plan: ServicePlan) -> ServicePlan:
        """A plan that was synced as it is in the kernel: in some modes with other endpoints."""
        return self._driver.in_kernel(plan) if isinstance(self._driver, Leading) else plan

    def figures(self) -> Iterable[Figure]:
        """The metrics of the driver."""
        return self._driver.figures() if isinstance(self._driver, Measured) else ()

    def on_sync(self, listener: Callable[[Synced], None]) -> None:
        """Calls back after each successful sync. What is in the kernel is reported by the ledger."""
        self._listeners.add(listener)

    def on_trouble(self, listener: Callable[[Trouble], None]) -> None:
        """Calls back when drift is detected, and when a sync fails."""
        self._troubled.add(listener)

    def touch(self, keys: Collection[Key], triggered: float | None = None) -> None:
        """Some Services may have to change.

        Args:
            keys: the Services.
            triggered: the Unix time of the change in the cluster; None if it is not known.
        """
        if not keys:
            return
        refused, now = self.ledger.refused, self._clock.now()
        for key in keys:
            pending = self._retried if key in refused else self._pending
            waiting = pending.get(key)
            if waiting is None:
                waiting = pending[key] = Waiting(now, [])
            if triggered is not None:
                waiting.triggered.append(triggered)
        self._queue()

    def set_node(self, node: NodeConfig) -> None:
        """The node has changed: everything is planned again, unless only the ServiceCIDRs have changed."""
        if node == self.node:
            return
        plans_stay = structs.replace(node, service_cidrs=self.node.service_cidrs) == self.node
        self.node = node
        if plans_stay:
            self._node_changed = True
            self._queue()
        else:
            self.resync()

    def resync(self) -> None:
        """Plans everything and compares it with the kernel, soon."""
        self._plan_all = True
        self._restore()

    def _restore(self) -> None:
        """Compares everything that is wanted with the kernel, soon."""
        self._full = True
        self._queue()

    def _queue(self) -> None:
        self.last_queued = self._clock.now()
        if self._queued is None:
            self._queued = self.last_queued
        self._wake.set()

    def watch(self) -> None:
        """From now on drift is detected when it happens, where the kernel sends notifications."""
        self._watchdog.watch()

    async def run(self) -> None:
        """Syncs until it is stopped or cancelled. Rules stay when it ends, and the driver stays open."""
        self._stopped.clear()
        self._watchdog.suspended = False
        try:
            while kind := await self._until_due():
                await self._sync(kind)
        finally:
            self._stopping = False
            self._stopped.set()

    async def stop(self) -> None:
        """Ends `run` after the sync in progress. Changes are collected, and `run` may be called again."""
        if not self._stopped.is_set():
            self._stopping = True
            self._wake.set()
            await self._stopped.wait()
            self._watchdog.suspended = True

    async def _until_due(self) -> Kind | None:
        """Waits until a sync is needed and may begin; returns its kind, None to stop."""
        while True:
            self._wake.clear()
            if self._stopping:
                return None
            now = self._clock.now()
            if due := self._due(now):
                start, kind = due
                if now >= start:
                    return kind
                await self._clock.wait(self._wake, start - now)
            elif now >= self._refusals.next:
                await self._retry()
            elif now >= self._watchdog.next:
                await self._watchdog.check(now)
            else:
                await self._clock.wait(self._wake, min(self._refusals.next, self._watchdog.next) - now)

    async def _retry(self) -> None:
        """Tries refused Services again: all of them, or what the driver says it is time for."""
        log.log(V2, "%(ipFamily)s: trying refused Services again", {"ipFamily": self.family})
        before = self.ledger.refused
        try:
            failures = await self._refusals.retry()
        except Exception as e:
            self._full = True
            self._failed(e, {}, full=True)
            return
        if failures is None:
            self._restore()
        else:
            self.ledger.retried(failures)
            self._report_refused(before, None)

    def _due(self, now: float) -> tuple[float, Kind] | None:
        """When the next sync may begin, and its kind; None if there is nothing to do."""

        def at(kind: Kind) -> tuple[float, Kind]:
            return max(now, self._pacer.start(kind)), kind

        if self._full:
            return at("repair" if self._watchdog.drifted else "full")
        found = [at("full")] if self._retried else []
        if self._pending or self._node_changed:
            found.append(at("partial"))
        return min(found, key=lambda due: due[0], default=None)

    async def _sync(self, kind: Kind) -> None:
        """Does one sync."""
        started = self._clock.now()
        self._pacer.began(kind, started)
        full = kind != "partial"
        if full and self.ledger.refused:
            # If drift is detected only afterwards, these would have less than before.
            await self._watchdog.look(started)
        touched, self._pending = self._pending, {}
        if full:
            self._full = False
            self._restoring |= self._watchdog.drifted
            self._watchdog.began()
        restoring = full and self._restoring
        if full and not restoring:
            touched |= self._retried
            self._retried = {}
        node, node_changed, self._node_changed = self.node, self._node_changed, False
        self._syncing = queued = started if self._queued is None else self._queued
        self._queued = self._syncing if self._retried else None
        try:
            changes: Sequence[Change]
            await self._plan(touched, node, full=full)
            planned = self._clock.now()
            if full:
                plans = self.ledger.restored() if restoring else self.ledger.wanted()
                failures = await self._driver.load(node, plans)
                count = len(plans)
            else:
                changes = self.ledger.due()
                self._explain(touched, changes)
                if not changes and not node_changed:
                    return
                await self._driver.apply(node, changes)
                count = len(changes)
        except Exception as e:
            self._full = True
            self._queued = self._syncing
            self._failed(e, touched, full=full)
            return
        finally:
            self._syncing = None
        ended = self._clock.now()
        self._pacer.succeeded(kind, ended, ended - started)
        if full:
            changes = self._loaded(failures, ended, restoring=restoring)
            self._watchdog.compared(ended, ended - started)
        else:
            self.ledger.applied(changes)
        waits = self._still_waiting(touched)
        waiting = [(c, since) for c in changes if (since := waits.get(c.key))] if waits else ()
        done = Synced(full, started, ended - started, ended - planned, started - queued, waiting)
        self._succeeded(done, count)

    def _still_waiting(self, touched: dict[Key, Waiting]) -> dict[Key, Waiting]:
        """The Services that were touched, and since when they wait if earlier syncs failed."""
        for key, before in self._unsynced.items():
            newer = touched.get(key)
            triggered = [*before.triggered, *(newer.triggered if newer else ())]
            touched[key] = Waiting(before.since, triggered)
        return touched

    def _loaded(self, failures: Failures, now: float, *, restoring: bool) -> Sequence[Change]:
        """Records a full sync; returns what it changed."""
        before = self.ledger.refused
        restoring = restoring and not self._piecewise  # of a mode that is piecewise, everything was tried
        changes = self.ledger.loaded({**before, **failures} if restoring else failures)
        # What the kernel lost of a Service that is refused only now was not restored.
        lacking = (failures.keys() - before.keys()) & self.ledger.plans.keys() if restoring else ()
        self._restoring = bool(lacking)
        if lacking:
            self._restore()
        self._report_refused(before, None if restoring else now)
        return changes

    async def _plan(self, touched: Collection[Key], node: NodeConfig, *, full: bool) -> None:
        """Plans what the sync concerns, and what is touched meanwhile, which the next sync finds in place."""
        meanwhile = (self._pending, self._retried) if full else (self._pending,)
        everything = full and self._plan_all
        if everything:
            self._plan_all = False
        try:
            if everything:
                await self._planner.plan_all(node, *meanwhile)
            else:
                await self._planner.plan(touched, node, *meanwhile)
        except Exception:
            self._plan_all = True
            raise

    def _explain(self, touched: Iterable[Key], changes: Sequence[Change]) -> None:
        """Logs what touched Services mean on this node."""
        if not log.isEnabledFor(V5):
            return
        for key in set(touched) - {c.key for c in changes}:
            log.log(
                V5,
                "Service %(service)s: %(ipFamily)s: the change makes no difference on this node",
                {"service": ObjectRef(*key), "ipFamily": self.family},
            )
        for c in changes:
            log.log(
                V5,
                "Service %(service)s: %(ipFamily)s: %(meaning)s",
                {"service": ObjectRef(*c.key), "ipFamily": self.family, "meaning": meaning(c)},
            )

    def _failed(self, error: Exception, touched: dict[Key, Waiting], *, full: bool) -> None:
        self._unsynced = self._still_waiting(touched)
        self.failed[full] += 1
        if isinstance(error, StaleError) and not full:
            log.info("%(ipFamily)s: full sync: %(reason)s", {"ipFamily": self.family, "reason": error})
            return
        self.failures_in_row += 1
        self.trouble = str(error)
        self._troubled.call(Trouble("failure", self.trouble))
        awaited = (error.FIRST_SECONDS, error.LONGEST_SECONDS) if isinstance(error, AwaitedError) else None
        delay = self._pacer.failed(self._clock.now(), self.failures_in_row, awaited)
        foreseen = isinstance(error, SyncError)
        log.error(
            "%(ipFamily)s: sync failed, trying again in %(seconds).3g s: %(err)s",
            {"ipFamily": self.family, "seconds": delay, "err": error},
            exc_info=not foreseen,
        )

    def _succeeded(self, done: Synced, count: int) -> None:
        self._unsynced = {}
        self.last_success = done.started + done.seconds
        self.failures_in_row = 0
        self.synced.set()
        log.log(
            V3,
            "%(ipFamily)s: %(sync)s sync of %(count)d Services took %(milliseconds).1f ms",
            {
                "ipFamily": self.family,
                "sync": "full" if done.full else "partial",
                "count": count,
                "milliseconds": 1e3 * done.seconds,
            },
        )
        self._listeners.call(done)

    def _report_refused(self, before: Mapping[Key, str], tried: float | None) -> None:
        """Logs which Services are refused now and which no longer, and schedules retries of the refused ones.

        Args:
            before: those that were refused before.
            tried: when they were tried; None if they were not.
        """
        refused = self.ledger.refused
        for key, words in refused.items():
            if before.get(key) != words:
                log.error(
                    "Service %(service)s: %(ipFamily)s rules refused, all others are in place: %(reason)s",
                    {"service": ObjectRef(*key), "ipFamily": self.family, "reason": words},
                )
        for key in (before.keys() - refused.keys()) & self.ledger.plans.keys():
            log.info(
                "Service %(service)s: %(ipFamily)s rules are in place now",
                {"service": ObjectRef(*key), "ipFamily": self.family},
            )
        self._refusals.reported(refused, tried)
        touched = self._pending | self._retried
        self._retried = {key: touched.pop(key) for key in refused if key in touched}
        self._pending = touched
