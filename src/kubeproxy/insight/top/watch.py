"""Readings of all that is counted about Services, and rates between two of them.

Everything costs by its number: 100,000 elements or rules, or as many tracked flows, take some tenths of a
second to read. So each source is read as often as its share of a processor allows, the Services that are
looked at apart: those of a map of nftables mode are read one by one. How old a figure is, is part of the
answer.
"""

import errno
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from kubeproxy.answers.snapshot import Snapshot
from kubeproxy.api.addresses import Family
from kubeproxy.backends.base import ConnectionCounter, SyncError, UnsupportedError
from kubeproxy.insight.top.flows import ACCOUNTING, FlowWatch, OpenFlows, list_open
from kubeproxy.insight.top.fronts import FrontIndex, Place, PortName
from kubeproxy.insight.top.tally import Endpoint, Rates, uneven
from kubeproxy.insight.top.values import LastChange, Top, TopEndpoint, TopPort, TopService, TopSources
from kubeproxy.machine.base import Machine
from kubeproxy.model.plan import Key, PortPlan, ServicePlan

SHARE: Final = 0.006
"""The share of a processor that each of the two lists may take."""

COUNTERS: Final = "counters"
EVENTS: Final = "events"


def processor_seconds() -> float:
    """The processor time of this process and of the programs it ran."""
    return sum(os.times()[:4])


class Pace:
    """When something may be read again: its share of a processor is limited."""

    def __init__(self, cost: Callable[[], float]) -> None:
        self._cost = cost
        self._due = 0.0
        self.at: float | None = None

    def due(self, now: float) -> bool:
        """Whether it may be read."""
        return now >= self._due

    def read(self, work: Callable[[], None], now: float) -> None:
        """Reads it."""
        before = self._cost()
        work()
        self.at = now
        self._due = now + (self._cost() - before) / SHARE


class TopWatch:
    """All sources of one node."""

    def __init__(
        self,
        snapshot: Snapshot,
        machine: Machine,
        *,
        clock: Callable[[], float] = time.monotonic,
        cost: Callable[[], float] = processor_seconds,
    ) -> None:
        """Opens the sources; those that cannot be opened become troubles.

        Args:
            snapshot: the cluster, on this host.
            machine: this host.
            clock: the time in seconds.
            cost: the processor time that was used, in seconds.
        """
        self._snapshot, self._machine, self._clock = snapshot, machine, clock
        self._troubles: dict[str, str] = {}
        self._fronts = {
            node.family: FrontIndex(node.family, snapshot.local_addresses[node.family])
            for node in snapshot.nodes
        }
        self._rates: dict[PortName, Rates] = {}
        self._sent: dict[PortName, Rates] = {}
        self._received: dict[PortName, Rates] = {}
        self._open: dict[PortName, OpenFlows] | None = None
        self._changes: dict[Key, LastChange] = {}
        self._counters: dict[Family, ConnectionCounter] = {}
        self._counting = False
        self._pace_counters, self._pace_open = Pace(cost), Pace(cost)
        self._open_counters()
        for node in snapshot.nodes:
            for key, plan in snapshot.plans(node.family).items():
                self._set(node.family, key, plan)
        self._flows: FlowWatch | None = None
        try:
            self._flows = FlowWatch(machine, self._find)
        except OSError as e:
            self._trouble("events", f"connections that begin and end are not seen: {self._why(e)}")
        self._began = clock()

    def close(self) -> None:
        """Closes the sources."""
        for counter in self._counters.values():
            counter.close()
        if self._flows is not None:
            self._flows.close()

    def replan(self, family: Family, key: Key, plan: ServicePlan | None) -> None:
        """A Service has this plan now; None if it is gone."""
        before = {port: self._endpoints(port) for port in self._fronts[family].of(key)}
        self._set(family, key, plan)
        for port in self._fronts[family].of(key):
            if port in self._rates and before.get(port) != self._endpoints(port):
                self._rates[port].begin()

    def changed(self, key: Key, change: LastChange) -> None:
        """Notes the last change of a Service."""
        self._changes[key] = change

    def services(self) -> set[Key]:
        """All Services."""
        return {port.service for fronts in self._fronts.values() for port in fronts.ports}

    def endpoints(self, family: Family, key: Key) -> frozenset[Endpoint]:
        """The endpoints of a Service."""
        return frozenset().union(*(self._endpoints(port) for port in self._fronts[family].of(key)))

    def poll(self) -> None:
        """Takes in what the kernel reported; to be called several times a second when there is much."""
        if self._flows is not None:
            self._flows.poll()

    def look(self, only: Collection[Key] = (), *, everything: bool = False) -> None:
        """Reads what may be read now.

        Args:
            only: Services that are read in any case, if this is possible at their cost.
            everything: read everything, whatever it costs.
        """
        now = self._clock()
        self.poll()
        if everything or self._pace_counters.due(now):
            self._pace_counters.read(lambda: self._read_counters((), now), now)
        elif only:
            self._read_counters(only, now)
        if everything or self._pace_open.due(now):
            self._pace_open.read(self._read_open, now)
        self._read_flows(now)

    def top(self, wanted: Callable[[Key], bool] = lambda _: True) -> Top:
        """What is known now.

        Args:
            wanted: whether a Service is part of the answer.
        """
        now = self._clock()
        by_service: dict[Key, list[TopPort]] = {}
        for fronts in self._fronts.values():
            for name, plan in fronts.ports.items():
                if wanted(name.service):
                    by_service.setdefault(name.service, []).append(self._port(name, plan))
        services = [
            TopService(*key, tuple(sorted(ports, key=_order)), self._changes.get(key))
            for key, ports in by_service.items()
        ]
        services.sort(key=busy)
        return Top(
            node=self._snapshot.name,
            mode=self._snapshot.mode.name,
            seconds=round(now - self._began, 3),
            services=tuple(services),
            sources=self._sources(now),
            troubles=(*self._snapshot.troubles, *self._troubles.values()),
        )

    def _sources(self, now: float) -> TopSources:
        def age(pace: Pace) -> float:
            return 0.0 if pace.at is None else round(now - pace.at, 1)

        source = COUNTERS if self._counting else EVENTS if self._flows else ""
        return TopSources(
            connections=source,
            connections_age=age(self._pace_counters) if self._counting else 0.0,
            open_age=None if self._open is None else age(self._pace_open),
            bytes=bool(self._flows and self._accounting()),
            losses=self._flows.losses if self._flows else 0,
        )

    def _open_counters(self) -> None:
        make = self._snapshot.mode.counter
        for node in self._snapshot.nodes if make is not None else ():
            assert make is not None
            try:
                self._counters[node.family] = make(self._machine, node)
            except (OSError, SyncError, UnsupportedError) as e:
                self._trouble(
                    f"counters {node.family}", f"counters of {node.family} rules are not read: {self._why(e)}"
                )

    def _set(self, family: Family, key: Key, plan: ServicePlan | None) -> None:
        self._fronts[family].set(key, plan)
        if (counter := self._counters.get(family)) is not None:
            counter.set(key, plan)

    def _find(self, protocol: int, destination: Place) -> PortName | None:
        for fronts in self._fronts.values():
            if (found := fronts.find(protocol, destination)) is not None:
                return found
        return None

    def _endpoints(self, port: PortName) -> frozenset[Endpoint]:
        plan = self._fronts[port.family].ports.get(port)
        return frozenset((each.address, each.port) for each in plan.endpoints) if plan else frozenset()

    def _read_counters(self, only: Collection[Key], now: float) -> None:
        for family, counter in self._counters.items():
            if only and not counter.by_service:
                continue
            try:
                counts = counter.read(only)
            except (OSError, SyncError) as e:
                self._trouble(
                    f"counters {family}", f"counters of {family} rules are not read: {self._why(e)}"
                )
                continue
            self._troubles.pop(f"counters {family}", None)
            if counts is None:
                continue
            self._counting = True
            fronts = self._fronts[family]
            names = (name for key in only for name in fronts.of(key)) if only else fronts.ports
            self._take(((name, counts.get(name.id, {})) for name in names), now)

    def _take(self, counts: Iterable[tuple[PortName, Mapping[Endpoint, int]]], now: float) -> None:
        for name, found in counts:
            rates = self._rates.get(name)
            if rates is None:
                rates = self._rates[name] = Rates()
            rates.read(found, now)

    def _read_open(self) -> None:
        try:
            self._open = list_open(self._machine, self._fronts)
            self._troubles.pop("open", None)
        except OSError as e:
            self._open = None
            self._trouble("open", f"open connections are not known: {self._why(e)}")

    def _read_flows(self, now: float) -> None:
        if self._flows is None:
            return
        ports = self._flows.ports
        if not self._counting:
            for fronts in self._fronts.values():
                self._take(((name, ports[name].began if name in ports else {}) for name in fronts.ports), now)
        for name, counts in ports.items():
            self._sent.setdefault(name, _from_zero(self._began)).read(counts.sent, now)
            self._received.setdefault(name, _from_zero(self._began)).read(counts.received, now)
        if not self._accounting():
            self._trouble(
                "bytes", f"bytes are not counted: sysctl {ACCOUNTING} is 0; --accounting sets it meanwhile"
            )
        else:
            self._troubles.pop("bytes", None)

    def _accounting(self) -> bool:
        try:
            return self._machine.sysctl(ACCOUNTING).strip() == "1"
        except OSError:
            return False

    def _trouble(self, what: str, text: str) -> None:
        self._troubles[what] = text

    def _why(self, error: Exception) -> str:
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            if error.errno in {errno.EPERM, errno.EACCES} and self._machine.lacks(("CAP_NET_ADMIN",)):
                return f"{reason}; this process has no CAP_NET_ADMIN"
            return reason
        return str(error)

    def _port(self, name: PortName, plan: PortPlan) -> TopPort:
        endpoints = self._of_port(name, plan)
        return TopPort(
            name=name.name.partition(":")[2],
            family=name.family,
            protocol=name.protocol,
            port=plan.port,
            connections_per_second=_sum(each.connections_per_second for each in endpoints),
            connections=_whole(each.connections for each in endpoints),
            sent_per_second=_sum(each.sent_per_second for each in endpoints),
            received_per_second=_sum(each.received_per_second for each in endpoints),
            open=_whole(each.open for each in endpoints),
            waiting=_whole(each.waiting for each in endpoints),
            unanswered=_whole(each.unanswered for each in endpoints),
            resets=_whole(each.resets for each in endpoints),
            uneven=any(each.uneven for each in endpoints),
            endpoints=endpoints,
        )

    def _of_port(self, name: PortName, plan: PortPlan) -> tuple[TopEndpoint, ...]:
        planned = {(each.address, each.port): None for each in plan.endpoints}
        rates = self._rates.get(name)
        since = rates.since if rates is not None else {}
        per_second = rates.per_second if rates is not None else None
        flows = self._flows.ports.get(name) if self._flows is not None else None
        open_ = self._open.get(name) if self._open is not None else None
        bytes_ = self._flows is not None and self._accounting()
        others = dict.fromkeys([*(open_.open if open_ else ()), *(open_.waiting if open_ else ()), *since])
        odd = uneven(since, planned) if _equal_chances(plan, self._snapshot, name.family) else frozenset()
        connections = sum(since.values())
        sent, received = self._sent.get(name), self._received.get(name)
        return tuple(
            TopEndpoint(
                address=at[0],
                port=at[1],
                connections_per_second=None if per_second is None else round(per_second.get(at, 0.0), 3),
                share=round(since.get(at, 0) / connections, 4) if connections else None,
                connections=None if rates is None else since.get(at, 0),
                sent_per_second=_rate(sent, at) if bytes_ else None,
                received_per_second=_rate(received, at) if bytes_ else None,
                open=None if self._open is None else open_.open[at] if open_ else 0,
                waiting=None if self._open is None else open_.waiting[at] if open_ else 0,
                unanswered=None if self._flows is None else flows.unanswered[at] if flows else 0,
                resets=None if self._flows is None else flows.resets[at] if flows else 0,
                planned=at in planned,
                uneven=at in odd,
            )
            for at in planned | others
        )


def _from_zero(at: float) -> Rates:
    rates = Rates()
    rates.read({}, at)
    return rates


def _rate(rates: Rates | None, at: Endpoint) -> float:
    return round((rates.per_second or {}).get(at, 0.0), 1) if rates is not None else 0.0


def _equal_chances(plan: PortPlan, snapshot: Snapshot, family: Family) -> bool:
    """Whether each endpoint of a port is chosen with the same chance, by whomever."""
    node = snapshot.node(family)
    scheduler = node.ipvs.scheduler if node is not None and node.ipvs is not None else ""
    mixed = plan.uses_cluster and plan.uses_local and set(plan.cluster) != set(plan.local)
    return not plan.affinity and not mixed and scheduler in {"", "rr"}


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known), 3) if known else None


def _whole(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _order(port: TopPort) -> tuple[str, int, str]:
    return port.family, port.port, port.protocol


def busy(service: TopService) -> tuple[float, float, float, str, str]:
    """A key that sorts the busiest first, and those in trouble before those in none."""

    def total(values: Iterable[float | None]) -> float:
        return -sum(value or 0 for value in values)

    return (
        total(port.connections_per_second for port in service.ports),
        total(float((port.waiting or 0) + (port.unanswered or 0)) for port in service.ports),
        total(port.open for port in service.ports),
        service.namespace,
        service.name,
    )
