"""The control loop of one IP family: brings the kernel to the plans, and keeps it there.

Changes are collected while a sync runs or rests, and the next sync plans each touched Service once, as it stands then;
what came back to what it was costs nothing. When a sync may begin is decided by `pacer`, which states what it
guarantees: in short, the first change after a quiet time or after a full sync goes at once, and changes that follow
each other rest as long as a partial sync takes, one second at most.

A sync that fails is done again, in full, with growing delays. A Service that the kernel refuses is left as it was,
reported, and tried again when it changes and from time to time; it holds up nobody. Now and then the loop looks
whether the kernel still holds what was put there, and mends it.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence

from msgspec import Struct, structs

from kubeproxy.api.addresses import Family
from kubeproxy.backends.base import (
    Change,
    Driver,
    Failures,
    Leading,
    Measured,
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
from kubeproxy.reconcile.pacer import Kind, Pacer

log = logging.getLogger(__name__)

FULL_SYNC_SECONDS = 3600.0
"""How often everything is compared with the kernel although nothing seems wrong."""

_YIELD_EVERY = 500
_LARGE = 5_000
"""A Service with so many endpoints, counted once a port, is planned in a thread: it takes 10 ms and more."""

_LONGEST_REFUSAL_SECONDS = 300.0


class Synced(Struct, frozen=True, gc=False):
    """What a sync did.

    Attributes:
        full: whether everything was compared.
        changes: the Services whose plans were sent, each with the plan that was sent before; in a full sync all Services, and
            those that are gone.
        failures: Services the kernel refuses.
        started: when it started, by the loop's clock.
        seconds: how long it took.
        kernel_seconds: how much of that the driver took.
        triggered: when, in Unix time, what led to these changes happened in the cluster, as far as that was told.
    """

    full: bool
    changes: Sequence[Change]
    failures: Failures
    started: float
    seconds: float
    kernel_seconds: float = 0.0
    triggered: Sequence[float] = ()


class Reconciler:
    """The control loop of one family.

    Attributes:
        node: the node it plans for.
        applied: the plans that are in the kernel, by Service.
        refused: Services the kernel refuses, each with its words.
        last_queued: when something to do last came in, by the clock; None before the first.
        last_success: when a sync last succeeded, by the clock; None before the first.
        failures_in_row: syncs that failed since.
        failed: how many syncs failed, full ones and partial ones.
        repairs: how often the kernel had lost what we put there.
        planned: how many Services the last full sync has planned, and of how many.
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
    ) -> None:
        """Makes a loop; `run` runs it.

        Args:
            state: what the cluster says.
            driver: what brings it to the kernel.
            node: the node under this family.
            sync_period: seconds between looks at the kernel, and the longest delay before a failed sync is retried.
            min_sync_period: least seconds between the end of a sync and the next; None: adapt to what partial syncs cost.
            clock: the time.
        """
        self._state = state
        self._driver = driver
        self.node = node
        self._sync_period = sync_period
        self._clock = clock or SystemClock()
        self._pacer = Pacer(min_sync_period, sync_period)
        self._wake = asyncio.Event()
        self._pending: dict[Key, list[float]] = {}
        self._retried: dict[Key, list[float]] = {}  # those of them that the kernel refused before
        self._queued: float | None = None
        self._syncing: float | None = None
        self._full = True
        self._node_changed = False
        self._repairing = False
        self._next_look = 0.0
        self._next_full = 0.0
        self._next_refused = 0.0
        self._refused_delay = 0.0
        self._listeners: list[Callable[[Synced], None]] = []
        self.applied: dict[Key, ServicePlan] = {}
        self.refused: dict[Key, str] = {}
        self.last_queued: float | None = None
        self.last_success: float | None = None
        self.failures_in_row = 0
        self.failed = {True: 0, False: 0}
        self.repairs = 0
        self.planned = 0, 0
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
    def queued_since(self) -> float | None:
        """When the oldest change not yet in the kernel came in, by the clock; None if there is none."""
        return self._queued if self._syncing is None else self._syncing

    def in_kernel(self, plan: ServicePlan) -> ServicePlan:
        """A plan that was synced as the kernel knows it: in some modes its backends are others."""
        return self._driver.in_kernel(plan) if isinstance(self._driver, Leading) else plan

    def figures(self) -> Iterable[Figure]:
        """What the driver tells of itself."""
        return self._driver.figures() if isinstance(self._driver, Measured) else ()

    def on_sync(self, listener: Callable[[Synced], None]) -> None:
        """Calls back after each successful sync, when the kernel has it."""
        self._listeners.append(listener)

    def touch(self, keys: Collection[Key], triggered: float | None = None) -> None:
        """Some Services may have to change.

        Args:
            keys: the Services.
            triggered: when, in Unix time, what led to that happened in the cluster; None if that is not told.
        """
        if not keys:
            return
        for key in keys:
            pending = self._retried if key in self.refused else self._pending
            before = pending.setdefault(key, [])
            if triggered is not None:
                before.append(triggered)
        self._queue()

    def set_node(self, node: NodeConfig) -> None:
        """The node is another now: everything is planned anew, unless only where ClusterIPs come from has changed."""
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
        """Compares everything with the kernel, soon."""
        self._full = True
        self._queue()

    def _disturbed(self, what: str) -> None:
        """Somebody changed what we put into the kernel. That is mended at once, unless it goes on like this."""
        if self._repairing:
            return
        self._repairing = True
        self.repairs += 1
        log.warning(
            "%(ipFamily)s: %(drift)s; all rules are compared and restored",
            {"ipFamily": self.family, "drift": what},
        )
        self.resync()

    def _queue(self) -> None:
        self.last_queued = self._clock.now()
        if self._queued is None:
            self._queued = self.last_queued
        self._wake.set()

    def watch(self) -> None:
        """From now on what others do to the rules is noticed when they do it, where the kernel tells."""
        try:
            if self._driver.watch(self._disturbed):
                self.resync()
        except OSError as e:
            log.warning(
                "%(ipFamily)s: what others do to the rules will not be noticed at once: %(err)s",
                {"ipFamily": self.family, "err": e},
            )

    async def run(self) -> None:
        """Syncs for ever; ends only by cancellation. Rules stay when it ends."""
        try:
            while True:
                await self._sync(await self._until_due())
        finally:
            await self._driver.close()

    async def _until_due(self) -> Kind:
        """Waits until there is something to do and it may begin; returns what kind of sync does it."""
        while True:
            self._wake.clear()
            now = self._clock.now()
            if due := self._due(now):
                start, kind = due
                if now >= start:
                    return kind
                await self._clock.wait(self._wake, start - now)
            elif self.refused and now >= self._next_refused:
                log.log(V2, "%(ipFamily)s: trying refused Services again", {"ipFamily": self.family})
                self.resync()
            elif now >= self._next_full:
                self.resync()
            elif now >= self._next_look:
                self._next_look = now + self._sync_period
                if not await self._driver.intact():
                    self._disturbed("somebody changed the rules in the kernel")
            else:
                timers = [self._next_look, self._next_full, *([self._next_refused] if self.refused else [])]
                await self._clock.wait(self._wake, min(timers) - now)

    def _due(self, now: float) -> tuple[float, Kind] | None:
        """When the next sync may begin, and its kind; None if there is nothing to do."""

        def at(kind: Kind) -> tuple[float, Kind]:
            return max(now, self._pacer.start(kind)), kind

        if self._full:
            return at("repair" if self._repairing else "full")
        found = [at("full")] if self._retried else []
        if self._pending or self._node_changed:
            found.append(at("partial"))
        return min(found, key=lambda due: due[0], default=None)

    async def _sync(self, kind: Kind) -> None:
        """Does one sync of what is due."""
        started = self._clock.now()
        self._pacer.began(kind, started)
        full = kind != "partial"
        pending, self._pending = self._pending, {}
        if full:
            pending |= self._retried
            self._retried = {}
            self._full = self._repairing = False
        node, node_changed, self._node_changed = self.node, self._node_changed, False
        self._syncing = started if self._queued is None else self._queued
        self._queued = self._syncing if self._retried else None
        try:
            if full:
                plans = await self._all(node)
                planned = self._clock.now()
                failures = await self._driver.load(node, plans)
                changes = [Change(key, self.applied.get(key), plan) for key, plan in plans.items()]
                changes += [Change(key, plan, None) for key, plan in self.applied.items() if key not in plans]
            else:
                changes = await self._differences(pending, node)
                if not changes and not node_changed:
                    return
                planned = self._clock.now()
                failures = await self._driver.apply(node, changes)
        except Exception as e:
            self._full = True
            self._queued = self._syncing
            self._failed(e, full=full)
            return
        finally:
            self._syncing = None
        ended = self._clock.now()
        self._pacer.succeeded(kind, ended, ended - started)
        triggered = [at for c in changes for at in pending.get(c.key, ())] if pending else ()
        self._succeeded(Synced(full, changes, failures, started, ended - started, ended - planned, triggered))

    async def _all(self, node: NodeConfig) -> dict[Key, ServicePlan]:
        """Plans every Service, some at a time, and those that are touched meanwhile again at the end.

        So all plans are of one moment, in which a front has one owner. The next sync finds those touched in place.
        """
        plans = {}
        keys = list(self._state.services)
        self.planned = 0, len(keys)
        for count, key in enumerate(keys, 1):
            plans[key] = await self._plan(key, node)
            if count % _YIELD_EVERY == 0:
                self.planned = count, len(keys)
                await asyncio.sleep(0)
        self.planned = len(keys), len(keys)
        for key in self._pending:
            plans[key] = self._state.plan(key, node)
        return {key: plan for key, plan in plans.items() if plan is not None}

    async def _differences(self, keys: Collection[Key], node: NodeConfig) -> list[Change]:
        """Plans some Services, and those that are touched meanwhile, see `_all`."""
        plans = {}
        for count, key in enumerate(keys, 1):
            plans[key] = await self._plan(key, node)
            if count % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
        for key in self._pending:
            plans[key] = self._state.plan(key, node)
        pairs = ((key, self.applied.get(key), after) for key, after in plans.items())
        changes = [Change(key, before, after) for key, before, after in pairs if before != after]
        if log.isEnabledFor(V5):
            self._explain(plans, changes)
        return changes

    def _explain(self, keys: Collection[Key], changes: Sequence[Change]) -> None:
        """Logs what touched Services mean on this node."""
        for key in set(keys) - {c.key for c in changes}:
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

    async def _plan(self, key: Key, node: NodeConfig) -> ServicePlan | None:
        """Plans a Service; a large one in a thread, so that the event loop does not wait for it."""
        if self._state.size(key) < _LARGE:
            return self._state.plan(key, node)
        return await asyncio.to_thread(self._state.prepare(key, node))

    def _failed(self, error: Exception, *, full: bool) -> None:
        self.failed[full] += 1
        if isinstance(error, StaleError) and not full:
            log.info("%(ipFamily)s: full sync: %(reason)s", {"ipFamily": self.family, "reason": error})
            return
        self.failures_in_row += 1
        delay = self._pacer.failed(self._clock.now(), self.failures_in_row)
        foreseen = isinstance(error, SyncError)
        log.error(
            "%(ipFamily)s: sync failed, trying again in %(seconds).3g s: %(err)s",
            {"ipFamily": self.family, "seconds": delay, "err": error},
            exc_info=not foreseen,
        )

    def _succeeded(self, done: Synced) -> None:
        now = done.started + done.seconds
        if done.full:
            self.applied = {
                c.key: c.after for c in done.changes if c.after is not None and c.key not in done.failures
            }
            self._next_full = now + max(FULL_SYNC_SECONDS, 1000 * done.seconds)
            self._next_look = now + self._sync_period
            self._report(done.failures, now)
        else:
            for change in done.changes:
                if change.after is None:
                    self.applied.pop(change.key, None)
                else:
                    self.applied[change.key] = change.after
        self.last_success = now
        self.failures_in_row = 0
        self.synced.set()
        log.log(
            V3, "%(ipFamily)s: %(sync)s sync of %(count)d Services took %(milliseconds).1f ms", {"ipFamily": self.family, "sync": "full" if done.full else "partial", "count": len(done.changes), "milliseconds": 1e3 * done.seconds},
        )  # fmt: skip
        for listener in self._listeners:
            try:
                listener(done)
            except Exception:
                log.exception(
                    "%(ipFamily)s: what follows a sync failed; the rules are in place",
                    {"ipFamily": self.family},
                )

    def _report(self, failures: Failures, now: float) -> None:
        """Tells which Services are refused now, and which no more."""
        for key, words in failures.items():
            if self.refused.get(key) != words:
                log.error(
                    "Service %(service)s: %(ipFamily)s rules refused, all others are in place: %(reason)s",
                    {"service": ObjectRef(*key), "ipFamily": self.family, "reason": words},
                )
        for key in (self.refused.keys() - failures.keys()) & self.applied.keys():
            log.info(
                "Service %(service)s: %(ipFamily)s rules are in place now",
                {"service": ObjectRef(*key), "ipFamily": self.family},
            )
        if failures:
            self._refused_delay = min(
                max(2 * self._refused_delay, self._sync_period), _LONGEST_REFUSAL_SECONDS
            )
            self._next_refused = now + self._refused_delay
        else:
            self._refused_delay = 0.0
        self.refused = dict(failures)
        touched = self._pending | self._retried
        self._retried = {key: touched.pop(key) for key in failures if key in touched}
        self._pending = touched
