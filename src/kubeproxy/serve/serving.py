"""All HTTP servers: the health and metrics addresses, and the health-check node ports of Services."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from kubeproxy import backends
from kubeproxy.config.load import RunOptions
from kubeproxy.events import Events
from kubeproxy.flows import FlowCleaner
from kubeproxy.hub import Hub
from kubeproxy.machine.base import Machine
from kubeproxy.model.plan import Key
from kubeproxy.reconcile.reconciler import Reconciler
from kubeproxy.serve import metrics
from kubeproxy.serve.exposition import Exposition, Provider, of_build
from kubeproxy.serve.healthz import Health
from kubeproxy.serve.http import Door
from kubeproxy.serve.listen import allow_many_files, hold
from kubeproxy.serve.message import router
from kubeproxy.serve.nodehealth import NodeHealth
from kubeproxy.serve.pages import Pages
from kubeproxy.sources.base import Status

LATE: Final = 2.0
"""After how many sync periods a waiting change makes the proxy unhealthy."""

PROBES: Final = 4096
"""How many connections the health-check node ports of all Services accept together."""


class Serving:
    """The servers of one run.

    Attributes:
        health: determines whether the proxy is healthy and ready.
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
    ) -> None:
        """Nothing is served before `run`, and nothing of control loops before `attach`.

        Args:
            machine: the host.
            options: the options of this run.
            hub: the objects of the cluster.
            events: where to report ports that cannot be opened.
            statuses: the states of the source's watches, by kind.
            missing: what the source cannot read and has never read, with the reasons.
        """
        self._machine = machine
        self._options = options
        self._mode = backends.mode(options.config.mode)
        self._hub = hub
        self._events = events
        self._statuses = {} if statuses is None else statuses
        self.health = Health(
            timeout=LATE * self._mode.sync_period(options.config),
            eligible=self._eligible,
            statuses=self._statuses.values,
            missing=missing,
        )
        self._exposition = Exposition()
        self.publish(
            lambda: metrics.of_changes(hub),
            lambda: metrics.of_sources(list(self._statuses.values()), time.monotonic()),
            self.health.figures,
            lambda: metrics.of_options(options),
            lambda: of_build(options.config, options.version),
        )
        self._ports: list[NodeHealth] = []
        self._attached = asyncio.Event()

    def publish(self, *providers: Provider) -> None:
        """Adds the figures of these parts to /metrics."""
        self._exposition.providers += providers

    def attach(self, loops: Sequence[Reconciler], cleaners: Sequence[FlowCleaner]) -> None:
        """Sets the control loops, before they run, and their flow cleaners if the mode has any."""
        self.health.attach(loops)
        door = Door(PROBES)
        for cleaner in cleaners:
            self.publish(metrics.FlowMetrics(cleaner).figures)
        for loop in loops:
            ports = NodeHealth(self._machine, loop, door, self.health.healthy, self._service_failed)
            self._ports.append(ports)
            self.publish(metrics.LoopMetrics(loop, self._mode).figures, ports.figures)
        self._attached.set()

    async def run(self) -> None:
        """Serves until it is cancelled.

        Raises:
            OSError: an address cannot be listened on, with bindAddressHardFail.
        """
        allow_many_files()
        tasks = [asyncio.ensure_future(work) for work in (self._healthz(), self._metrics(), self._services())]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _healthz(self) -> None:
        config = self._options.config
        if config.healthz_address is not None:
            await hold(
                self._machine,
                "health",
                router(self.health.routes()),
                config.healthz_address,
                hard_fail=config.bind_address_hard_fail,
                failed=lambda why: self._failed("FailedToStartProxierHealthcheck", why),
            )

    async def _metrics(self) -> None:
        config = self._options.config
        if config.metrics_address is None:
            return
        pages = Pages(self._options)
        slis = Exposition(process=False)
        slis.providers.append(pages.slis)
        routes = {
            **pages.routes(),
            "GET /metrics": self._exposition.handle,
            "GET /metrics/slis": slis.handle,
        }
        if config.enable_profiling:
            from kubeproxy.serve.profile import Profiles

            routes |= Profiles().routes()
        pages.lists(routes)
        await hold(
            self._machine,
            "metrics",
            router(routes),
            config.metrics_address,
            hard_fail=config.bind_address_hard_fail,
            failed=lambda why: self._failed("FailedToStartMetricServer", why),
        )

    async def _services(self) -> None:
        await self._attached.wait()
        await asyncio.gather(*(ports.run() for ports in self._ports))

    def _eligible(self) -> bool:
        """Whether the node is not being removed (KEP-3836). With manifests it needs no Node object."""
        node = self._hub.node
        return bool(self._options.manifests) if node is None else not node.leaving

    def _failed(self, reason: str, why: str) -> None:
        self._events.node(reason, "StartKubeProxy", why, warning=True)

    def _service_failed(self, key: Key, why: str) -> None:
        self._events.service(key, "FailedToStartServiceHealthcheck", "Listen", why)
