"""All HTTP servers: the health and metrics addresses, and the health-check node ports of Services."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from kubeproxy import backends
from kubeproxy.api.addresses import Family
from kubeproxy.backends.mode import Mode
from kubeproxy.config.load import RunOptions
from kubeproxy.events import Events
from kubeproxy.figures import Figure
from kubeproxy.flows import FlowCleaner
from kubeproxy.hub import Hub
from kubeproxy.machine.base import Machine
from kubeproxy.model.plan import Key
from kubeproxy.reconcile.reconciler import Reconciler
from kubeproxy.serve import metrics
from kubeproxy.serve.convergence import Convergence
from kubeproxy.serve.exposition import Exposition, Provider, of_build
from kubeproxy.serve.healthz import Health
from kubeproxy.serve.http import Door
from kubeproxy.serve.listen import Port, allow_many_files
from kubeproxy.serve.message import Handler, router
from kubeproxy.serve.nodehealth import NodeHealth
from kubeproxy.serve.page.site import StatusPage
from kubeproxy.serve.pages import Pages
from kubeproxy.sources.base import Status

if TYPE_CHECKING:
    from kubeproxy.answers.snapshot import Snapshot

LATE: Final = 2.0
"""After how many sync periods a waiting change makes the proxy unhealthy."""

PROBES: Final = 4096
"""How many connections the health-check node ports of all Services accept together."""


class Serving:
    """The servers of one run. What they serve and where may change while they run.

    Attributes:
        health: determines whether the proxy is healthy and ready.
        convergence: how long changes take until they are in the kernel.
    """

    def __init__(
        self,
        machine: Machine,
        options: RunOptions,
        hub: Hub,
        events: Events,
        *,
        statuses: Mapping[str, Status] | None = None,
        missing: Callable[[], Iterable[str]] = tuple,
        warnings: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        """Nothing is served before `run`, and nothing of control loops before `attach`.

        Args:
            machine: the host.
            options: the options of this run.
            hub: the objects of the cluster.
            events: where to report ports that cannot be opened.
            statuses: the states of the source's watches, by kind.
            missing: what the source cannot read and has never read, with the reasons.
            warnings: what is wrong and does not keep us from being ready.
        """
        self._machine = machine
        self._options = options
        self._hub = hub
        self._events = events
        self._statuses: Mapping[str, Status] = {}
        self._missing = missing
        self.health = Health(
            timeout=0.0,
            eligible=self._eligible,
            statuses=lambda: self._statuses.values(),  # noqa: PLW0108 it changes
            missing=lambda: self._missing(),  # noqa: PLW0108
            warnings=warnings,
        )
        self.convergence = Convergence(clock=machine.clock)
        self._exposition = Exposition()
        self.publish(
            lambda: metrics.of_sources(list(self._statuses.values()), time.monotonic()),
            self.health.figures,
            lambda: metrics.of_options(self._options),
            lambda: of_build(self._options.config, self._options.version),
            self._port_figures,
            self.convergence.figures,
        )
        self._pages = Pages(options)
        self._page = StatusPage(machine, options, self.health)
        self._slis = Exposition(process=False)
        self._slis.providers.append(self._pages.slis)
        self._answer: Handler = router({})
        self._door = Door(PROBES)
        self._ports: dict[Family, tuple[NodeHealth, asyncio.Task[None]]] = {}
        self._broken: BaseException | None = None
        self._breaks = asyncio.Event()
        self._healthz = Port(
            machine,
            "health",
            router(self.health.routes()),
            failed=lambda why: self._failed("FailedToStartProxierHealthcheck", why),
        )
        self._metrics = Port(
            machine,
            "metrics",
            lambda request: self._answer(request),  # noqa: PLW0108
            failed=lambda why: self._failed("FailedToStartMetricServer", why),
        )
        self.read_from(hub, statuses or {}, missing)
        self.use(options)

    def publish(self, *providers: Provider) -> None:
        """Adds providers of metrics that last as long as the process."""
        self._exposition.providers += providers

    def read_from(
        self,
        hub: Hub,
        statuses: Mapping[str, Status],
        missing: Callable[[], Iterable[str]],
        *providers: Provider,
    ) -> None:
        """Objects come from here now; see the arguments of the constructor.

        Args:
            hub: what is known of the cluster.
            statuses: what the source knows of its connections, by kind.
            missing: what the source cannot read and has never read, with the reasons.
            providers: the metrics of the source.
        """
        self._hub, self._statuses, self._missing = hub, statuses, missing
        self._page.read_from(hub)
        self._exposition.replace("source", lambda: metrics.of_changes(hub), *providers)

    def reserve(self, options: RunOptions) -> None:
        """Binds the addresses of options that may be used next.

        Raises:
            OSError: one cannot be had, and by the configuration this is fatal.
        """
        config = options.config
        self._healthz.reserve(config.healthz_address, hard_fail=config.bind_address_hard_fail)
        self._metrics.reserve(config.metrics_address, hard_fail=config.bind_address_hard_fail)

    def release(self) -> None:
        """The options for which addresses were bound are not used."""
        self._healthz.release()
        self._metrics.release()

    def use(self, options: RunOptions) -> None:
        """These options are in force now: the pages show them, and are served where they say."""
        self._options = options
        config = options.config
        self.health.timeout = LATE * backends.mode(config.mode).sync_period(config)
        self._pages.options = options
        routes: dict[str, Handler] = {
            **self._pages.routes(),
            "GET /metrics": self._exposition.handle,
            "GET /metrics/slis": self._slis.handle,
            **self._page.use(options),
        }
        if config.enable_profiling:
            from kubeproxy.serve.profile import Profiles

            routes |= Profiles().routes()
        self._pages.lists(routes)
        self._answer = router(routes)
        self._healthz.want(config.healthz_address, hard_fail=config.bind_address_hard_fail)
        self._metrics.want(config.metrics_address, hard_fail=config.bind_address_hard_fail)

    def follow(
        self, loops: Sequence[Reconciler], cleaners: Sequence[FlowCleaner], mode: Mode
    ) -> Sequence[Provider]:
        """The metrics of loops that are about to run, for `attach`.

        Args:
            loops: the loops.
            cleaners: what follows each: none where the kernel has no flows of ours.
            mode: their mode.
        """
        for loop in loops:
            self._page.syncs.follow(loop)
            self.convergence.follow(loop)
        return (
            *(metrics.FlowMetrics(cleaner).figures for cleaner in cleaners),
            *(metrics.LoopMetrics(loop, mode).figures for loop in loops),
        )

    def attach(self, loops: Sequence[Reconciler], *providers: Provider) -> None:
        """These are the loops whose rules are in force, or will be first.

        Args:
            loops: the loops.
            providers: their metrics; the counters of the loops before them are continued.
        """
        self.health.attach(loops)
        self._page.attach(loops)
        self._exposition.replace("rules", *providers)
        gone = self._ports.keys() - {loop.family for loop in loops}
        for family in gone:
            self._ports.pop(family)[1].cancel()
        for loop in loops:
            if loop.family in self._ports:
                self._ports[loop.family][0].follow(loop)
            else:
                ports = NodeHealth(self._machine, loop, self._door, self.health.healthy, self._service_failed)
                task = asyncio.ensure_future(ports.run())
                task.add_done_callback(self._ended)
                self._ports[loop.family] = ports, task

    def answer_from(self, snapshot: Callable[[], "Snapshot"]) -> None:
        """Questions are answered from what this returns, what is known of the cluster now."""
        self._page.answer_from(snapshot)

    async def run(self) -> None:
        """Serves until it is cancelled.

        Raises:
            OSError: an address cannot be listened on, with bindAddressHardFail.
        """
        allow_many_files()
        works = (self._healthz.run(), self._metrics.run(), self._unbroken())
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            await asyncio.gather(*tasks)
        finally:
            tasks += [task for _, task in self._ports.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._page.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """The ports of a family are served no more: it was cancelled, or something unforeseen happened."""
        if not task.cancelled():
            self._broken = task.exception()
            self._breaks.set()

    async def _unbroken(self) -> None:
        await self._breaks.wait()
        if self._broken is not None:
            raise self._broken

    def _port_figures(self) -> Iterable[Figure]:
        for ports, _ in self._ports.values():
            yield from ports.figures()

    def _eligible(self) -> bool:
        """Whether the node is not being removed (KEP-3836). With manifests it needs no Node object."""
        node = self._hub.node
        return bool(self._options.manifests) if node is None else not node.leaving

    def _failed(self, reason: str, why: str) -> None:
        self._events.node(reason, "StartKubeProxy", why, warning=True)

    def _service_failed(self, key: Key, why: str) -> None:
        self._events.service(key, "FailedToStartServiceHealthcheck", "Listen", why)
