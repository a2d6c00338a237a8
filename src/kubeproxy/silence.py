"""Takes endpoints that do not answer out of the plans of Services whose annotation asks for it.

What counts as not answering is decided by `model.silence`; here it is observed. Several times a second the
kernel is asked for the TCP connections that have no answer, which it selects itself. Those that were refused
are reported by it when they end; a filter in the kernel drops the reports about all other connections. Only
while some connection to a Service has no answer for longer than usual, all connections to this Service are
listed, to see which endpoints do answer.

An endpoint that is silent is left out by the planner (`State.silent`). Its trial ends with the first
connection to it, which the kernel reports at once; if connections are made very fast, some more have begun
until the rules are changed. All connections to a silent endpoint that have no answer, except that of its
trial, are deleted from connection tracking at once: the next SYN of such a client, a second after the first
one, reaches another endpoint.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from kubeproxy.answers.observed import SilentEndpoint
from kubeproxy.api.addresses import IPV4, Family, join, unpack
from kubeproxy.backends import own_addresses
from kubeproxy.clock import Clock
from kubeproxy.figures import Figure
from kubeproxy.hub import Hub
from kubeproxy.log import ObjectRef
from kubeproxy.machine.base import Machine
from kubeproxy.model import flows, silence
from kubeproxy.model.flows import Place, place
from kubeproxy.model.plan import Key, PortPlan, ServicePlan
from kubeproxy.model.silence import Address, PortSilence, Seen, SilenceChange
from kubeproxy.netlink import conntrack
from kubeproxy.netlink.conntrack import TCP, ConntrackFlow
from kubeproxy.reconcile.ledger import Recorded
from kubeproxy.reconcile.reconciler import Reconciler
from kubeproxy.watched import WatchedPort, WatchedPorts

if TYPE_CHECKING:
    from kubeproxy.netlink.conntrack_events import FlowEvents
    from kubeproxy.netlink.flow_values import FlowReader

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.25
"""How often the kernel is asked for connections without an answer while there are some ..."""

IDLE_SECONDS: Final = 0.5
"""... and while there are none. The kernel walks its whole table each time, 10 ms for 262,144 buckets."""

SLOW_SECONDS: Final = 0.4
"""A connection without an answer for so long makes its Service be looked at."""

SHARE: Final = 0.1
"""The share of a processor that looking may take; with many connections it is done less often."""

MOST_FRONTS: Final = 8
"""Connections to a port with more fronts than that are listed with all others."""

Event = Callable[[Key, str, str, str], None]
"""Writes an Event of a Service: its key, a reason, an action and a note; see `events.Events.service`."""


class _Attempt(Struct, gc=False):
    """A connection without an answer."""

    port: WatchedPort
    endpoint: Address
    since: float
    counted: bool = False


class _Look(Struct, gc=False):
    """What one look at the kernel has found, and the processor time that it took, in seconds."""

    failed: dict[WatchedPort, Counter[Address]]
    answered: dict[WatchedPort, set[Address]]
    spent: float = 0.0


class SilenceWatch:
    """The endpoints of one family.

    Attributes:
        silences: how often an endpoint became silent.
        trials: how many trials had which result.
    """

    def __init__(
        self, machine: Machine, loop: Reconciler, hub: Hub, event: Event, *, clock: Clock | None = None
    ) -> None:
        """Follows a control loop; `run` does the work.

        Args:
            machine: the host.
            loop: the control loop.
            hub: where silent endpoints are noted for the planner, and which has Services planned again.
            event: how an Event is written.
            clock: the time.
        """
        self._machine, self._loop, self._hub, self._event = machine, loop, hub, event
        self._clock = clock or machine.clock
        self._domain = AF_INET if loop.family == IPV4 else AF_INET6
        self._ports = WatchedPorts()
        self._silences: dict[WatchedPort, PortSilence] = {}
        self._attempts: dict[bytes, _Attempt] = {}
        self._known: dict[WatchedPort, set[bytes]] = {}
        self._trials: dict[tuple[WatchedPort, Address], FlowEvents] = {}
        self._tried: dict[tuple[WatchedPort, Address], bytes] = {}  # the connections of trials
        self._deleted: set[bytes] = set()
        self._values: FlowReader | None = None
        self._refused: FlowEvents | None = None
        self._wake = asyncio.Event()
        self._complaint = ""
        self.silences = 0
        self.trials = {"answered": 0, "failed": 0}
        loop.ledger.subscribe(self._recorded)

    @property
    def family(self) -> Family:
        """The family it serves."""
        return self._loop.family

    def figures(self) -> Iterable[Figure]:
        """How many endpoints are silent, and what happened to them."""
        family = {"ip_family": self.family}
        number = sum(len(each.unanswering) for each in self._silences.values())
        text = "Endpoints that get no connections because they do not answer."
        yield Figure("kubeproxy_silent_endpoints", "gauge", text, number, family)
        text = "How often an endpoint was found not to answer."
        yield Figure("kubeproxy_endpoint_silences_total", "counter", text, self.silences, family)
        text = "Trial connections to endpoints that do not answer, by result."
        for result, count in self.trials.items():
            labels = {**family, "result": result}
            yield Figure("kubeproxy_endpoint_trials_total", "counter", text, count, labels)

    def silent(self) -> Iterator[SilentEndpoint]:
        """The endpoints that do not answer."""
        now = self._clock.now()
        for port, found in self._silences.items():
            for at in found.unanswering:
                doubt = found.doubts[at]
                yield SilentEndpoint(
                    *port.service,
                    port=port.name.partition(":")[2],
                    address=at[0],
                    endpoint_port=at[1],
                    seconds=round(now - doubt.since, 1),
                    failures=doubt.failures,
                    next_trial=round(max(0.0, doubt.next - now), 1) if doubt.state == "silent" else 0.0,
                    on_trial=doubt.state == "on trial",
                )

    async def run(self) -> None:
        """Watches; ends only by cancellation, and then takes back what it did."""
        try:
            while True:
                self._wake.clear()
                if not self._ports.plans:
                    self._end()
                    await self._clock.wait(self._wake, None)
                    continue
                spent = 0.0
                try:
                    self._begin()
                    now = self._clock.now()
                    watched = {port for port, each in self._silences.items() if each.watched(now)}
                    look = await asyncio.to_thread(self._look, now, watched, self._left_out())
                except OSError as e:
                    self._complain(f"{e.strerror or e}")
                else:
                    self._complaint, spent = "", look.spent
                    self._judge(look)
                pause = LOOK_SECONDS if self._attempts or self._silences else IDLE_SECONDS
                await self._clock.wait(asyncio.Event(), max(pause, spent / SHARE))
        finally:
            self._end()
            for key in {port.service for port in self._silences}:
                self._set_silent(key, ())

    # What is watched

    def _recorded(self, done: Recorded) -> None:
        """Takes the plans that are in the kernel after a sync."""
        for change in done.changes:
            if any(plan is not None and plan.skips_silent for plan in (change.before, change.after)):
                self._replace(change.key, change.after)

    def _replace(self, key: Key, plan: ServicePlan | None) -> None:
        watched = plan.ports if plan is not None and plan.skips_silent else ()
        self._ports.replace(key, [each for each in watched if each.protocol == "TCP"])
        gone = [port for port in self._silences if port.service == key and port not in self._ports.plans]
        for port in gone:
            del self._silences[port]
            self._end_trials(port)
        if gone:
            self._set_silent(key, self._silent_of(key))
        self._wake.set()

    # What is seen

    def _begin(self) -> None:
        from kubeproxy.netlink.conntrack_events import UNANSWERED, FlowEvents
        from kubeproxy.netlink.flow_values import FlowReader

        if self._refused is None:
            self._refused = FlowEvents(self._machine, new=False, program=UNANSWERED)
            self._values = FlowReader()

    def _end(self) -> None:
        if self._refused is not None:
            self._refused.close()
            self._refused = None
        for port, _ in list(self._trials):
            self._end_trials(port)
        self._attempts.clear()
        self._tried.clear()
        self._known.clear()

    def _left_out(self) -> dict[tuple[WatchedPort, Address], bytes]:
        """The endpoints that get no connections, and the connection of the trial of each, if any."""
        return {
            (port, at): self._tried.get((port, at), b"")
            for port, found in self._silences.items()
            for at in found.silent
        }

    def _look(
        self,
        now: float,
        watched: Collection[WatchedPort],
        left_out: Mapping[tuple[WatchedPort, Address], bytes],
    ) -> _Look:
        """Asks the kernel. Runs in a thread.

        Args:
            now: the time.
            watched: the ports of which must be seen which endpoints answer.
            left_out: the endpoints that get no connections, and the connection of the trial of each.
        """
        began, look = time.thread_time(), _Look({}, {})
        own = frozenset(own_addresses.packed(self._machine, self.family))
        self._read_refused(look, own)
        waiting: set[bytes] = set()
        lost: list[ConntrackFlow] = []
        for flow in conntrack.flows(self._machine, self._domain, TCP, unanswered=True):
            port = self._find(flow, own)
            if port is None or not flow.unanswered:
                continue
            name, at = flow.original, _address(flow.source)
            if name != left_out.get((port, at), name):
                lost.append(flow)
                continue
            waiting.add(name)
            attempt = self._attempts.get(name)
            if attempt is None or attempt.endpoint != at:
                attempt = self._attempts[name] = _Attempt(port, at, now)
            if not attempt.counted and now - attempt.since >= silence.ANSWER_SECONDS:
                attempt.counted = True
                look.failed.setdefault(port, Counter())[attempt.endpoint] += 1
        self._deleted = {flow.original for flow in lost}
        if lost:
            conntrack.delete_unanswered(self._machine, lost)
        for name in self._attempts.keys() - waiting:
            del self._attempts[name]
        doubtful = {
            attempt.port for attempt in self._attempts.values() if now - attempt.since >= SLOW_SECONDS
        }
        doubtful |= {*look.failed, *watched}
        for port in self._known.keys() - doubtful:
            del self._known[port]
        for port in doubtful:
            self._read_answered(port, look, own)
        look.spent = time.thread_time() - began
        return look

    def _read_refused(self, look: _Look, own: frozenset[bytes]) -> None:
        assert self._refused is not None
        for event in self._refused.read():
            if event.protocol != TCP or not event.unanswered or event.name in self._deleted:
                continue
            attempt = self._attempts.pop(event.name, None)
            port = self._ports.find(event.destination, own)
            if port is not None and (attempt is None or not attempt.counted):
                look.failed.setdefault(port, Counter())[_address(event.source)] += 1

    def _read_answered(self, port: WatchedPort, look: _Look, own: frozenset[bytes]) -> None:
        """Finds the endpoints of a port that have answered since the last look; at the first one none."""
        assert self._values is not None
        answered: dict[bytes, Address] = {}
        plan = self._ports.plans.get(port)
        fronts: list[Place] = [] if plan is None else list(flows.fronts(plan))
        for destination in fronts if len(fronts) <= MOST_FRONTS else [b""]:
            for flow in conntrack.flows(self._machine, self._domain, TCP, destination=destination):
                if self._values.is_answered(flow.message) and self._find(flow, own) == port:
                    answered[flow.original] = _address(flow.source)
        before = self._known.get(port)
        self._known[port] = set(answered)
        if before is not None:
            look.answered[port] = {at for name, at in answered.items() if name not in before}

    def _find(self, flow: ConntrackFlow, own: frozenset[bytes]) -> WatchedPort | None:
        """The port that a flow was translated from; None for flows of ports that are not watched."""
        return None if flow.source == flow.destination else self._ports.find(flow.destination, own)

    # What follows

    def _judge(self, look: _Look) -> None:
        now = self._clock.now()
        ports = look.failed.keys() | look.answered.keys() | self._silences.keys()
        for port in ports & self._ports.plans.keys():
            found = self._silences.setdefault(port, PortSilence())
            seen = Seen(look.failed.get(port, {}), look.answered.get(port, ()))
            self._follow(
                port, found.look(_endpoints(self._ports.plans[port]), seen, now, watched=port in self._known)
            )
            if not found.doubts:
                del self._silences[port]

    def _follow(self, port: WatchedPort, verdicts: Sequence[SilenceChange]) -> None:
        """Carries out what was decided of the endpoints of a port."""
        for verdict in verdicts:
            at, where = verdict.endpoint, join(*verdict.endpoint)
            service = ObjectRef(*port.service)
            if verdict.kind == "silent":
                self.silences += 1
                log.warning(
                    "Service %(service)s: endpoint %(endpoint)s does not answer, %(count)d connections have failed and"
                    " others are answered: it gets no new ones, the next trial is in %(seconds)g s",
                    {
                        "service": service,
                        "endpoint": where,
                        "count": verdict.failures,
                        "seconds": verdict.next,
                    },
                )
                note = f"endpoint {where} does not answer from this node; it gets no new connections but for trials"
                self._event(port.service, "EndpointDoesNotAnswer", "SkipEndpoint", note)
            elif verdict.kind == "answers":
                self.trials["answered"] += 1
                log.info(
                    "Service %(service)s: endpoint %(endpoint)s answers again after %(seconds).1f s: it gets"
                    " connections again",
                    {"service": service, "endpoint": where, "seconds": verdict.seconds},
                )
            elif verdict.kind == "trial failed":
                self.trials["failed"] += 1
                log.info(
                    "Service %(service)s: endpoint %(endpoint)s has not answered the trial connection, the next trial"
                    " is in %(seconds)g s",
                    {"service": service, "endpoint": where, "seconds": verdict.next},
                )
            elif verdict.kind == "trial":
                self._try(port, at)
            if verdict.kind != "trial":
                self._end_trial(port, at)
            if verdict.kind != "tried":
                self._tried.pop((port, at), None)
        if verdicts:
            self._set_silent(port.service, self._silent_of(port.service))

    def _try(self, port: WatchedPort, at: Address) -> None:
        """The next connection to an endpoint ends its trial."""
        from kubeproxy.netlink.conntrack_events import FlowEvents, to_endpoint

        try:
            events = FlowEvents(self._machine, ended=False, program=to_endpoint(place(*at)))
        except OSError as e:
            self._complain(f"{e.strerror or e}")
            self._connected(port, at)
            return
        self._trials[port, at] = events

        def readable() -> None:
            for event in events.read():
                if self._ports.find(event.destination, {event.destination[:-2]}) == port:
                    self._tried[port, at] = event.name
                    self._connected(port, at)
                    return

        asyncio.get_running_loop().add_reader(events.fileno(), readable)

    def _connected(self, port: WatchedPort, at: Address) -> None:
        self._end_trial(port, at)
        if (found := self._silences.get(port)) is not None:
            self._follow(port, found.connected(at, self._clock.now()))

    def _end_trials(self, port: WatchedPort) -> None:
        for other, at in list(self._trials):
            if other == port:
                self._end_trial(port, at)

    def _end_trial(self, port: WatchedPort, at: Address) -> None:
        events = self._trials.pop((port, at), None)
        if events is not None:
            asyncio.get_running_loop().remove_reader(events.fileno())
            events.close()

    def _silent_of(self, key: Key) -> tuple[Address, ...]:
        ports = [self._silences[port] for port in self._ports.of(key) if port in self._silences]
        return tuple(dict.fromkeys(at for found in ports for at in found.silent))

    def _set_silent(self, key: Key, mine: tuple[Address, ...]) -> None:
        """Notes the silent endpoints of a Service in this family, and has it planned again."""
        before = self._hub.state.silent.get(key, ())
        ipv6 = self._domain == AF_INET6
        after = (*(at for at in before if (":" in at[0]) != ipv6), *mine)
        if after == before:
            return
        if after:
            self._hub.state.silent[key] = after
        else:
            self._hub.state.silent.pop(key, None)
        self._hub.replan(key, self.family)

    def _complain(self, why: str) -> None:
        if self._complaint != why:
            self._complaint = why
            log.warning(
                "%(ipFamily)s: endpoints that do not answer are not found: %(reason)s",
                {"ipFamily": self.family, "reason": why},
            )


def _address(at: Place) -> Address:
    return unpack(at[:-2]), int.from_bytes(at[-2:])


def _endpoints(port: PortPlan) -> set[Address]:
    return {(each.address, each.port) for each in (*port.cluster, *port.local, *port.silent)}
