"""How long it takes until a change in the cluster is in the kernel of this node, by the kind of the change.

A client can still be sent to an endpoint that leaves until its node has programmed that. So these times are
how long an endpoint must serve after it has begun to terminate (with a `preStop` hook, for example).

A change is measured from the time at which it was received, and from the time of the change itself where the
EndpointSlice has it (annotation `endpoints.kubernetes.io/last-change-trigger-time`). Syncs that failed and
were repeated are part of the time. What is programmed at a start is not counted, since nothing changed then.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from kubeproxy.answers.observed import ChangeKind, Converged, Since
from kubeproxy.api.addresses import Family
from kubeproxy.backends.base import Change
from kubeproxy.clock import Clock, SystemClock
from kubeproxy.figures import Figure, Histogram
from kubeproxy.model.plan import ServicePlan
from kubeproxy.reconcile.reconciler import Reconciler, Synced

SECONDS: Final = (*(step * 10.0**power for power in range(-3, 2) for step in (1, 2, 5)), 100.0, 300.0)
"""The bounds of the histograms: 1, 2, 5, 10 ms and so on, to 300 s."""


class Convergence:
    """Measures the control loops of all sessions."""

    def __init__(self, *, clock: Clock | None = None, wall: Callable[[], float] = time.time) -> None:
        """Nothing is measured before `follow`.

        Args:
            clock: the clock of the loops.
            wall: the time of day, in seconds since 1970.
        """
        self._clock = clock or SystemClock()
        self._wall = wall
        self._times: dict[tuple[Family, ChangeKind, Since], Histogram] = {}

    def follow(self, loop: Reconciler) -> None:
        """Measures the changes that a loop programs, too."""

        def synced(done: Synced) -> None:
            self._synced(loop.family, done)

        loop.on_sync(synced)

    def figures(self) -> Iterable[Figure]:
        """The histograms of what was measured so far."""
        text = "From a change in the cluster, or from its arrival at this node, until it is in the kernel."
        for (family, kind, since), times in sorted(self._times.items()):
            labels = {"ip_family": family, "change": kind, "since": since}
            yield Figure("kubeproxy_convergence_duration_seconds", "histogram", text, times, labels)

    def summary(self) -> tuple[Converged, ...]:
        """The distributions of what was measured so far, over both families."""
        total: dict[tuple[ChangeKind, Since], Histogram] = {}
        for (_, kind, since), times in self._times.items():
            before = total.get((kind, since))
            total[kind, since] = times if before is None else before.plus(times)
        return tuple(
            Converged(kind, since, times.cumulative()[-1], *(_within(times, q) for q in (0.5, 0.99, 0.999)))
            for (kind, since), times in sorted(total.items())
        )

    def _synced(self, family: Family, done: Synced) -> None:
        ended = done.started + done.seconds
        changed = self._wall() - self._clock.now() + ended
        for change, waiting in done.changes:
            for kind in kinds(change):
                self._observe(family, kind, "received", ended - waiting.since)
                for at in waiting.triggered:
                    self._observe(family, kind, "change", changed - at)

    def _observe(self, family: Family, kind: ChangeKind, since: Since, seconds: float) -> None:
        times = self._times.get((family, kind, since))
        if times is None:
            times = self._times[family, kind, since] = Histogram(SECONDS)
        times.observe(max(0.0, seconds))


def kinds(change: Change) -> Iterator[ChangeKind]:
    """What a change of the kernel means, as an endpoint and its clients see it."""
    before, after = change.before, change.after
    if before is None or after is None:
        yield "service_added" if before is None else "service_removed"
        return
    had, has = _endpoints(before), _endpoints(after)
    if had - has:
        yield "endpoint_removed"
    if has - had:
        yield "endpoint_added"
    if had == has:
        yield "service_changed"


def _endpoints(plan: ServicePlan) -> frozenset[tuple[str, str, str, int]]:
    return frozenset(
        (port.name, port.protocol, endpoint.address, endpoint.port)
        for port in plan.ports
        for endpoint in (*port.cluster, *port.local)
    )


def _within(times: Histogram, share: float) -> float | None:
    bound = times.quantile(share)
    return None if math.isinf(bound) else bound
