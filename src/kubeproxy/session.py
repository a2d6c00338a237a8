"""A running configuration: the drivers of its mode, their control loops, and what depends on these.

A session can be prepared beside another one. The other one is paused while this one programs its plans,
because both may have rules in the same tables; it keeps its drivers, so that it can resume if this one fails.
What another mode left is removed only when the rules of this one are in place.
"""

import asyncio
import contextlib
import gc
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from msgspec import structs

from kubeproxy import backends, nodewatch, sysctls
from kubeproxy import host as hosts
from kubeproxy.api.rows import NodeRow
from kubeproxy.backends.base import Carrying, Driver, SyncError, UnsupportedError
from kubeproxy.backends.mode import Mode
from kubeproxy.config.load import RunOptions
from kubeproxy.config.types import ClientConnection, KubeProxyConfiguration, Logging
from kubeproxy.events import Events
from kubeproxy.feed import Feed
from kubeproxy.flows import FlowCleaner
from kubeproxy.forwarding import Forwarding
from kubeproxy.log import ObjectRef
from kubeproxy.machine.base import Machine
from kubeproxy.model.node import NodeConfig
from kubeproxy.nodewatch import NodeWatch
from kubeproxy.reconcile.ledger import Recorded
from kubeproxy.reconcile.reconciler import Reconciler
from kubeproxy.silence import SilenceWatch
from kubeproxy.spill import SpillWatch

if TYPE_CHECKING:
    from kubeproxy.answers.snapshot import Snapshot
    from kubeproxy.serve.connections import ConnectionMetrics

log = logging.getLogger(__name__)

FIRST_SYNC_SECONDS: Final = 60.0
"""How long the watch of one family is delayed while the other is loaded, which is faster without."""

HANDSHAKE_SECONDS: Final = 2.0
"""How long to wait before what another mode left is removed.

IPVS drops packets of connections whose virtual server was deleted, also of those that were opened just before
our rules were there.
"""

DRAIN_SECONDS: Final = 3600.0
"""How long connections that a replaced driver carries itself may last."""

FAILURES: Final = 3
"""After this number of failed first syncs in a row the other configuration stays in force."""

LOOK_SECONDS: Final = 0.05
"""How often is looked whether something has come about that nothing reports."""


def concern(config: KubeProxyConfiguration, mode: Mode) -> tuple[KubeProxyConfiguration, object]:
    """The part of a configuration a session depends on. If it is equal, a change needs no new session."""
    part = structs.replace(
        config,
        client_connection=ClientConnection(),
        logging=Logging(),
        healthz_bind_address="",
        metrics_bind_address="",
        bind_address_hard_fail=False,
        enable_profiling=False,
        show_hidden_metrics_for_version="",
        oom_score_adj=0,
        config_sync_period=KubeProxyConfiguration().config_sync_period,
        node_condition=False,
    )
    return part, mode.settings(config)


async def open_drivers(machine: Machine, mode: Mode, host: hosts.Host) -> list[tuple[NodeConfig, Driver]]:
    """The driver of each family that can be served; the primary one must be.

    Raises:
        UnsupportedError: the mode cannot run here.
    """
    opened = await asyncio.gather(
        *(asyncio.to_thread(mode.open, machine, node) for node in host.nodes), return_exceptions=True
    )
    found, errors = [], []
    for node, driver in zip(host.nodes, opened, strict=True):
        if isinstance(driver, UnsupportedError) and node is not host.primary:
            log.warning(
                "Only %(ipFamily)s is served: %(err)s", {"ipFamily": host.primary.family, "err": driver}
            )
        elif isinstance(driver, BaseException):
            errors.append(driver)
        else:
            found.append((node, driver))
    if errors:
        for _, each in found:
            await each.close()
        raise errors[0]
    return found


class Session:
    """A running configuration.

    Attributes:
        options: what it is made from.
        mode: the mode.
        feed: the source of the objects.
        loops: the control loop of each family; none before `open`.
        cleaners: delete stale flows, for each loop.
        silences: find endpoints that do not answer, for each loop.
        spills: find near endpoints that are full, for each loop, in modes whose plans follow that.
        connections: count the connections of endpoints, for each loop; none unless it is configured.
        forwarding: whether this host forwards packets.
    """

    def __init__(
        self,
        options: RunOptions,
        machine: Machine,
        feed: Feed,
        events: Events,
        *,
        mode: Mode | None = None,
        before: NodeRow | None = None,
    ) -> None:
        """Nothing is done before `open`.

        Args:
            options: what to run.
            machine: the host.
            feed: the source of the objects.
            events: records Events.
            mode: the mode, if it is not the one the options name.
            before: the Node as it was last known.
        """
        self.options = options
        self.mode = mode or options.mode
        self.feed = feed
        self.loops: list[Reconciler] = []
        self.cleaners: list[FlowCleaner] = []
        self.silences: list[SilenceWatch] = []
        self.spills: list[SpillWatch] = []
        self.connections: list[ConnectionMetrics] = []
        self._machine = machine
        self._events = events
        self._watch = NodeWatch(
            machine,
            options.config,
            feed.hub,
            files=bool(options.manifests),
            before=before,
        )
        self._drivers: list[Driver] = []
        self._before: tuple[Mode, ...] = ()
        self._paused = False
        self._cleaning = asyncio.Lock()
        self._group: asyncio.TaskGroup | None = None
        self.forwarding = Forwarding(machine, self.loops, events.node)

    @property
    def row(self) -> NodeRow | None:
        """The Node as it was last taken into account."""
        return self._watch.row

    async def open(self) -> None:
        """Does everything before the first rule, as soon as the Node, Services and endpoints are known.

        Raises:
            NodeError: the configuration cannot work on this node.
            UnsupportedError: the mode cannot run here.
            SyncError: it cannot run now.
            OSError: the kernel refused something.
        """
        hub = self.feed.hub
        host = await self._watch.known()
        if self.mode.tracked:
            sysctls.apply(self._machine, self.options.config.conntrack)
        opened = await open_drivers(self._machine, self.mode, host)
        self._drivers = [driver for _, driver in opened]
        self.loops += [self._loop(node, driver) for node, driver in opened]
        if self.mode.tracked:
            self.cleaners = [self._cleaner(loop) for loop in self.loops]
        if self.mode.tracked and self.mode.forwards:  # a relay tries another endpoint itself
            self.silences = [
                SilenceWatch(self._machine, loop, hub, self._events.service) for loop in self.loops
            ]
        if self.mode.balancing.steered:
            self.spills = [SpillWatch(self._machine, loop, hub) for loop in self.loops]
        if most := self.options.config.connection_metrics:
            from kubeproxy.serve.connections import ConnectionMetrics

            self.connections = [
                ConnectionMetrics(self._machine, self.mode, loop, most, driver=driver)
                for loop, driver in zip(self.loops, self._drivers, strict=True)
            ]
        await hub.lists_complete.wait()
        for loop in self.loops:
            loop.set_node(loop.node.with_service_cidrs(hub.service_cidrs))

    async def run(
        self,
        before: tuple[Mode, ...],
        *,
        end: Callable[[str], None],
        renew: Callable[[str], None],
    ) -> None:
        """Runs until it is cancelled; the drivers stay open.

        Args:
            before: the modes whose rules this process has put into the kernel and not removed.
            end: called with the reason when the program must end.
            renew: called with the reason when another session is needed.
        """
        self._end, self._renew, self._before = end, renew, before
        try:
            async with asyncio.TaskGroup() as self._group:
                for loop in self.loops:
                    self.feed.contests.follow(loop.ledger)
                self._begin(self._group)
                for cleaner in self.cleaners:
                    self._group.create_task(cleaner.run())
                for watch in self.silences:
                    self._group.create_task(watch.run())
                for spill in self.spills:
                    self._group.create_task(spill.run())
                for counted in self.connections:
                    self._group.create_task(counted.run())
                self._group.create_task(self._watch.follow_addresses())
                self._group.create_task(self._finish())
        finally:
            self._group = None

    async def pause(self) -> None:
        """Ends syncing and cleaning after what is in progress; changes are collected."""
        self._paused = True
        self._watch.unfollow()
        for loop in self.loops:
            await loop.stop()
        async with self._cleaning:
            pass

    @property
    def programmed(self) -> tuple[Mode, ...]:
        """The modes whose rules may be in the kernel: its own, and earlier ones that were not removed yet."""
        return (*self._before, self.mode)

    @property
    def alone(self) -> bool:
        """Whether the kernel has no more rules that this process wrote for earlier sessions."""
        return not self._before

    def resume(self, failed: Mode) -> None:
        """Syncs again, in full, and then removes what a mode left that has failed to take over."""
        assert self._group is not None
        self._paused = False
        self._before = (*self._before, failed)
        for loop in self.loops:
            self.feed.contests.use(loop.ledger)
            loop.synced.clear()
            loop.resync()
        self._begin(self._group)
        self._group.create_task(self._restore())

    def snapshot(self) -> "Snapshot":
        """What is known of the cluster now, for questions."""
        from kubeproxy.answers.snapshot import Snapshot

        nodes = tuple(loop.node for loop in self.loops)
        addresses = {
            node.family: tuple(nodewatch.local_addresses(self._machine, node.family)) for node in nodes
        }
        drivers = dict(zip((node.family for node in nodes), self._drivers, strict=False))
        return Snapshot(self.feed.hub.state, self.mode, nodes, addresses, own=True, drivers=drivers)

    async def synced(self) -> None:
        """Waits until the rules of all families are in place."""
        for loop in self.loops:
            await loop.synced.wait()

    async def failed(self) -> str:
        """Waits until a family's syncs fail again and again; returns what failed."""
        while True:
            for loop in self.loops:
                if loop.failures_in_row >= FAILURES and not loop.synced.is_set():
                    return f"{loop.family}: {loop.failures_in_row} syncs failed: {loop.trouble}"
            await asyncio.sleep(LOOK_SECONDS)

    async def close(self) -> None:
        """Closes the drivers. Rules stay."""
        drivers, self._drivers = self._drivers, []
        for driver in drivers:
            await driver.close()

    async def retire(self) -> None:
        """Closes the drivers after another session has taken over; connections they carry get time to end.

        No rules may lead to the drivers' sockets any more.
        """
        try:
            await asyncio.sleep(HANDSHAKE_SECONDS)
            carrying = [driver for driver in self._drivers if isinstance(driver, Carrying)]
            await asyncio.gather(*(driver.drain(DRAIN_SECONDS) for driver in carrying))
        finally:
            await self.close()

    def _begin(self, group: asyncio.TaskGroup) -> None:
        """Connects the loops to the changes, and runs them."""
        self.feed.hub.loops = self.loops
        self.feed.reporter.use(self.mode.balancing)
        self._watch.follow(self.loops, end=self._end, renew=self._renew)
        for loop in self.loops:
            group.create_task(loop.run())

    def _loop(self, node: NodeConfig, driver: Driver) -> Reconciler:
        config = self.options.config
        loop = Reconciler(
            self.feed.hub.state,
            driver,
            node.with_addresses(nodewatch.local_addresses(self._machine, node.family)),
            sync_period=self.mode.sync_period(config),
            clock=self._machine.clock,
            min_sync_period=self.mode.min_sync_period(config),
            piecewise=self.mode.piecewise,
        )

        def report_refusals(done: Recorded) -> None:
            for key, words in loop.ledger.refused.items() if done.full else ():
                self._events.service(key, "FailedToProgramService", "SyncRules", f"{loop.family}: {words}")

        loop.ledger.subscribe(report_refusals)
        if not self.mode.limits_sources:
            loop.ledger.subscribe(self._report_unlimited)
        return loop

    def _report_unlimited(self, done: Recorded) -> None:
        """Reports Services whose clients are not limited as their annotations say."""
        for change in done.changes:
            before, after = (
                plan is not None and any(port.external_ranges for port in plan.ports)
                for plan in (change.before, change.after)
            )
            if after and not before:
                text = f"{self.mode.name} mode does not limit the clients of node ports and external IPs"
                log.warning(
                    "Service %(service)s: %(problem)s: its annotations for allowed and denied sources are ignored",
                    {"service": ObjectRef(*change.key), "problem": text},
                )
                self._events.service(change.key, "SourcesNotLimited", "SyncRules", text)

    def _cleaner(self, loop: Reconciler) -> FlowCleaner:
        sockets = self.mode.sockets(self._machine, loop.node) if self.mode.sockets is not None else None
        if not self.options.config.destroy_sockets:
            return FlowCleaner(self._machine, loop, sockets=sockets)
        from kubeproxy.destroy import SocketDestroyer

        return FlowCleaner(self._machine, loop, destroyer=SocketDestroyer(self._machine), sockets=sockets)

    async def _finish(self) -> None:
        """Does what follows the first sync; after a timeout also without one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_SYNC_SECONDS):
                await self.synced()
        # What is here stays: neither now nor later is it searched for garbage.
        gc.freeze()
        gc.enable()
        for loop in self.loops:
            loop.watch()
        assert self._group is not None
        if self.mode.forwards:  # the relay of other modes connects to endpoints itself
            self._group.create_task(self.forwarding.run())
        await self.synced()
        refused = {key for loop in self.loops for key in loop.ledger.refused}
        in_place = {loop.family: loop.ledger.plans.keys() - loop.ledger.refused.keys() for loop in self.loops}
        log.info(
            "Synced: %(count)d Services in place%(families)s, %(refused)d refused",
            {
                "count": len({key for keys in in_place.values() for key in keys} - refused),
                "families": "".join(f", {family} {len(keys)}" for family, keys in in_place.items()),
                "refused": len(refused),
            },
        )
        await self._clean_up()
        await self._clean_variants()

    async def _restore(self) -> None:
        """Cleans up after another session that has failed."""
        await self.synced()
        await self._clean_up()
        await self._clean_variants()

    async def _clean_up(self) -> None:
        """Removes what other modes left."""
        await asyncio.sleep(HANDSHAKE_SECONDS)
        for name in self.mode.superseded(self._before):
            async with self._cleaning:
                if self._paused:
                    return
                try:
                    await asyncio.to_thread(backends.cleanup, self._machine, name)
                except SyncError as e:
                    log.warning("Old %(err)s", {"err": e})
        self._before = ()

    async def _clean_variants(self) -> None:
        """Removes rules in the variants of iptables that are not ours, now and at intervals."""
        others = backends.other_variants(self._machine, self.mode, self._drivers)
        while others:
            for other in others:
                async with self._cleaning:
                    if self._paused:
                        return
                    await asyncio.to_thread(other.remove)
            if len(others) > 1:
                return  # nothing of ours is in any: that was for what another mode left
            await asyncio.sleep(self.mode.sync_period(self.options.config))
