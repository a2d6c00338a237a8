"""Rules lead the traffic to a relay.

For each Service port there is a socket for the Cluster policy and one for the Local policy, as far as some traffic has it and
endpoints are there. A plan that names the socket in place of the endpoints goes to nftables mode's driver, which does
everything in front of it: node ports, source ranges, refusals, who is under which policy. A change of endpoints does not
change such a plan, so it never reaches the kernel.

The sockets are on an address of the node, for the kernel delivers nothing to loopback that comes from elsewhere; the relay serves
only who was translated. Its own connections have the mark for masquerading and are led nowhere: an endpoint may have
the address of a front. SCTP is left to the kernel, as in nftables mode.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from msgspec.structs import replace

from kubeproxy.backends import relayed
from kubeproxy.backends.base import Change, Driver, Failures, Measured, StaleError, SyncError
from kubeproxy.figures import Figure
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint
from kubeproxy.relay.control import Relay
from kubeproxy.relay.doors import Doors
from kubeproxy.relay.values import Listener

log = logging.getLogger(__name__)

_Door = tuple[str, str, str, str]
"""Address, name of the Service port, its protocol, the policy."""


class Led:
    """Userspace mode with rules, for one IP family. See `backends.base.Driver`."""

    def __init__(self, rules: Driver, relay: Relay, own_address: Callable[[NodeConfig], str]) -> None:
        """Makes it.

        Args:
            rules: the driver that leads traffic to endpoints.
            relay: carries it.
            own_address: finds the address of the node that the relay is to listen on.
        """
        self._rules = rules
        self._relay = relay
        self._doors: Doors[_Door] = Doors(relay)
        self._own_address = own_address
        self._address = ""

    async def load(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        """See `Driver`."""
        self._address = self._own_address(node)
        failures = await asyncio.to_thread(self._open, node, plans.values())
        led = {key: self.in_kernel(plan) for key, plan in plans.items()}
        refused = await self._rules.load(replace(node, relayed=True), led)
        self._doors.close(
            self._doors.names - {door for plan in plans.values() for door in self._wanted(plan)}
        )
        if not await self._doors.served():
            raise SyncError(relayed.SILENT)
        return {**failures, **refused}

    async def apply(self, node: NodeConfig, changes: Sequence[Change]) -> Failures:
        """See `Driver`."""
        failures = self._open(node, [c.after for c in changes if c.after is not None])
        if failures:
            raise StaleError("; ".join(failures.values()))
        led = [
            Change(c.key, c.before and self.in_kernel(c.before), c.after and self.in_kernel(c.after))
            for c in changes
        ]
        refused = await self._rules.apply(
            replace(node, relayed=True), [c for c in led if c.before != c.after]
        )
        wanted = {door for c in changes for door in self._wanted(c.after)}
        self._doors.close({door for c in changes for door in self._wanted(c.before)} - wanted)
        return refused

    def in_kernel(self, plan: ServicePlan) -> ServicePlan:
        """See `Leading`: the plan with the relay's sockets in place of endpoints. A port without them is left out."""
        ports = [
            port if port.protocol not in relayed.RELAYED else self._led_port(port) for port in plan.ports
        ]
        return replace(plan, ports=tuple(port for port in ports if port is not None))

    async def intact(self) -> bool:
        """See `Driver`."""
        return await self._rules.intact()

    def watch(self, disturbed: Callable[[str], None]) -> bool:
        """See `Driver`."""
        return self._rules.watch(disturbed)

    def figures(self) -> Iterable[Figure]:
        """See `Measured`."""
        if isinstance(self._rules, Measured):
            yield from self._rules.figures()
        yield from self._relay.figures()

    async def close(self) -> None:
        """See `Driver`."""
        await self._rules.close()
        await self._doors.stop()

    def _open(self, node: NodeConfig, plans: Iterable[ServicePlan]) -> dict[Key, str]:
        """Opens or changes the listeners of some Services; returns those that have not got all."""
        failures = {}
        for plan in plans:
            for door, listener in self._listeners(plan):
                try:
                    self._doors.put(door, listener, self._address, node.relay_ports)
                except OSError as e:
                    failures[plan.key] = f"no socket on {self._address} for {door[1]}: {e.strerror or e}"
        return failures

    def _wanted(self, plan: ServicePlan | None) -> set[_Door]:
        return {door for door, _ in self._listeners(plan)}

    def _listeners(self, plan: ServicePlan | None) -> Iterator[tuple[_Door, Listener]]:
        for port in plan.ports if plan else ():
            if port.protocol in relayed.RELAYED:
                for policy, endpoints in (("cluster", port.cluster), ("local", port.local)):
                    if endpoints:
                        assert plan is not None
                        choice = relayed.anybody(endpoints)
                        yield (
                            (self._address, port.name, port.protocol, policy),
                            relayed.listener(plan, port, choice, translated=True, header=True),
                        )

    def _led_port(self, port: PortPlan) -> PortPlan | None:
        at = {
            policy: self._doors.port((self._address, port.name, port.protocol, policy))
            for policy in ("cluster", "local")
        }
        if (port.cluster and not at["cluster"]) or (port.local and not at["local"]):
            return None
        cluster = (Endpoint(self._address, at["cluster"]),) if port.cluster else ()
        local = (Endpoint(self._address, at["local"]),) if port.local else ()
        return replace(
            port,
            affinity=0,
            cluster=cluster,
            local=local,
            serving=cluster + local if port.protocol == "UDP" else (),
            endpoints=0,
            topology="",
        )
