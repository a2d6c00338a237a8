"""Node ports on localhost, for modes whose rules cannot serve them (KEP-6032).

The kernel does not route packets to or from 127.0.0.1 off the host, and has no setting that allows it for
::1. So a relay listens there. Its clients are processes of this node, so the Cluster policy applies to them,
unless the node asks for what v1.38 does.
A port that another program has is reported and tried again at intervals; everything else works meanwhile.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from kubeproxy.api.addresses import IPV4, is_loopback, join
from kubeproxy.backends import relayed
from kubeproxy.backends.base import (
    Carrying,
    Change,
    Driver,
    Failures,
    HeldState,
    Leading,
    Measured,
    Readable,
)
from kubeproxy.backends.shared import listeners
from kubeproxy.backends.shared.listeners import HeldListener, HeldListeners, ListenerSteps, RecordingRelay
from kubeproxy.figures import Figure
from kubeproxy.log import ObjectRef
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, ServicePlan
from kubeproxy.relay.control import Relay
from kubeproxy.relay.doors import Doors
from kubeproxy.relay.values import Listener

log = logging.getLogger(__name__)

_Front = tuple[Key, str, int, bool]
"""Service, address, port, whether it is UDP."""


class Localhost:
    """A driver, and beside it a relay for node ports on localhost. See `backends.base.Driver`."""

    def __init__(self, inner: Driver, relay: Relay, *, shared: bool = False) -> None:
        """Makes it.

        Args:
            inner: programs everything else.
            relay: serves localhost.
            shared: the relay is the inner driver's, which has its metrics, and sends PROXY protocol headers
                to endpoints of Services that ask for them.
        """
        self._inner = inner
        self._doors: Doors[_Front] = Doors(relay)
        self._relay = relay
        self._shared = shared
        self._missing: dict[_Front, tuple[Listener, str]] = {}
        self._failed = 0

    async def load(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        """See `Driver`."""
        failures = await self._inner.load(node, plans)
        self._listen(*self._difference(node, plans, failures))
        if not await self._doors.served():
            # Everything else is programmed, and must not be delayed.
            log.error(
                "%(ipFamily)s: node ports on localhost are not served yet: %(reason)s",
                {"ipFamily": node.family, "reason": relayed.SILENT},
            )
        return failures

    async def apply(self, node: NodeConfig, changes: Sequence[Change]) -> Failures:
        """See `Driver`."""
        failures = await self._inner.apply(node, changes)
        wanted: dict[_Front, Listener] = {}
        before: set[_Front] = set()
        for change in changes:
            wanted.update(self._fronts(change.key, change.after, node))
            before.update(self._fronts(change.key, change.before, node))
        self._listen(before, wanted)
        return failures

    def _difference(
        self, node: NodeConfig, plans: Mapping[Key, ServicePlan], failures: Collection[Key]
    ) -> tuple[set[_Front], dict[_Front, Listener]]:
        """What is served now, and what should be; what a refused Service has is in neither."""
        wanted: dict[_Front, Listener] = {}
        for key, plan in plans.items():
            if key not in failures:
                wanted.update(self._fronts(key, plan, node))
        before = {front for front in (*self._doors.names, *self._missing) if front[0] not in failures}
        return before, wanted

    def _listen(self, before: set[_Front], wanted: Mapping[_Front, Listener]) -> None:
        """Serves what is wanted; closes what was served before and is no longer wanted."""
        gone = before - wanted.keys()
        self._doors.close(gone)
        for front in gone:
            self._missing.pop(front, None)
        for front, listener in wanted.items():
            self._open(front, listener)

    def in_kernel(self, plan: ServicePlan) -> ServicePlan:
        """See `Leading`."""
        return self._inner.in_kernel(plan) if isinstance(self._inner, Leading) else plan

    async def read(self) -> HeldListeners:
        """See `Readable`."""
        return listeners.held(await self._readable().read(), self._doors)

    def difference(
        self, held: HeldState, node: NodeConfig, plans: Mapping[Key, ServicePlan]
    ) -> ListenerSteps:
        """See `Readable`. The sockets are those of this process."""
        there = listeners.as_listeners(held)
        assert there.rules is not None
        rules = self._readable().difference(there.rules, node, plans)
        relay = RecordingRelay(self._relay.machine, self._doors)
        before, wanted = self._difference(node, plans, ())
        doors = self._doors.copy(relay)
        doors.close(before - wanted.keys())
        for (key, address, port, udp), listener in wanted.items():
            doors.put((key, address, port, udp), listener, address, (port, port))
        return ListenerSteps(rules, tuple(relay.steps))

    def describe(self, node: NodeConfig, plan: ServicePlan) -> list[str]:
        """See `Readable`."""
        found = self._readable().describe(node, plan)
        for (_, address, port, _), listener in self._fronts(plan.key, plan, node).items():
            found += HeldListener(address, port, listener).lines()
        return found

    def _readable(self) -> Readable:
        assert isinstance(self._inner, Readable)
        return self._inner

    async def intact(self) -> bool:
        """See `Driver`."""
        for front, (listener, _) in list(self._missing.items()):
            self._open(front, listener)
        return await self._inner.intact()

    def watch(self, disturbed: Callable[[str], None]) -> bool:
        """See `Driver`."""
        return self._inner.watch(disturbed)

    async def drain(self, seconds: float) -> None:
        """See `Carrying`."""
        drains = [self._doors.drain(seconds)]
        if isinstance(self._inner, Carrying):
            drains.append(self._inner.drain(seconds))
        await asyncio.gather(*drains)

    async def close(self) -> None:
        """See `Driver`."""
        await self._doors.stop()
        await self._inner.close()

    def figures(self) -> Iterable[Figure]:
        """See `Measured`."""
        if isinstance(self._inner, Measured):
            yield from self._inner.figures()
        if not self._shared:
            yield from self._relay.figures()
        yield Figure(
            "kubeproxy_nftables_localhost_nodeport_listeners",
            "gauge",
            "Sockets that serve node ports on localhost.",
            len(self._doors),
            self._relay.labels,
        )
        yield Figure(
            "kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total",
            "counter",
            "Sockets for node ports on localhost that could not be opened.",
            self._failed,
            self._relay.labels,
        )

    def _fronts(self, key: Key, plan: ServicePlan | None, node: NodeConfig) -> dict[_Front, Listener]:
        """What is to listen for a Service."""
        addresses = addresses_of(node)
        return {
            (key, address, port.node_port, port.protocol == "UDP"): relayed.listener(
                plan, port, relayed.anybody(endpoints), header=self._shared
            )
            for port in (plan.ports if plan else ())
            if port.node_port and port.protocol in relayed.RELAYED
            if (endpoints := port.external_endpoints if node.localhost_policy else port.cluster)
            for address in addresses
            if plan is not None
        }

    def _open(self, front: _Front, listener: Listener) -> None:
        (namespace, name), address, port, udp = front
        try:
            self._doors.put(front, listener, address, (port, port))
        except OSError as e:
            self._failed += 1
            why = e.strerror or str(e)
            if self._missing.get(front, (None, ""))[1] != why:
                log.error(  # noqa: TRY400 the message is complete
                    "Service %(service)s: node port %(address)s %(protocol)s is not served on localhost: %(reason)s",
                    {
                        "service": ObjectRef(namespace, name),
                        "address": join(address, port),
                        "protocol": "UDP" if udp else "TCP",
                        "reason": why,
                    },
                )
            self._missing[front] = listener, why
            return
        if self._missing.pop(front, None):
            log.info(
                "Service %(service)s: node port %(address)s is served on localhost now",
                {"service": ObjectRef(namespace, name), "address": join(address, port)},
            )


def addresses_of(node: NodeConfig) -> tuple[str, ...]:
    """The loopback addresses whose node ports a relay serves."""
    if not node.localhost_relay:
        return ()
    if not node.node_port_ranges:
        return ("127.0.0.1" if node.family == IPV4 else "::1",)
    return tuple(filter(is_loopback, node.node_port_addresses))
