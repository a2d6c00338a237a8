"""Readings of all that is counted about Services, and rates between two of them.

Everything costs by its number: 100,000 elements or rules, or as many tracked flows, take some tenths of a
second to read. So each source is read as often as its share of a processor allows, the Services that are
looked at apart: those of a map of nftables mode are read one by one. How old a figure is, is part of the
answer.
"""

import errno
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Final, Literal

from kubeproxy.answers.observed import Observed
from kubeproxy.answers.snapshot import Snapshot
from kubeproxy.api.addresses import IPV6, Family
from kubeproxy.backends.base import ConnectionCounter, SyncError, UnsupportedError
from kubeproxy.backends.relayed import RELAYED
from kubeproxy.insight import daemon
from kubeproxy.insight.top.figures import equal_chances, from_zero, order, speed, summed
from kubeproxy.insight.top.flows import ACCOUNTING, FlowWatch, OpenFlows, list_open
from kubeproxy.insight.top.fronts import FrontIndex, Place, PortName
from kubeproxy.insight.top.pace import Pace, processor_seconds
from kubeproxy.insight.top.relay import RelayFlows
from kubeproxy.insight.top.tally import Endpoint, Rates, uneven
from kubeproxy.insight.top.values import LastChange, Top, TopEndpoint, TopPort, TopService, TopSources
from kubeproxy.machine.base import Machine
from kubeproxy.model.plan import Key, PortPlan, ServicePlan

Order = Literal["connections", "open", "bytes", "failures", "name"]
"""What Services are compared by: new connections, open ones, bytes per second, failed connections, names."""

COUNTERS: Final = "counters"
EVENTS: Final = "events"
RELAY: Final = "relay"


class TopWatch:
    """All sources of one node.

    Attributes:
        observed: what the daemon has observed, if it was asked.
    """

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
        self.observed: Observed | None = None
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
        self._sorted: list[Key] | None = None
        self._bytes = False
        self._read: dict[Family, float] = {}
        self._counters: dict[Family, ConnectionCounter] = {}
        self._counting = False
        self._pace_counters, self._pace_open = Pace(cost), Pace(cost)
        self._relay: RelayFlows | None = None
        self._flows: FlowWatch | RelayFlows | None = None
        if snapshot.mode.forwards:
            self._open_counters()
        else:
            self._relay = RelayFlows(
                {family: partial(daemon.traffic, machine, family) for family in self._fronts}
            )
        for node in snapshot.nodes:
            for key, plan in snapshot.plans(node.family).items():
                self._set(node.family, key, plan)
        if self._relay is not None:
            self._read_relay(self._relay)
        else:
            self._pace_counters.read(lambda: self._read_counters((), clock()), clock())
            self._watch_flows()
        self._began = self._looked = clock()

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

    def endpoints(self, family: Family, key: Key) -> frozenset[Endpoint]:
        """The endpoints of a Service."""
        return frozenset().union(*(self._endpoints(port) for port in self._fronts[family].of(key)))

    def poll(self) -> None:
        """Takes in what the kernel reported; to be called several times a second when there is much."""
        if self._flows is not None:
            self._flows.poll()

    def ranking(self, order: Order, wanted: Callable[[Key], bool] | None = None) -> list[Key]:
        """The Services in an order: first those that have anything to show, then the others by name.

        Args:
            order: what is compared.
            wanted: whether a Service is part of the answer; None for all.
        """
        weights: dict[Key, float] = {}
        for weight in self._weights(order):
            for port, value in weight:
                if value:
                    weights[port.service] = weights.get(port.service, 0) + value
        keys = self._services() if wanted is None else [key for key in self._services() if wanted(key)]
        busy = [key for key in keys if key in weights]  # by name, and stays so where weights are equal
        busy.sort(key=weights.__getitem__, reverse=True)
        return [*busy, *(key for key in keys if key not in weights)]

    def look(self, only: Collection[Key] = (), *, everything: bool = False) -> None:
        """Reads what may be read now.

        Args:
            only: Services that are read in any case, if this is possible at their cost.
            everything: read everything, whatever it costs.
        """
        now = self._clock()
        self.poll()
        if self._relay is not None:
            self._read_relay(self._relay)
            self._pace_open.at = now
            self._read_flows(now)
            return
        if everything or self._pace_counters.due(now):
            self._pace_counters.read(lambda: self._read_counters((), now), now)
        elif only:
            self._read_counters(only, now)
        if everything or self._pace_open.due(now):
            self._pace_open.read(self._read_open, now)
        self._read_flows(now)

    def top(self, keys: Iterable[Key] | None = None) -> Top:
        """What is known now.

        Args:
            keys: the Services of the answer; None for all, the busiest first.
        """
        now = self._clock()
        return Top(
            node=self._snapshot.name,
            mode=self._snapshot.mode.name,
            seconds=round(now - self._began, 3),
            services=tuple(
                [self._service(key) for key in (self.ranking("connections") if keys is None else keys)]
            ),
            sources=self._sources(now),
            troubles=(*self._snapshot.troubles, *self._troubles.values()),
            observed=self.observed,
        )

    def _service(self, key: Key) -> TopService:
        ports = [
            self._port(name, fronts.ports[name])
            for fronts in self._fronts.values()
            for name in fronts.of(key)
        ]
        return TopService(*key, tuple(sorted(ports, key=order)), self._changes.get(key))

    def _services(self) -> list[Key]:
        """All Services, by name."""
        if self._sorted is None:
            self._sorted = sorted({port.service for fronts in self._fronts.values() for port in fronts.ports})
        return self._sorted

    def _weights(self, order: Order) -> Iterator[Iterable[tuple[PortName, float]]]:
        """Numbers of Service ports that are added up and compared."""
        flows = self._flows.ports if self._flows is not None else {}
        if order == "connections":
            since = 0.0 if self._counting else self._looked
            yield ((port, speed(rates, since)) for port, rates in self._rates.items() if rates.per_second)
        elif order == "bytes":
            for of_port in (self._sent, self._received):
                yield ((port, speed(rates, self._looked)) for port, rates in of_port.items())
        elif order == "open":
            yield ((port, each.open.total()) for port, each in (self._open or {}).items())
        elif order == "failures":
            yield ((port, each.waiting.total()) for port, each in (self._open or {}).items())
            yield ((port, each.unanswered.total() + each.resets.total()) for port, each in flows.items())

    def _sources(self, now: float) -> TopSources:
        def age(pace: Pace) -> float:
            return 0.0 if pace.at is None else round(now - pace.at, 1)

        events = RELAY if self._relay is not None else EVENTS
        source = COUNTERS if self._counting else events if self._flows else ""
        return TopSources(
            connections=source,
            connections_age=age(self._pace_counters) if self._counting else 0.0,
            open_age=None if self._open is None else age(self._pace_open),
            bytes=bool(self._flows and self._bytes),
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

    def _watch_flows(self) -> None:
        begins = not self._counting or any(counter.partial for counter in self._counters.values())
        try:
            self._flows = FlowWatch(self._machine, self._find, begins=begins)
        except OSError as e:
            self._trouble("events", f"connections that begin and end are not seen: {self._why(e)}")

    def _set(self, family: Family, key: Key, plan: ServicePlan | None) -> None:
        self._sorted = None
        self._fronts[family].set(key, plan)
        if (counter := self._counters.get(family)) is not None:
            counter.set(key, plan)
        if self._relay is not None:
            self._relay.set(family, key, plan)

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
            if not self._counting:
                self._counting = True
                self._rates.clear()  # they were counted by events
            fronts = self._fronts[family]
            before = self._read.get(family)
            for name in [name for key in only for name in fronts.of(key)] if only else fronts.ports:
                found: Mapping[Endpoint, int] = counts.get(name.id, {})
                if counter.partial:
                    found = self._with_began(found, name)
                rates = self._rates.get(name)
                if rates is None:
                    if not found:
                        continue
                    rates = self._rates[name] = Rates() if before is None else from_zero(before)
                rates.read(found, now)
            if not only:
                self._read[family] = now

    def _read_relay(self, relay: RelayFlows) -> None:
        """What the relay has changed since the last reading, which costs no more than that."""
        try:
            relay.read()
        except SyncError as e:
            self._flows = self._open = None
            self._trouble("relay", f"connections are not known: {e}")
        else:
            self._flows, self._open = relay, relay.open
            self._troubles.pop("relay", None)

    def _with_began(self, counts: Mapping[Endpoint, int], name: PortName) -> Mapping[Endpoint, int]:
        """What was counted, and what connection tracking reported of other connections."""
        flows = self._flows.ports.get(name) if self._flows is not None else None
        return Counter(counts) + flows.began if flows is not None else counts

    def _read_open(self) -> None:
        try:
            by_ipvs = any(node.ipvs is not None for node in self._snapshot.nodes)
            self._open = list_open(self._machine, self._fronts, marked=not by_ipvs)
            self._troubles.pop("open", None)
        except OSError as e:
            self._open = None
            self._trouble("open", f"open connections are not known: {self._why(e)}")

    def _read_flows(self, now: float) -> None:
        if self._flows is None:
            return
        ports = self._flows.ports
        changed, self._flows.changed = self._flows.changed, set()
        for name in changed:
            counts = ports[name]
            if not self._counting:
                self._read_rates(self._rates, name, counts.began, now)
            if self._flows.bytes:
                self._read_rates(self._sent, name, counts.sent, now)
                self._read_rates(self._received, name, counts.received, now)
        self._looked = now
        self._bytes = self._relay is not None or self._accounting()
        if not self._bytes:
            self._trouble(
                "bytes", f"bytes are not counted: sysctl {ACCOUNTING} is 0; --accounting sets it meanwhile"
            )
        else:
            self._troubles.pop("bytes", None)

    def _rate(self, rates: Rates | None, at: Endpoint) -> float:
        moves = rates is not None and rates.at >= self._looked
        return round((rates.per_second or {}).get(at, 0.0), 1) if rates is not None and moves else 0.0

    def _read_rates(
        self, of: dict[PortName, Rates], name: PortName, counts: Counter[Endpoint], now: float
    ) -> None:
        rates = of.get(name)
        if rates is None:
            rates = of[name] = from_zero(self._began)
        rates.rest(self._looked)
        rates.read(counts, now)

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
        if self._relay is not None and name.protocol not in RELAYED:  # the kernel forwards its packets
            unknown = tuple([TopEndpoint(each.address, each.port) for each in plan.endpoints])
            return summed(name, plan, unknown)
        return summed(name, plan, self._of_port(name, plan))

    def _silent(self, name: PortName) -> set[Endpoint]:
        """The endpoints of a port that do not answer, as the daemon has observed."""
        return {
            (each.address, each.endpoint_port)
            for each in (self.observed.silent if self.observed is not None else ())
            if (each.namespace, each.name) == name.service
            and each.port == name.name.partition(":")[2]
            and (":" in each.address) == (name.family == IPV6)
        }

    def _of_port(self, name: PortName, plan: PortPlan) -> tuple[TopEndpoint, ...]:
        planned = {(each.address, each.port): None for each in plan.endpoints}
        rates = self._rates.get(name)
        since = rates.since if rates is not None else {}
        known = self._counting or self._flows is not None
        moves = rates is not None and (self._counting or rates.at >= self._looked)
        per_second = rates.per_second if rates is not None and moves else {} if known else None
        flows = self._flows.ports.get(name) if self._flows is not None else None
        open_ = self._open.get(name) if self._open is not None else None
        bytes_ = self._flows is not None and self._bytes
        silent = self._silent(name)
        others = dict.fromkeys(
            [*silent, *(open_.open if open_ else ()), *(open_.waiting if open_ else ()), *since]
        )
        odd = uneven(since, planned) if equal_chances(plan, self._snapshot, name.family) else frozenset()
        connections = sum(since.values())
        sent, received = self._sent.get(name), self._received.get(name)
        return tuple(
            TopEndpoint(
                address=at[0],
                port=at[1],
                connections_per_second=None if per_second is None else round(per_second.get(at, 0.0), 3),
                share=round(since.get(at, 0) / connections, 4) if connections else None,
                connections=since.get(at, 0) if known else None,
                sent_per_second=self._rate(sent, at) if bytes_ else None,
                received_per_second=self._rate(received, at) if bytes_ else None,
                open=None if self._open is None else open_.open[at] if open_ else 0,
                waiting=None if self._open is None else open_.waiting[at] if open_ else 0,
                unanswered=None if self._flows is None else flows.unanswered[at] if flows else 0,
                resets=None if self._flows is None else flows.resets[at] if flows else 0,
                planned=at in planned,
                silent=at in silent,
                uneven=at in odd,
            )
            for at in planned | others
        )
