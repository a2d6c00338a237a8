"""Metrics of the connections of endpoints, from the counters of the rules or of the relay.

They are off unless they are configured.

The number of time series is limited: an endpoint gets one with its first connection, as long as there are not
too many, and loses it when its Service has it no longer. The connections of all other endpoints are added up.

Reading the counters of 100,000 endpoints takes tenths of a second, and the programs of iptables much more. So
they are read in a thread, and after that not for a hundred times as long.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

from kubeproxy.backends.base import ConnectionCounter, Driver, EndpointCounts, SyncError, UnsupportedError
from kubeproxy.backends.mode import Mode
from kubeproxy.backends.relay_counts import RelayCounter
from kubeproxy.backends.relayed import Counting
from kubeproxy.figures import Figure
from kubeproxy.machine.base import Machine
from kubeproxy.model.plan import Key, PortId, ServicePlan
from kubeproxy.reconcile.ledger import Recorded
from kubeproxy.reconcile.reconciler import Reconciler

log = logging.getLogger(__name__)

LEAST_SECONDS: Final = 10.0
"""The least time between two readings."""

_TIMES_AS_LONG: Final = 100

_NAME: Final = "kubeproxy_endpoint_connections_total"
_TEXT: Final = "New connections that were sent to an endpoint."
_OTHERS: Final = "kubeproxy_other_endpoints_connections_total"
_OTHERS_TEXT: Final = "New connections that were sent to the endpoints without a series of their own."

At = tuple[PortId, str, int]
"""An endpoint of a Service port: the port, address and port of the endpoint."""


class ConnectionMetrics:
    """The counts of one family."""

    def __init__(
        self,
        machine: Machine,
        mode: Mode,
        loop: Reconciler,
        most: int,
        *,
        driver: Driver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is read before `run`.

        Args:
            machine: the host.
            mode: the mode of the rules.
            loop: the loop that programs them.
            most: how many endpoints may have a series.
            driver: the driver, whose relay counts if the mode has no rules that do.
            clock: the time in seconds.
        """
        self._machine = machine
        self._mode = mode
        self._loop = loop
        self._most = most
        self._driver = driver
        self._clock = clock
        self._pending: dict[Key, ServicePlan | None] = {}
        self._endpoints: dict[Key, frozenset[At]] = {}
        self._last: dict[At, int] = {}
        self._series: dict[At, int] = {}
        self._others = 0
        self._warned = False
        loop.ledger.subscribe(self._recorded)

    async def run(self) -> None:
        """Reads the counters again and again, until it is cancelled."""
        counter = await self._open()
        if counter is None:
            return
        try:
            while True:
                began = self._clock()
                await self._read(counter)
                taken = self._clock() - began
                await asyncio.sleep(max(LEAST_SECONDS, _TIMES_AS_LONG * taken))
        finally:
            counter.close()

    def figures(self) -> Iterable[Figure]:
        """The counts as they were last read."""
        family = self._loop.family
        for ((name, protocol), address, number), count in self._series.items():
            service, _, port = name.partition(":")
            namespace, _, service = service.partition("/")
            labels = {
                "ip_family": family,
                "namespace": namespace,
                "service": service,
                "port": port,
                "protocol": protocol,
                "endpoint": f"[{address}]:{number}" if ":" in address else f"{address}:{number}",
            }
            yield Figure(_NAME, "counter", _TEXT, count, labels)
        yield Figure(_OTHERS, "counter", _OTHERS_TEXT, self._others, {"ip_family": family})

    async def _open(self) -> ConnectionCounter | None:
        make = self._mode.counter
        if not self._mode.forwards and isinstance(self._driver, Counting):
            return RelayCounter(self._driver.traffic)
        if make is None:
            log.warning(
                "%(ipFamily)s: no metrics of connections: the rules of %(mode)s mode do not count them",
                {"ipFamily": self._loop.family, "mode": self._mode.name},
            )
            return None
        try:
            return await asyncio.to_thread(make, self._machine, self._loop.node)
        except (OSError, SyncError, UnsupportedError) as e:
            log.warning(
                "%(ipFamily)s: no metrics of connections: %(err)s", {"ipFamily": self._loop.family, "err": e}
            )
            return None

    def _recorded(self, done: Recorded) -> None:
        if done.full:
            self._pending.update(dict.fromkeys(self._endpoints))
            self._pending.update(self._loop.ledger.plans)
        else:
            self._pending.update((change.key, change.after) for change in done.changes)

    async def _read(self, counter: ConnectionCounter) -> None:
        pending, self._pending = self._pending, {}
        for key, plan in pending.items():
            counter.set(key, plan)
            self._set(key, plan)
        try:
            counts = await asyncio.to_thread(counter.read)
        except (OSError, SyncError) as e:
            log.warning(
                "%(ipFamily)s: the counters of connections cannot be read, trying again: %(err)s",
                {"ipFamily": self._loop.family, "err": e},
            )
            return
        if counts is not None:
            self._take(counts)
        elif self._endpoints and not self._warned:
            self._warned = True
            log.warning(
                "%(ipFamily)s: no metrics of connections: the rules do not count them (nftables.counters is off)",
                {"ipFamily": self._loop.family},
            )

    def _set(self, key: Key, plan: ServicePlan | None) -> None:
        before = self._endpoints.pop(key, frozenset())
        after = frozenset(
            ((port.name, port.protocol), each.address, each.port)
            for port in (plan.ports if plan is not None else ())
            for each in port.endpoints
        )
        if after:
            self._endpoints[key] = after
        for gone in before - after:
            self._last.pop(gone, None)
            self._series.pop(gone, None)

    def _take(self, counts: EndpointCounts) -> None:
        for endpoints in self._endpoints.values():
            for at in endpoints:
                port, address, number = at
                count = counts.get(port, {}).get((address, number), 0)
                before = self._last.get(at, 0)
                if count == before:
                    continue
                more = count - before if count > before else count  # the counter began at 0 again
                self._last[at] = count
                if at in self._series or len(self._series) < self._most:
                    self._series[at] = count
                else:
                    self._others += more
