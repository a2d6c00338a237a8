"""/healthz, /livez and /readyz: whether this proxy works, and whether this node should get traffic.

/livez and /healthz are the reference's, for liveness probes and load balancers: a family is unhealthy when a
change has waited for twice the sync period; /healthz also fails while the node is being removed (KEP-3836).
Both succeed before the first sync, and both ignore that the API server cannot be reached.

/readyz is not in the reference: it succeeds only if the rules are in the kernel and follow the cluster.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from kubeproxy.clock import Clock, SystemClock
from kubeproxy.figures import Figure
from kubeproxy.reconcile.reconciler import Reconciler, Synced
from kubeproxy.serve.message import Handler, HTTPRequest, HTTPResponse
from kubeproxy.sources.base import Status

STALE_SECONDS: Final = 300.0
"""Seconds without an event after which a watch may be stale; API servers send a bookmark each minute."""

FAILURES: Final = 3
"""How many failed syncs in a row make the proxy not ready."""

_NEVER: Final = "0001-01-01T00:00:00Z"


class Health:
    """Determines whether the proxy is healthy and ready.

    Attributes:
        timeout: how long a change may wait for its sync, in seconds.
    """

    def __init__(
        self,
        *,
        timeout: float,
        eligible: Callable[[], bool],
        statuses: Callable[[], Iterable[Status]] = tuple,
        missing: Callable[[], Iterable[str]] = tuple,
        warnings: Callable[[], Iterable[str]] = tuple,
        clock: Clock | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Prepares the pages; there are no control loops until `attach`.

        Args:
            timeout: how long a change may wait for its sync, in seconds.
            eligible: whether the node is not being removed.
            statuses: the states of the source's watches.
            missing: what the source cannot read and has never read, with the reasons.
            warnings: what is wrong and does not keep us from being ready.
            clock: the loops' clock.
            wall: the time of day, in seconds since 1970.
        """
        self.timeout = timeout
        self._eligible = eligible
        self._statuses = statuses
        self._missing = missing
        self._warnings = warnings
        self._clock = clock or SystemClock()
        self._wall = wall
        self._loops: Sequence[Reconciler] = ()
        self._repairs: dict[str, int] = {}
        self._answers: Counter[tuple[str, int]] = Counter()

    def attach(self, loops: Sequence[Reconciler]) -> None:
        """Sets the control loops whose rules are in force, or will be the first."""
        self._loops = loops
        self._repairs = {loop.family: loop.repairs for loop in loops}
        for loop in loops:
            loop.on_sync(self._follower(loop))

    def routes(self) -> Mapping[str, Handler]:
        """The handlers by method and path."""
        return {"GET /healthz": self._healthz, "GET /livez": self._livez, "GET /readyz": self._readyz}

    def healthy(self) -> bool:
        """Whether no change has waited too long."""
        return all(map(self._in_time, self._loops))

    def troubles(self) -> list[str]:
        """Why the proxy is not ready; empty if it is."""
        found = [] if self._loops else ["not all Services and endpoints are known yet"]
        found += self._missing()
        for loop in self._loops:
            if loop.last_success is None:
                found.append(f"{loop.family}: nothing is in the kernel yet")
            if loop.failures_in_row >= FAILURES:
                found.append(f"{loop.family}: {loop.failures_in_row} syncs in a row failed")
            if not self._in_time(loop):
                found.append(f"{loop.family}: changes have waited for more than {self.timeout:g} s")
            if loop.repairs != self._repairs.get(loop.family, 0):
                found.append(f"{loop.family}: another program changed the rules in the kernel")
        if self._loops:
            now = self._clock.now()
            found += [
                f"{status.kind}: no event for {now - status.received:.0f} s: {status.trouble or 'no data on the watch'}"
                for status in self._statuses()
                if now - status.received > STALE_SECONDS
            ]
        return found

    def figures(self) -> Iterable[Figure]:
        """The number of responses by page and status."""
        for (page, status), count in sorted(self._answers.items()):
            yield Figure(
                f"kubeproxy_proxy_{page}_total",
                "counter",
                f"Responses of /{page}.",
                count,
                {"code": str(status)},
            )
        yield Figure("kubeproxy_ready", "gauge", "Whether /readyz succeeds.", not self.troubles())

    def _follower(self, loop: Reconciler) -> Callable[[Synced], None]:
        def synced(done: Synced) -> None:
            if done.full:
                self._repairs[loop.family] = loop.repairs

        return synced

    def _in_time(self, loop: Reconciler) -> bool:
        return loop.queued_since is None or self._clock.now() - loop.queued_since < self.timeout

    def _healthz(self, _: HTTPRequest) -> HTTPResponse:
        eligible = self._eligible()
        return self._answer("healthz", self.healthy() and eligible, {"nodeEligible": eligible})

    def _livez(self, _: HTTPRequest) -> HTTPResponse:
        return self._answer("livez", self.healthy(), {})

    def _readyz(self, _: HTTPRequest) -> HTTPResponse:
        troubles = self.troubles()
        body: dict[str, object] = {"ready": not troubles, "reasons": troubles}
        if warnings := list(self._warnings()):
            body["warnings"] = warnings
        return self._json("readyz", not troubles, body)

    def _answer(self, page: str, good: bool, more: Mapping[str, bool]) -> HTTPResponse:  # noqa: FBT001
        """The reference's response. lastUpdated of a healthy one is now, since no change is waiting."""
        now, wall = self._clock.now(), self._wall()
        updates = [loop.last_success for loop in self._loops if loop.last_success is not None]
        last = wall if good else wall - now + max(updates) if updates else None
        body = {
            "lastUpdated": _time(last),
            "currentTime": _time(wall),
            **more,
            "healthy": self.healthy(),
        }
        if self._loops:
            body["status"] = {
                loop.family: {
                    "lastUpdated": _time(
                        None if loop.last_success is None else wall - now + loop.last_success
                    ),
                    "healthy": self._in_time(loop),
                }
                for loop in sorted(self._loops, key=lambda loop: loop.family)
            }
        return self._json(page, good, body)

    def _json(self, page: str, good: bool, body: Mapping[str, Any]) -> HTTPResponse:  # noqa: FBT001
        status = 200 if good else 503
        self._answers[page, status] += 1
        return HTTPResponse(msgspec.json.encode(body), status, "application/json")


def _time(wall: float | None) -> str:
    """A time of day as Go writes it."""
    if wall is None:
        return _NEVER
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(wall))}.{int(wall % 1 * 1e6):06d}Z"
