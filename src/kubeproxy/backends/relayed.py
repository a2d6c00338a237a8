"""What a Service's plan means to a relay. For the modes that have one."""

from typing import Protocol, runtime_checkable

from msgspec import Struct

from kubeproxy.api.addresses import BITS, family_of
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint
from kubeproxy.relay.values import Choice, Listener, Target

SILENT = "the relay does not accept connections"
"""Why a sync failed although its rules may be in place."""

RELAYED = frozenset({"TCP", "UDP"})
"""The protocols a relay carries."""


class RelaySocket(Struct, frozen=True, gc=False):
    """A socket on which a relay listens.

    Attributes:
        policy: the traffic policy that it is for, "cluster" or "local"; "" for a node port on localhost.
        address: the address it listens on.
        port: the port it listens on; 0 if it is not open, and its port is chosen when it is opened.
        listener: how it serves connections.
    """

    policy: str
    address: str
    port: int
    listener: Listener


@runtime_checkable
class Relaying(Protocol):
    """A driver that has a relay."""

    def sockets(self) -> list[RelaySocket]:
        """The sockets on which its relay listens."""


def listener(
    plan: ServicePlan,
    port: PortPlan,
    *choices: Choice,
    admitted: tuple[str, ...] = (),
    translated: bool = False,
    header: bool = False,
) -> Listener:
    """A listener for traffic of a Service port.

    Args:
        plan: the Service.
        port: the port.
        choices: the endpoints for each kind of client.
        admitted: who may connect; none for all.
        translated: only clients whose destination was translated from a front are served.
        header: PROXY protocol headers are sent if the Service asks for them.
    """
    return Listener(
        name=f"Service {port.name} {port.protocol}",
        group=group(port),
        udp=port.protocol == "UDP",
        choices=choices,
        admitted=admitted,
        affinity=port.affinity,
        translated=translated,
        kept=targets(port.serving),
        header=header and plan.proxy_protocol and port.protocol == "TCP",
    )


def group(port: PortPlan) -> str:
    """The group of the listeners of a Service port, see `Listener`; no other Service port has it."""
    return f"{port.name}/{port.protocol}"


def targets(endpoints: tuple[Endpoint, ...]) -> tuple[Target, ...]:
    """Endpoints as values of the relay."""
    return tuple([(endpoint.address, endpoint.port) for endpoint in endpoints])


def anybody(endpoints: tuple[Endpoint, ...]) -> Choice:
    """One choice for all clients."""
    return Choice(targets(endpoints))


def own(node: NodeConfig, local: tuple[str, ...]) -> tuple[str, ...]:
    """The source ranges of traffic that starts on this node, as far as it can be recognised by addresses.

    Args:
        node: the node.
        local: its addresses.
    """
    pods = node.local_traffic
    mine = tuple(f"{address}/{BITS[family_of(address)]}" for address in local)
    return (*mine, pods.value) if pods is not None and pods.by == "range" else mine
