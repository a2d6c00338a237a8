"""Userspace mode without rules: the relay listens on those of the Services' addresses that this host has.

This needs no privileges except for low ports, so it works in containers and on hosts whose packet filter must
not be changed. Served are node ports, on every address or on those of nodePortAddresses, and ClusterIPs,
external IPs and load balancer IPs that an interface of the host has. An address that is added later is served
then. What cannot be served is logged once.

Traffic policies and source ranges apply. Without endpoints there is no listening socket, so the host itself
rejects clients, also where another mode would drop their packets.
"""

import contextlib
import errno
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

from kubeproxy.api.addresses import IPV4, join
from kubeproxy.backends import relayed
from kubeproxy.backends.base import Change, Failures, HeldState, StaleError, SyncError
from kubeproxy.backends.shared import listeners, presence
from kubeproxy.backends.shared.listeners import HeldListeners, ListenerSteps, RecordingRelay
from kubeproxy.backends.shared.threads import in_thread
from kubeproxy.figures import Figure
from kubeproxy.log import V2
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, PortPlan, ServicePlan
from kubeproxy.relay.control import Relay
from kubeproxy.relay.doors import Doors, OpenListener
from kubeproxy.relay.traffic import TrafficReport
from kubeproxy.relay.values import CarriedFlow, Choice, Listener, Target

log = logging.getLogger(__name__)

_ALL = frozenset({"0.0.0.0", "::"})

ListenerName = tuple[Key, str, int, str]
"""Service, address, port, protocol."""


class Listening:
    """Userspace mode without rules, for one IP family. See `backends.base.Driver`."""

    def __init__(
        self,
        relay: Relay,
        local_addresses: Callable[[], Sequence[str]],
        doors: Doors[ListenerName] | None = None,
    ) -> None:
        """Makes it.

        Args:
            relay: carries the traffic.
            local_addresses: this host's addresses of the family.
            doors: the listeners the relay has; None for none.
        """
        self._relay = relay
        self._doors = doors or Doors(relay)
        self._refused: frozenset[Key] = frozenset()
        self._local_addresses = local_addresses
        self._local: frozenset[str] = frozenset()
        self._own: tuple[str, ...] = ()
        self._logged = ""

    async def load(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        """See `Driver`."""
        failures = await in_thread(self.load_blocking, node, plans)
        if not await self._doors.served():
            raise SyncError(relayed.SILENT)
        self._log(plans.values())
        return failures

    def load_blocking(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        """See `Driver.load`; done in this thread, without waiting for the relay."""
        local = tuple(self._local_addresses())
        self._local, self._own = frozenset(local), relayed.own(node, local)
        wanted = {key: self._listeners(key, plan, node) for key, plan in plans.items()}
        fronts = {front for mine in wanted.values() for front in mine}
        unwanted = self._doors.names - fronts
        failures: dict[Key, str] = {}
        for key, mine in wanted.items():
            try:
                self._open(mine, unwanted)
            except OSError as e:
                failures[key] = str(e)
        for key, mine in wanted.items():
            if key not in failures:
                self._change(mine)
        lost = {front for key in failures for front in self._lost(plans[key])}
        self._doors.close({front for front in unwanted if front[0] not in failures or front in lost})
        self._refused = frozenset(failures)
        presence.synced(self._relay, plans, self._refused)
        return failures

    async def apply(self, node: NodeConfig, changes: Sequence[Change]) -> Failures:
        """See `Driver`."""
        if known := [c.key for c in changes if c.key in self._refused]:
            raise StaleError(f"Service {'/'.join(known[0])} was refused before")
        wanted: dict[ListenerName, Listener] = {}
        before: set[ListenerName] = set()
        for c in changes:
            wanted.update(self._listeners(c.key, c.after, node))
            before.update(self._listeners(c.key, c.before, node))
        unwanted = before - wanted.keys()
        try:
            self._open(wanted, unwanted)
        except OSError as e:
            raise StaleError(str(e)) from e
        self._change(wanted)
        self._doors.close(unwanted)
        presence.changed(self._relay, changes)
        return {}

    async def read(self) -> HeldListeners:
        """See `Readable`."""
        return listeners.held(None, self._doors)

    def difference(
        self,
        held: HeldState,  # noqa: ARG002 the sockets are those of this process
        node: NodeConfig,
        plans: Mapping[Key, ServicePlan],
    ) -> ListenerSteps:
        """See `Readable`."""
        relay = RecordingRelay(self._relay.machine, self._doors)
        Listening(relay, self._local_addresses, self._doors.copy(relay)).load_blocking(node, plans)
        return ListenerSteps(None, tuple(relay.steps))

    def describe(self, node: NodeConfig, plan: ServicePlan) -> list[str]:
        """See `Readable`."""
        relay = RecordingRelay(self._relay.machine, ())
        Listening(relay, self._local_addresses).load_blocking(node, {plan.key: plan})
        return listeners.opened(relay)

    async def intact(self) -> bool:
        """See `Driver`. Addresses that were added or deleted need a sync, too."""
        return frozenset(self._local_addresses()) == self._local

    def watch(self, disturbed: Callable[[str], None]) -> bool:  # noqa: ARG002
        """See `Driver`. Other programs cannot change a socket."""
        return False

    def traffic(self, token: str) -> TrafficReport:
        """See `Counting`."""
        return self._relay.traffic(token, relayed.ANSWER_SECONDS)

    def flows(self, group: str, front: Target, clients: tuple[str, ...], most: int) -> list[CarriedFlow]:
        """See `Counting`."""
        return self._relay.flows(group, front, clients, most, relayed.ANSWER_SECONDS)

    def figures(self) -> Iterable[Figure]:
        """See `Measured`."""
        return self._relay.figures()

    async def drain(self, seconds: float) -> None:
        """See `Carrying`."""
        await self._doors.drain(seconds)

    async def close(self) -> None:
        """See `Driver`."""
        await self._doors.stop()

    def _open(self, wanted: Mapping[ListenerName, Listener], unwanted: AbstractSet[ListenerName]) -> None:
        """Opens what is missing of some listeners: all or none; what is open stays as it is.

        A port may pass from one listener to another one: listeners that are not wanted any more and have such
        a port are closed. If not all can be opened, they are opened again.

        Raises:
            OSError: one cannot be opened; the message names it.
        """
        opened: list[ListenerName] = []
        closed: dict[ListenerName, OpenListener] = {}
        for front, listener in wanted.items():
            _, address, port, protocol = front
            at = (front, listener, address, (port, port))
            try:
                try:
                    opened += self._doors.open_all([at])
                except OSError as e:
                    blocking = [
                        each
                        for each in unwanted
                        if each[2:] == (port, protocol) and (each[1] == address or _ALL & {each[1], address})
                    ]
                    if e.errno != errno.EADDRINUSE or not (gone := self._doors.close(blocking)):
                        raise
                    closed.update(gone)
                    opened += self._doors.open_all([at])
            except OSError as e:
                self._doors.close(opened)
                for name, door in closed.items():
                    with contextlib.suppress(OSError):  # one that could be opened has its port
                        self._doors.put(name, door.listener, door.address, (door.port, door.port))
                raise OSError(f"cannot listen on {join(address, port)} {protocol}: {e.strerror or e}") from e

    def _change(self, wanted: Mapping[ListenerName, Listener]) -> None:
        for front, listener in wanted.items():
            self._doors.change(front, listener)

    def _lost(self, plan: ServicePlan) -> Iterator[ListenerName]:
        """The listeners of a Service at fronts that belong to another one."""
        lost = {front.front for front in plan.lost}
        for name in self._doors.names:
            key, address, port, protocol = name
            if key == plan.key and any((at, protocol, port) in lost for at in ("", address)):
                yield name

    def _listeners(
        self, key: Key, plan: ServicePlan | None, node: NodeConfig
    ) -> dict[ListenerName, Listener]:
        found: dict[ListenerName, Listener] = {}
        for port in plan.ports if plan else ():
            assert plan is not None
            if port.protocol not in relayed.RELAYED:
                continue
            inside: tuple[Choice, ...] = ()
            if port.internal_endpoints:
                inside = (relayed.choice(port.internal_endpoints, port.internal_distribution),)
            outside = self._external(port)
            fronts = [
                (port.cluster_ip, port.port, inside, ()),
                *((ip, port.port, outside, port.external_ranges) for ip in port.external_only),
                *((ip, port.port, outside, port.source_ranges) for ip in port.load_balancer_ips),
            ]
            fronts = [front for front in fronts if front[0] in self._local]
            if port.node_port:
                fronts += [
                    (address, port.node_port, outside, port.external_ranges)
                    for address in self._node_ports(port, node)
                ]
            for address, number, choices, admitted in fronts:
                if choices:
                    found[key, address, number, port.protocol] = relayed.listener(
                        plan, port, *choices, admitted=admitted, header=True
                    )
        return found

    def _external(self, port: PortPlan) -> tuple[Choice, ...]:
        """Where external traffic may go: under policy Local what starts on this node may go everywhere."""
        if not port.external_local:
            return (relayed.choice(port.cluster, port.cluster_distribution),) if port.cluster else ()
        own: tuple[Choice, ...] = ()
        if port.cluster and self._own:
            own = (relayed.choice(port.cluster, port.cluster_distribution, self._own),)
        return (*own, relayed.choice(port.local, port.local_distribution)) if port.local else own

    def _node_ports(self, port: PortPlan, node: NodeConfig) -> Iterator[str]:
        """Where a node port is served: each address but those at which another front has precedence."""
        if node.node_port_ranges:
            everywhere: Iterable[str] = node.node_port_addresses
        elif port.node_port_except:
            everywhere = sorted(self._local)
        else:
            everywhere = ("0.0.0.0" if node.family == IPV4 else "::",)
        return (address for address in everywhere if address not in port.node_port_except)

    def _log(self, plans: Collection[ServicePlan]) -> None:
        """Logs once what is not served."""
        fronts = [
            (port.name, join(address, port.port))
            for plan in plans
            for port in plan.ports
            for address in (port.cluster_ip, *port.external_ips, *port.load_balancer_ips)
            if address and address not in self._local
        ]
        for name, front in fronts:
            log.log(
                V2,
                "Service %(servicePortName)s: %(front)s is not served, the address is not this host's",
                {"servicePortName": name, "front": front},
            )
        sctp = sum(port.protocol not in relayed.RELAYED for plan in plans for port in plan.ports)
        summary = (
            f"{len(self._doors)} listeners; not served: {len(fronts)} of the Services' addresses, which are not this"
            f" host's{f', and {sctp} SCTP ports' if sctp else ''}"
        )
        if summary != self._logged:
            self._logged = summary
            log.info("Without rules: %(summary)s", {"summary": summary})
