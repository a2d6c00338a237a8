"""The metrics of the control loops: the reference's under its names, and further ones.

Only what cannot be read later is counted after each sync: durations, and how many ports in the kernel have no
endpoint on this node. The rest is read at the scrape from the parts that have it, so metrics cost nothing
between scrapes.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from kubeproxy.backends.mode import Mode
from kubeproxy.clock import Clock, SystemClock
from kubeproxy.config.load import RunOptions
from kubeproxy.figures import DURATIONS, Figure, Histogram, Kind
from kubeproxy.flows import FlowCleaner
from kubeproxy.hub import Hub
from kubeproxy.model.plan import DROP, ServicePlan
from kubeproxy.reconcile.ledger import Recorded
from kubeproxy.reconcile.reconciler import Reconciler, Synced
from kubeproxy.sources.base import Status

LATENCIES: Final = (0.0, 0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30))
"""The bounds, in seconds, of the network programming latency (a service level indicator of Kubernetes)."""

_SYNC = "kubeproxy_sync_proxy_rules_"


class LoopMetrics:
    """The figures of one family."""

    def __init__(
        self,
        loop: Reconciler,
        mode: Mode,
        *,
        clock: Clock | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Counts the syncs of a control loop.

        Args:
            loop: the loop.
            mode: the proxy mode, which has some metrics of its own.
            clock: the loop's clock.
            wall: the time of day, in seconds since 1970.
        """
        self._loop = loop
        self._mode = mode
        self._clock = clock or SystemClock()
        self._wall = wall
        self._syncs = {full: Histogram(DURATIONS) for full in (True, False)}
        self._all_syncs = Histogram(DURATIONS)
        self._kernel = Histogram(DURATIONS)
        self._latency = Histogram(LATENCIES)
        self._synced_at = 0.0
        self._queued: tuple[float, float] = (0.0, 0.0)
        self._far = [0, 0]
        loop.on_sync(self._synced)
        loop.ledger.subscribe(self._recorded)

    def figures(self) -> Iterable[Figure]:
        """The current figures."""
        loop = self._loop
        family = {"ip_family": loop.family}

        def figure(name: str, kind: Kind, text: str, value: float | Histogram, **more: str) -> Figure:
            return Figure(name, kind, text, value, {**family, **more})

        yield figure(f"{_SYNC}duration_seconds", "histogram", "How long a sync took.", self._all_syncs)
        yield figure(
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "histogram",
            "How long a sync of everything took.",
            self._syncs[True],
        )
        yield figure(
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "histogram",
            "How long a sync of changes took.",
            self._syncs[False],
        )
        yield figure(
            "kubeproxy_kernel_commit_duration_seconds",
            "histogram",
            "How much of a sync was spent in programming the kernel.",
            self._kernel,
        )
        yield figure(
            "kubeproxy_network_programming_duration_seconds",
            "histogram",
            "From the change of a Service or Pod until the kernel of this node is programmed.",
            self._latency,
        )
        yield figure(
            f"{_SYNC}last_timestamp_seconds", "gauge", "When a sync last succeeded.", self._synced_at
        )
        if loop.last_queued is not None:
            text = "When a sync was last requested."
            queued = self._wall_of(loop.last_queued)
            yield figure(f"{_SYNC}last_queued_timestamp_seconds", "gauge", text, queued)
        far = f"{_SYNC}no_local_endpoints_total"
        text = "Service ports with a Local traffic policy whose endpoints are all elsewhere."
        for policy, count in zip(("internal", "external"), self._far, strict=True):
            yield figure(far, "gauge", text, count, traffic_policy=policy)
        yield from self._failures(figure)
        yield figure(
            "kubeproxy_drift_repairs_total",
            "counter",
            "How often rules in the kernel were missing or changed, and were restored.",
            loop.repairs,
        )
        yield figure("kubeproxy_services", "gauge", "Services in the kernel.", len(loop.ledger.plans))
        yield figure(
            "kubeproxy_quarantined_services",
            "gauge",
            "Services the kernel refuses; all others are in place.",
            len(loop.ledger.refused),
        )
        yield from loop.figures()

    def _failures(self, figure: Callable[..., Figure]) -> Iterable[Figure]:
        full, partial = self._loop.failed[True], self._loop.failed[False]
        text = "Syncs that failed and were retried."
        name = "kubeproxy_sync_failures_total"
        yield figure(name, "counter", text, full, scope="full")
        yield figure(name, "counter", text, partial, scope="partial")
        for metric in self._mode.failure_metrics:
            yield figure(metric.name, "counter", metric.help, partial if metric.partial else full + partial)

    def _synced(self, done: Synced) -> None:
        self._all_syncs.observe(done.seconds)
        self._syncs[done.full].observe(done.seconds)
        self._kernel.observe(done.kernel_seconds)
        self._synced_at = now = self._wall()
        for began in done.triggered:
            self._latency.observe(now - began)

    def _recorded(self, done: Recorded) -> None:
        for change in done.changes:
            for column, (before, after) in enumerate(
                zip(_far(change.before), _far(change.after), strict=True)
            ):
                self._far[column] += after - before

    def _wall_of(self, queued: float) -> float:
        """Converts a time of the loop's clock to Unix time; the same time always gives the same number."""
        if queued != self._queued[0]:
            self._queued = queued, self._wall() - self._clock.now() + queued
        return self._queued[1]


def _far(plan: ServicePlan | None) -> tuple[int, int]:
    """How many ports drop internal and external traffic because they have no endpoint on this node."""
    if plan is None or not any(port.internal_local or port.external_local for port in plan.ports):
        return 0, 0
    return (
        sum(port.internal_local and port.internal_action == DROP for port in plan.ports),
        sum(port.external_local and port.external and port.external_action == DROP for port in plan.ports),
    )


class FlowMetrics:
    """The figures of one family's cleaning of stale flows."""

    def __init__(self, cleaner: FlowCleaner) -> None:
        self._cleaner = cleaner
        self._seconds = Histogram(DURATIONS)
        cleaner.on_clean(lambda done: self._seconds.observe(done.seconds))

    def figures(self) -> Iterable[Figure]:
        """The current figures."""
        family = {"ip_family": self._cleaner.family}
        name = "kubeproxy_conntrack_reconciler_"
        text = "How long looking for stale flows took."
        yield Figure(f"{name}sync_duration_seconds", "histogram", text, self._seconds, family)
        text = "Stale flows deleted."
        yield Figure(f"{name}deleted_entries_total", "counter", text, self._cleaner.deleted, family)
        text = "Connections to removed endpoints that were ended, because an annotation asks for it."
        yield Figure("kubeproxy_ended_connections_total", "counter", text, self._cleaner.ended, family)
        text = "Sockets of clients that were destroyed, because their connections were to end."
        yield Figure("kubeproxy_destroyed_sockets_total", "counter", text, self._cleaner.destroyed, family)


def of_changes(hub: Hub) -> Iterable[Figure]:
    """Changes that were received, and those that wait.

    A Service and its endpoints are planned, and wait, together. As in the reference, a Service counts once
    for each IP family, because each handles it, and a slice once.
    """
    pending = max((loop.pending for loop in hub.loops), default=0)
    families = max(1, len(hub.loops))
    for name, total in (
        ("service", hub.received["Service"] * families),
        ("endpoint", hub.received["EndpointSlice"]),
    ):
        yield Figure(
            f"{_SYNC}{name}_changes_pending", "gauge", "Services with changes that wait for a sync.", pending
        )
        text = f"How often the source reported a {name}, changed or not."
        yield Figure(f"{_SYNC}{name}_changes_total", "counter", text, total)


def of_options(options: RunOptions) -> Iterable[Figure]:
    """Errors in the configuration with which the program runs nevertheless."""
    text = "Fields of the configuration file that are unknown and therefore ignored."
    yield Figure("kubeproxy_config_unknown_fields", "gauge", text, len(options.unknown_fields))


def of_sources(statuses: Sequence[Status], now: float) -> Iterable[Figure]:
    """What is known of the watches, with monotonic time."""
    for status in statuses:
        kind = {"kind": status.kind}
        if status.received:
            text = "Time since the API server last sent anything on a watch."
            yield Figure("kubeproxy_watch_age_seconds", "gauge", text, now - status.received, kind)
        for name, of, text, value in _WATCHES:
            yield Figure(f"kubeproxy_watch_{name}", of, text, value(status), kind)


_WATCHES: Final[tuple[tuple[str, Kind, str, Callable[[Status], float]], ...]] = (
    ("connected", "gauge", "Whether a watch is open.", lambda status: status.connected),
    ("lists_total", "counter", "Complete lists; all but the first are relists.", lambda status: status.lists),
    ("errors_total", "counter", "Lists and watches that failed.", lambda status: status.errors),
    ("objects", "gauge", "Objects known.", lambda status: status.objects),
)
