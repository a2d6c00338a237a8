"""Compares the kernel of userspace mode with plans, in another process than the one that programs it.

The rules are those of nftables mode and lead to the sockets of the relay. Their ports were chosen when they
were opened, so only the process that opened them knows which one is for which Service port: it is asked. A
socket that is missing has port 0 in rules that should lead to it, because its port is chosen when it is
opened.
"""

from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from kubeproxy.backends.base import Comparable, HeldPart, HeldState, KernelComparison, LoadSteps
from kubeproxy.backends.relayed import RelaySocket
from kubeproxy.backends.shared import socket_lines
from kubeproxy.backends.userspace import led_sockets
from kubeproxy.backends.userspace.led_sockets import KnownSockets
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, ServicePlan


class LedReader:
    """See `Comparable`."""

    def __init__(
        self, rules: Comparable, sockets: Sequence[RelaySocket], own_address: Callable[[NodeConfig], str]
    ) -> None:
        """Makes it.

        Args:
            rules: compares the rules.
            sockets: those of the relay.
            own_address: finds the address of the node that the relay is to listen on.
        """
        self._rules = rules
        self._known = KnownSockets(sockets)
        self._own_address = own_address
        self._address = ""

    async def read(self) -> HeldState:
        """See `Readable`: the rules. The sockets are known."""
        return await self._rules.read()

    async def read_part(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> HeldPart:
        """See `Comparable`."""
        return await self._rules.read_part(_relayed(node), self._led(node, plans))

    def difference(self, held: HeldState, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> LoadSteps:
        """See `Readable`: that of the rules."""
        return self._rules.difference(held, _relayed(node), self._led(node, plans))

    def compare(
        self, held: HeldState, node: NodeConfig, plans: Mapping[Key, ServicePlan]
    ) -> KernelComparison:
        """See `Comparable`."""
        found = self._rules.compare(held, _relayed(node), self._led(node, plans))
        wanted = [each for plan in plans.values() for each in self._wanted(node, plan)]
        return socket_lines.compare(found, socket_lines.of(self._known.sockets, held, plans), wanted)

    def describe(self, node: NodeConfig, plan: ServicePlan) -> list[str]:
        """See `Readable`."""
        (led,) = self._led(node, {plan.key: plan}).values()
        return [
            *self._rules.describe(_relayed(node), led),
            *socket_lines.lines(self._wanted(node, plan)),
        ]

    async def close(self) -> None:
        """See `Comparable`."""
        await self._rules.close()

    def _led(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> dict[Key, ServicePlan]:
        return self._known.lead(plans, self._own(node))

    def _wanted(self, node: NodeConfig, plan: ServicePlan) -> list[RelaySocket]:
        address = self._known.address(self._own(node))
        return [
            RelaySocket(policy, address, self._known.port(port, policy), listener)
            for port, policy, listener in led_sockets.wanted(plan)
        ]

    def _own(self, node: NodeConfig) -> str:
        """The address of the node, looked up once."""
        self._address = self._address or self._own_address(node)
        return self._address


def _relayed(node: NodeConfig) -> NodeConfig:
    return replace(node, relayed=True)
