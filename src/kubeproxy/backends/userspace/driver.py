"""Userspace mode with rules, which lead the traffic to a relay.

For each Service port there is a socket for the Cluster policy and one for the Local policy, as far as some
traffic has it and endpoints are there. A plan that names the socket in place of the endpoints is passed to
nftables mode's driver, which programs everything in front of it: node ports, source ranges, rejection, the
policy of each client. A change of endpoints does not change such a plan, so it never reaches the kernel.

The sockets are on an address of the node, because the kernel delivers no packets of other hosts to loopback;
the relay serves only connections that were translated. Its own connections have the mark for masquerading and
are not translated: an endpoint may have the address of a front. SCTP is left to the kernel, as in nftables
mode.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec.structs import replace

from kubeproxy.backends import relayed
from kubeproxy.backends.base import (
    Change,
    Driver,
    Failures,
    HeldState,
    Measured,
    Readable,
    StaleError,
    SyncError,
)
from kubeproxy.backends.relayed import RelaySocket
from kubeproxy.backends.shared import listeners, presence
from kubeproxy.backends.shared.listeners import HeldListeners, ListenerSteps, RecordingRelay
from kubeproxy.backends.shared.threads import in_thread
from kubeproxy.backends.userspace.led_sockets import LedSockets, SocketName
from kubeproxy.figures import Figure
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, ServicePlan
from kubeproxy.relay.control import Relay
from kubeproxy.relay.doors import Doors
from kubeproxy.relay.traffic import TrafficReport
from kubeproxy.relay.values import CarriedFlow, Target

log = logging.getLogger(__name__)


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
        self._own_address = own_address
        self._sockets = LedSockets(Doors(relay))
        self._first = True

    async def load(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        """See `Driver`."""
        at = self._own_address(node)
        led, failures = await in_thread(self._sockets.begin, node, at, plans)
        rules = replace(node, relayed=True)
        refused = await self._rules.load(rules, led)
        if refused and self._first:
            # Rules that an earlier process left lead to sockets that were closed, or are another process's
            # now.
            led = {key: plan for key, plan in led.items() if key not in refused}
            refused = {**refused, **await self._rules.load(rules, led)}
        self._first = False
        await in_thread(self._sockets.finish, led, plans, failures, refused)
        await in_thread(presence.synced, self._relay, plans, self._sockets.refused)
        if not await self._sockets.doors.served():
            raise SyncError(relayed.SILENT)
        return {**refused, **failures}

    async def apply(self, node: NodeConfig, changes: Sequence[Change]) -> Failures:
        """See `Driver`."""
        if known := [c.key for c in changes if c.key in self._sockets.refused]:
            raise StaleError(f"Service {'/'.join(known[0])} was refused before")
        sockets = self._sockets
        opened: list[SocketName] = []
        try:
            for c in changes:
                opened += sockets.open(node, c.after)
            led = [
                Change(c.key, c.before and self.in_kernel(c.before), c.after and self.in_kernel(c.after))
                for c in changes
            ]
            refused = await self._rules.apply(
                replace(node, relayed=True), [c for c in led if c.before != c.after]
            )
        except OSError as e:
            sockets.doors.close(opened)
            raise StaleError(str(e)) from e
        except SyncError:
            sockets.doors.close(opened)
            raise
        sockets.changed(changes, led)
        presence.changed(self._relay, changes)
        return refused

    def in_kernel(self, plan: ServicePlan) -> ServicePlan:
        """See `Leading`: the plan with the relay's sockets as endpoints, without ports that have none."""
        return self._sockets.led_plan(plan)

    def sockets(self) -> list[RelaySocket]:
        """See `Relaying`."""
        return self._sockets.listed()

    async def read(self) -> HeldListeners:
        """See `Readable`."""
        return listeners.held(await self._readable().read(), self._sockets.doors)

    def difference(
        self, held: HeldState, node: NodeConfig, plans: Mapping[Key, ServicePlan]
    ) -> ListenerSteps:
        """See `Readable`. The sockets are those of this process."""
        there = listeners.as_listeners(held)
        assert there.rules is not None
        relay = RecordingRelay(self._relay.machine, self._sockets.doors)
        copy = self._sockets.copy(relay)
        led, failures = copy.begin(node, self._own_address(node), plans)
        rules = self._readable().difference(there.rules, replace(node, relayed=True), led)
        copy.finish(led, plans, failures)
        return ListenerSteps(rules, tuple(relay.steps))

    def describe(self, node: NodeConfig, plan: ServicePlan) -> list[str]:
        """See `Readable`."""
        copy = self._sockets.copy(RecordingRelay(self._relay.machine, self._sockets.doors))
        led, _ = copy.begin(node, self._own_address(node), {plan.key: plan})
        copy.finish(led, {plan.key: plan}, {})
        rules = self._readable().describe(replace(node, relayed=True), led[plan.key])
        return [*rules, *listeners.held(None, copy.doors).lines()]

    def _readable(self) -> Readable:
        assert isinstance(self._rules, Readable)
        return self._rules

    async def intact(self) -> bool:
        """See `Driver`."""
        return await self._rules.intact()

    def watch(self, disturbed: Callable[[str], None]) -> bool:
        """See `Driver`."""
        return self._rules.watch(disturbed)

    def traffic(self, token: str) -> TrafficReport:
        """See `Counting`."""
        return self._relay.traffic(token, relayed.ANSWER_SECONDS)

    def flows(self, group: str, front: Target, clients: tuple[str, ...], most: int) -> list[CarriedFlow]:
        """See `Counting`."""
        return self._relay.flows(group, front, clients, most, relayed.ANSWER_SECONDS)

    def figures(self) -> Iterable[Figure]:
        """See `Measured`."""
        if isinstance(self._rules, Measured):
            yield from self._rules.figures()
        yield from self._relay.figures()

    async def drain(self, seconds: float) -> None:
        """See `Carrying`."""
        await self._rules.close()
        await self._sockets.doors.drain(seconds)

    async def close(self) -> None:
        """See `Driver`."""
        await self._rules.close()
        await self._sockets.doors.stop()
