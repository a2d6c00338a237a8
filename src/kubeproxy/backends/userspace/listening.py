"""No rules: the relay listens on the Services' own addresses, as far as they are this host's.

This needs no right at all but those for low ports, so it works in containers and on hosts whose packet filter must not be touched.
Served are node ports, on every address or on those of nodePortAddresses, and ClusterIPs, external IPs and load balancer IPs
that some interface of the host has. An address that comes later is served then. What cannot be is told once.

Traffic policies and source ranges hold. Where there is no endpoint nothing listens, so clients are refused by the host itself, also
where another mode would drop their packets.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from kubeproxy.api.addresses import IPV4, join
from kubeproxy.backends import relayed
from kubeproxy.backends.base import Change, Failures, StaleError, SyncError
from kubeproxy.figures import Figure
from kubeproxy.log import V2
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, PortPlan, ServicePlan
from kubeproxy.relay.control import Relay
from kubeproxy.relay.doors import Doors
from kubeproxy.relay.values import Choice, Listener

log = logging.getLogger(__name__)

_Front = tuple[Key, str, int, str]
"""Service, address, port, protocol."""


class Listening:
    """Userspace mode without rules, for one IP family. See `backends.base.Driver`."""

    def __init__(self, relay: Relay, local_addresses: Callable[[], Sequence[str]]) -> None:
        """Makes it.

        Args:
            relay: carries the traffic.
            local_addresses: this host's addresses of the family.
        """
        self._relay = relay
        self._doors: Doors[_Front] = Doors(relay)
        self._local_addresses = local_addresses
        self._local: frozenset[str] = frozenset()
        self._own: tuple[str, ...] = ()
        self._told = ""

    async def load(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        """See `Driver`."""
        local = tuple(self._local_addresses())
        self._local, self._own = frozenset(local), relayed.own(node, local)
        wanted = [
            (key, front, listener)
            for key, plan in plans.items()
            for front, listener in self._listeners(key, plan, node)
        ]
        self._doors.close(self._doors.names - {front for _, front, _ in wanted})
        failures = await asyncio.to_thread(self._open, wanted)
        if not await self._doors.served():
            raise SyncError(relayed.SILENT)
        self._tell(plans.values())
        return failures

    async def apply(self, node: NodeConfig, changes: Sequence[Change]) -> Failures:
        """See `Driver`."""
        wanted = [
            (c.key, front, listener)
            for c in changes
            for front, listener in self._listeners(c.key, c.after, node)
        ]
        before = {front for c in changes for front, _ in self._listeners(c.key, c.before, node)}
        # A port may pass from one Service to another one.
        self._doors.close(before - {front for _, front, _ in wanted})
        if failures := self._open(wanted):
            raise StaleError("; ".join(failures.values()))
        return {}

    async def intact(self) -> bool:
        """See `Driver`. Addresses that came or went are something to follow, too."""
        return frozenset(self._local_addresses()) == self._local

    def watch(self, disturbed: Callable[[str], None]) -> bool:  # noqa: ARG002
        """See `Driver`. Nobody can disturb a socket."""
        return False

    def figures(self) -> Iterable[Figure]:
        """See `Measured`."""
        return self._relay.figures()

    async def close(self) -> None:
        """See `Driver`."""
        await self._doors.stop()

    def _open(self, wanted: Sequence[tuple[Key, _Front, Listener]]) -> dict[Key, str]:
        failures: dict[Key, str] = {}
        for key, front, listener in wanted:
            _, address, port, protocol = front
            try:
                self._doors.put(front, listener, address, (port, port))
            except OSError as e:
                failures[key] = f"cannot listen on {join(address, port)} {protocol}: {e.strerror or e}"
        return failures

    def _listeners(
        self, key: Key, plan: ServicePlan | None, node: NodeConfig
    ) -> Iterator[tuple[_Front, Listener]]:
        for port in plan.ports if plan else ():
            assert plan is not None
            if port.protocol not in relayed.RELAYED:
                continue
            inside = (relayed.anybody(port.internal_backends),) if port.internal_backends else ()
            outside = self._external(port)
            fronts = [
                (port.cluster_ip, port.port, inside, ()),
                *((ip, port.port, outside, ()) for ip in port.external_ips),
                *((ip, port.port, outside, port.source_ranges) for ip in port.load_balancer_ips),
            ]
            fronts = [front for front in fronts if front[0] in self._local]
            if port.node_port:
                fronts += [(address, port.node_port, outside, ()) for address in self._node_ports(port, node)]
            for address, number, choices, admitted in fronts:
                if choices:
                    yield (
                        (key, address, number, port.protocol),
                        relayed.listener(plan, port, *choices, admitted=admitted, header=True),
                    )

    def _external(self, port: PortPlan) -> tuple[Choice, ...]:
        """Where external traffic may go: under policy Local what starts on this node may go everywhere."""
        if not port.external_local:
            return (relayed.anybody(port.cluster),) if port.cluster else ()
        own = (Choice(relayed.targets(port.cluster), self._own),) if port.cluster and self._own else ()
        return (*own, relayed.anybody(port.local)) if port.local else own

    def _node_ports(self, port: PortPlan, node: NodeConfig) -> Iterator[str]:
        """Where a node port is served: each address but those at which another front has precedence."""
        if node.node_port_ranges:
            everywhere: Iterable[str] = node.node_port_addresses
        elif port.node_port_except:
            everywhere = sorted(self._local)
        else:
            everywhere = ("0.0.0.0" if node.family == IPV4 else "::",)
        return (address for address in everywhere if address not in port.node_port_except)

    def _tell(self, plans: Collection[ServicePlan]) -> None:
        """Says once what is not served."""
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
        told = (
            f"{len(self._doors)} listeners; not served: {len(fronts)} of the Services' addresses, which are not this"
            f" host's{f', and {sctp} SCTP ports' if sctp else ''}"
        )
        if told != self._told:
            self._told = told
            log.info("Without rules: %(summary)s", {"summary": told})
