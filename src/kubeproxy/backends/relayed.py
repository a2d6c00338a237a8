"""What a Service's plan means to a relay. For the modes that have one."""

from typing import Protocol, runtime_checkable

from msgspec import Struct

from kubeproxy.api.addresses import BITS, family_of, join
from kubeproxy.model import maglev
from kubeproxy.model.distribution import Distribution
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import PortId, PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint
from kubeproxy.relay.traffic import TrafficReport
from kubeproxy.relay.values import CarriedFlow, Choice, Division, Listener, Target

SILENT = "the relay does not accept connections"
"""Why a sync failed although its rules may be in place."""

RELAYED = frozenset({"TCP", "UDP"})
"""The protocols a relay carries."""

ANSWER_SECONDS = 2.0
"""So long a relay that does not respond is waited for when it is asked for its connections."""


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


@runtime_checkable
class Counting(Protocol):
    """A driver whose relay carries all connections of Services and counts them."""

    def traffic(self, token: str) -> TrafficReport:
        """See `Relay.traffic`. Groups are those of `group`. It blocks, some seconds at most."""

    def flows(self, group: str, front: Target, clients: tuple[str, ...], most: int) -> list[CarriedFlow]:
        """See `Relay.flows`. It blocks, some seconds at most."""


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
    return group_of(port.name, port.protocol)


def group_of(name: str, protocol: str) -> str:
    """The same for the name of a Service port as in its plan, and its protocol."""
    return f"{name}/{protocol}"


def port_of(group: str) -> PortId:
    """The Service port of a group."""
    name, _, protocol = group.rpartition("/")
    return name, "UDP" if protocol == "UDP" else "TCP"


def targets(endpoints: tuple[Endpoint, ...]) -> tuple[Target, ...]:
    """Endpoints as values of the relay."""
    return tuple([(endpoint.address, endpoint.port) for endpoint in endpoints])


def choice(
    endpoints: tuple[Endpoint, ...], distribution: Distribution | None, clients: tuple[str, ...] = ()
) -> Choice:
    """The endpoints for some clients.

    Args:
        endpoints: the endpoints.
        distribution: how clients are divided among them, see `PortPlan.cluster_distribution`.
        clients: the ranges of the clients; none for all clients.
    """
    return Choice(targets(endpoints), clients, division(endpoints, distribution))


def division(endpoints: tuple[Endpoint, ...], distribution: Distribution | None) -> Division | None:
    """How clients are divided among endpoints, as a value of the relay."""
    if distribution is None:
        return None
    table = b""
    if distribution.method == "maglev":
        table = maglev.table(endpoints, distribution.weights, distribution.table_size).tobytes()
    near = frozenset(distribution.preferred)
    return Division(
        weights=distribution.weights,
        least=distribution.method == "least-connections",
        table=table,
        by_port=distribution.by_port,
        preferred=tuple([number for number, each in enumerate(endpoints) if each in near]),
        bound=distribution.bound,
    )


def described(choice: Choice) -> str:
    """Where clients are sent and how they are divided, in one line."""
    divided = choice.division or Division()
    weights = divided.weights or (0,) * len(choice.targets)
    shown = [
        f"{join(*target)}={weight}" if weight else join(*target)
        for target, weight in sorted(zip(choice.targets, weights, strict=True))
    ]
    text = ",".join(shown)
    if divided.table:
        port = " and port" if divided.by_port else ""
        text += f" by hash of the source address{port}, {len(divided.table) // 2} slots"
    if divided.least:
        text += " by fewest connections"
    if divided.preferred:
        near = ",".join(join(*choice.targets[number]) for number in divided.preferred)
        text += f", {near} up to {divided.bound} connections first"
    clients = f" from {','.join(choice.clients)}" if choice.clients else ""
    return text + clients


def own(node: NodeConfig, local: tuple[str, ...]) -> tuple[str, ...]:
    """The source ranges of traffic that starts on this node, as far as it can be recognised by addresses.

    Args:
        node: the node.
        local: its addresses.
    """
    pods = node.local_traffic
    mine = tuple(f"{address}/{BITS[family_of(address)]}" for address in local)
    return (*mine, pods.value) if pods is not None and pods.by == "range" else mine
