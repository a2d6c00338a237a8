"""Counts the open connections to near endpoints, and has Services planned again when one becomes full.

This is for Services whose annotations prefer near endpoints up to a limit, in modes whose rules cannot count
connections. Twice a second the kernel lists the tracked connections to near endpoints, which it selects
itself. Which endpoints are used then is decided by `model.spill`, when the Service is planned (`State.full`).
Between two looks a limit may be passed.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Final

from kubeproxy import protocols
from kubeproxy.answers.observed import FullEndpoint
from kubeproxy.api.addresses import IPV4, Family, unpack
from kubeproxy.backends import own_addresses
from kubeproxy.clock import Clock
from kubeproxy.figures import Figure
from kubeproxy.hub import Hub
from kubeproxy.log import V2, ObjectRef
from kubeproxy.machine.base import Machine
from kubeproxy.model import spill
from kubeproxy.model.flows import place
from kubeproxy.model.plan import Key, PortPlan, ServicePlan
from kubeproxy.model.silence import Address
from kubeproxy.netlink import conntrack
from kubeproxy.reconcile.ledger import Recorded
from kubeproxy.reconcile.reconciler import Reconciler
from kubeproxy.watched import WatchedPort, WatchedPorts

if TYPE_CHECKING:
    from kubeproxy.netlink.flow_values import FlowReader

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.5
"""How often connections are counted."""

SHARE: Final = 0.1
"""The share of a processor that counting may take; with many connections it is done less often."""

MOST_LISTINGS: Final = 8
"""With more near endpoints than that, all connections are listed at once."""

_OPEN: Final = frozenset({1, 2, 3})
"""SYN_SENT, SYN_RECV and ESTABLISHED (enum tcp_conntrack)."""

Counts = Counter[tuple[WatchedPort, Address]]
"""Open connections of each endpoint of a port."""


class SpillWatch:
    """The Services of one family that prefer near endpoints."""

    def __init__(self, machine: Machine, loop: Reconciler, hub: Hub, *, clock: Clock | None = None) -> None:
        """Follows a control loop; `run` does the work.

        Args:
            machine: the host.
            loop: the control loop.
            hub: where full endpoints are noted for the planner, and which has Services planned again.
            clock: the time.
        """
        self._machine, self._loop, self._hub = machine, loop, hub
        self._clock = clock or machine.clock
        self._domain = AF_INET if loop.family == IPV4 else AF_INET6
        self._ports = WatchedPorts()
        self._full: dict[WatchedPort, dict[Address, int]] = {}
        self._values: FlowReader | None = None
        self._wake = asyncio.Event()
        self._complaint = ""
        loop.ledger.subscribe(self._recorded)

    @property
    def family(self) -> Family:
        """The family it serves."""
        return self._loop.family

    def full(self) -> Iterator[FullEndpoint]:
        """The endpoints that are full."""
        for port, full in self._full.items():
            for (address, number), connections in full.items():
                yield FullEndpoint(*port.service, port.name.partition(":")[2], address, number, connections)

    def figures(self) -> Iterable[Figure]:
        """How many endpoints are full."""
        text = "Near endpoints that get no new connections because they have as many open as their limit."
        number = sum(map(len, self._full.values()))
        yield Figure("kubeproxy_full_endpoints", "gauge", text, number, {"ip_family": self.family})

    async def run(self) -> None:
        """Watches; ends only by cancellation, and then takes back what it did."""
        try:
            while True:
                self._wake.clear()
                if not self._ports.plans:
                    await self._clock.wait(self._wake, None)
                    continue
                spent = 0.0
                try:
                    counts, spent = await asyncio.to_thread(self._count, dict(self._ports.plans))
                except OSError as e:
                    self._complain(f"{e.strerror or e}")
                else:
                    self._complaint = ""
                    self._judge(counts)
                await self._clock.wait(asyncio.Event(), max(LOOK_SECONDS, spent / SHARE))
        finally:
            for key in {port.service for port in self._full}:
                self._set_full(key, ())

    def _recorded(self, done: Recorded) -> None:
        """Takes the plans that are in the kernel after a sync."""
        for change in done.changes:
            if self._ports.of(change.key) or _is_watched(change.after):
                self._replace(change.key, change.after)

    def _replace(self, key: Key, plan: ServicePlan | None) -> None:
        old = self._ports.of(key)
        self._ports.replace(key, [each for each in plan.ports if each.preferred] if plan is not None else ())
        for port in old:
            full, now = self._full.pop(port, {}), self._ports.plans.get(port)
            near = {(e.address, e.port) for e in now.preferred} if now is not None else set()
            if left := {at: number for at, number in full.items() if at in near}:
                self._full[port] = left
        self._note(key)
        self._wake.set()

    def _count(self, ports: dict[WatchedPort, PortPlan]) -> tuple[Counts, float]:
        """Counts open connections to near endpoints, and the processor time it took. Runs in a thread.

        Raises:
            OSError: the kernel refused.
        """
        from kubeproxy.netlink.flow_values import FlowReader

        began = time.thread_time()
        values = self._values = self._values or FlowReader()
        own = frozenset(own_addresses.packed(self._machine, self.family))
        near = {
            (protocols.NUMBERS[plan.protocol], place(each.address, each.port))
            for plan in ports.values()
            for each in plan.preferred
        }
        found: Counts = Counter()
        listings = near if len(near) <= MOST_LISTINGS else {(protocol, b"") for protocol, _ in near}
        for protocol, source in listings:
            for flow in conntrack.flows(self._machine, self._domain, protocol, source=source):
                if (protocol, flow.source) not in near or flow.source == flow.destination:
                    continue
                port = self._ports.find(flow.destination, own)
                state = values.state(flow.message)
                if port is not None and (state is None or state in _OPEN):
                    found[port, (unpack(flow.source[:-2]), int.from_bytes(flow.source[-2:]))] += 1
        return found, time.thread_time() - began

    def _judge(self, counts: Counts) -> None:
        for port, plan in self._ports.plans.items():
            before, full = self._full.pop(port, {}), {}
            for each in plan.preferred:
                at = each.address, each.port
                number = counts[port, at]
                if spill.is_full(number, plan.bound, before=at in before):
                    full[at] = number
            if full:
                self._full[port] = full
            if full.keys() != before.keys():
                log.log(
                    V2,
                    "Service %(service)s: %(count)d of %(total)d near endpoints have %(limit)d open connections or more",
                    {
                        "service": ObjectRef(*port.service),
                        "count": len(full),
                        "total": len(plan.preferred),
                        "limit": plan.bound,
                    },
                )
        for key in self._ports.services():
            self._note(key)

    def _note(self, key: Key) -> None:
        """Notes the full endpoints of a Service for the planner."""
        ports = self._ports.of(key)
        self._set_full(key, [(port.name, at) for port in ports for at in self._full.get(port, ())])

    def _set_full(self, key: Key, mine: Iterable[tuple[str, Address]]) -> None:
        """Notes them in this family, and has the Service planned again if they are others."""
        state, ipv6 = self._hub.state, self._domain == AF_INET6
        before = state.full.get(key, frozenset())
        after = frozenset({*(each for each in before if (":" in each[1][0]) != ipv6), *mine})
        if after == before:
            return
        if after:
            state.full[key] = after
        else:
            del state.full[key]
        self._hub.replan(key, self.family)

    def _complain(self, why: str) -> None:
        if self._complaint != why:
            self._complaint = why
            log.warning(
                "%(ipFamily)s: open connections are not counted, near endpoints stay as full as they were: %(reason)s",
                {"ipFamily": self.family, "reason": why},
            )


def _is_watched(plan: ServicePlan | None) -> bool:
    return plan is not None and any(port.preferred for port in plan.ports)
