"""Node ports on localhost, for modes whose rules cannot serve them (KEP-6032).

The kernel does not route packets to or from 127.0.0.1 off the host, and has no setting that allows it for
::1. So a relay listens there, with one socket for all ports if the kernel can steer their clients to it. Its
clients are processes of this node, so the Cluster policy applies to them, unless the node asks for what v1.38
does.
A port that another program has is reported and tried again at intervals; everything else works meanwhile.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from kubeproxy.api.addresses import IPV4, is_loopback, join
from kubeproxy.backends import relayed
from kubeproxy.backends.base import (
    Carrying,
    Change,
    Comparable,
    Driver,
    Failures,
    HeldPart,
    HeldState,
    KernelComparison,
    Leading,
    LoadSteps,
    Measured,
    Readable,
)
from kubeproxy.backends.relayed import Relaying, RelaySocket
from kubeproxy.backends.shared import listeners, presence, socket_lines
from kubeproxy.backends.shared.listeners import HeldListener, HeldListeners, ListenerSteps, RecordingRelay
from kubeproxy.figures import Figure
from kubeproxy.log import ObjectRef
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, ServicePlan
from kubeproxy.relay.control import Relay
from kubeproxy.relay.doors import Doors
from kubeproxy.relay.steering import SteeredPorts
from kubeproxy.relay.traffic import TrafficReport
from kubeproxy.relay.values import CarriedFlow, Listener, Target

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
        self._doors: Doors[_Front] = Doors(relay, SteeredPorts(relay))
        self._relay = relay
        self._shared = shared
        self._missing: dict[_Front, tuple[Listener, str]] = {}
        self._failed = 0

    async def load(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        """See `Driver`."""
        failures = await self._inner.load(node, plans)
        self._listen(*self._difference(node, plans, failures))
        if not self._shared:
            presence.synced(self._relay, plans, failures)
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
        if not self._shared:
            presence.changed(self._relay, changes)
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

    def sockets(self) -> list[RelaySocket]:
        """See `Relaying`."""
        inner = self._inner.sockets() if isinstance(self._inner, Relaying) else []
        return [*inner, *(RelaySocket("", door.address, door.port, door.listener) for door in self._doors)]

    def traffic(self, token: str) -> TrafficReport:
        """See `Counting`. Where the relay serves localhost only, only these connections are counted."""
        return self._relay.traffic(token, relayed.ANSWER_SECONDS)

    def flows(self, group: str, front: Target, clients: tuple[str, ...], most: int) -> list[CarriedFlow]:
        """See `Counting`."""
        return self._relay.flows(group, front, clients, most, relayed.ANSWER_SECONDS)

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
            "Node ports on localhost that are served.",
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
        found = wanted(plan, node, header=self._shared) if plan is not None else ()
        return {(key, each.address, each.port, each.listener.udp): each.listener for each in found}

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


class LocalhostReader:
    """What compares a mode whose node ports on localhost a relay serves. See `backends.base.Comparable`."""

    def __init__(self, inner: Comparable, sockets: Sequence[RelaySocket] | None, *, header: bool) -> None:
        """Makes it.

        Args:
            inner: compares everything else.
            sockets: those of the relay; None if they are not known, so that they are not compared.
            header: PROXY protocol headers are sent to endpoints of Services that ask for them.
        """
        self._inner = inner
        self._sockets = None if sockets is None else [each for each in sockets if not each.policy]
        self._header = header

    async def read(self) -> HeldState:
        """See `Readable`."""
        return await self._inner.read()

    async def read_part(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> HeldPart:
        """See `Comparable`."""
        return await self._inner.read_part(node, plans)

    def difference(self, held: HeldState, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> LoadSteps:
        """See `Readable`: without that of the sockets."""
        return self._inner.difference(held, node, plans)

    def compare(
        self, held: HeldState, node: NodeConfig, plans: Mapping[Key, ServicePlan]
    ) -> KernelComparison:
        """See `Comparable`."""
        found = self._inner.compare(held, node, plans)
        if self._sockets is None:
            return found
        listening = [each for plan in plans.values() for each in wanted(plan, node, header=self._header)]
        return socket_lines.compare(found, socket_lines.of(self._sockets, held, plans), listening)

    def describe(self, node: NodeConfig, plan: ServicePlan) -> list[str]:
        """See `Readable`."""
        return [
            *self._inner.describe(node, plan),
            *socket_lines.lines(wanted(plan, node, header=self._header)),
        ]

    async def close(self) -> None:
        """See `Comparable`."""
        await self._inner.close()


def wanted(plan: ServicePlan, node: NodeConfig, *, header: bool) -> Iterator[RelaySocket]:
    """The sockets that are to listen for a Service.

    Args:
        plan: the plan of the Service.
        node: the node.
        header: PROXY protocol headers are sent if the Service asks for them.
    """
    addresses = addresses_of(node)
    for port in plan.ports if addresses else ():
        endpoints, distribution = (
            (port.external_endpoints, port.external_distribution)
            if node.localhost_policy
            else (port.cluster, port.cluster_distribution)
        )
        if port.node_port and endpoints and port.protocol in relayed.RELAYED:
            listener = relayed.listener(
                plan,
                port,
                relayed.choice(endpoints, distribution),
                admitted=port.external_ranges,
                header=header,
            )
            for address in addresses:
                yield RelaySocket("", address, port.node_port, listener)


def addresses_of(node: NodeConfig) -> tuple[str, ...]:
    """The loopback addresses whose node ports a relay serves."""
    if not node.localhost_relay:
        return ()
    if not node.node_port_ranges:
        return ("127.0.0.1" if node.family == IPV4 else "::1",)
    return tuple(filter(is_loopback, node.node_port_addresses))
