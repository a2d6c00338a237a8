"""Services, ports and endpoints as the status page gets them, made of plans."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final, Literal

from msgspec import Struct

from kubeproxy.api.addresses import join
from kubeproxy.model.plan import FORWARD, Key, LostFront, PortPlan, ServicePlan
from kubeproxy.reconcile.ledger import Progress

Which = Literal["", "done", "pending", "refused", "empty", "contested"]
"""Which Services to list: all, those with a status, those without endpoints, or those that lost a front."""

MOST_ROWS: Final = 100
"""So many Services, endpoints or ports are in one answer at most."""

MOST_FRONTS: Final = 8
"""So many fronts of a Service are listed, or of a port."""


class ListedService(Struct, frozen=True, gc=False, rename="camel"):
    """A Service in the list.

    Attributes:
        namespace: its namespace.
        name: its name.
        status: "done" if the kernel has what is wanted, in all IP families.
        words: what the kernel said when it refused it.
        empty: a port has no endpoint.
        contested: how many of its fronts belong to other Services.
        fronts: the first of its fronts, as `ADDRESS:PORT/PROTOCOL` or `:NODEPORT/PROTOCOL`.
        more_fronts: how many more it has.
        endpoints: how many endpoints it uses.
        local: how many of them are on this node.
    """

    namespace: str
    name: str
    status: Progress
    words: str
    empty: bool
    contested: int
    fronts: tuple[str, ...]
    more_fronts: int
    endpoints: int
    local: int


class ServiceList(Struct, frozen=True, gc=False):
    """A part of the Services that were found.

    Attributes:
        total: how many were found.
        offset: how many are before this part.
        services: the part.
    """

    total: int
    offset: int
    services: Sequence[ListedService]


class ListedPort(Struct, frozen=True, gc=False, rename="camel"):
    """A port of a Service, under one IP family.

    Attributes:
        family: the IP family.
        name: its name, "" if it has none.
        protocol: its protocol.
        fronts: the first of its fronts.
        more_fronts: how many more it has.
        internal: what happens to packets from Pods and processes to the ClusterIP, and by which policy.
        external: the same for packets to its other fronts from outside; "" if it has none.
        affinity: seconds that a client keeps its endpoint; 0 without session affinity.
        topology: which hints limit its endpoints.
        source_ranges: how many ranges of clients may use its load balancer IPs; 0 for all clients.
        endpoints: how many endpoints it uses.
    """

    family: str
    name: str
    protocol: str
    fronts: tuple[str, ...]
    more_fronts: int
    internal: str
    external: str
    affinity: int
    topology: str
    source_ranges: int
    endpoints: int


class ListedEndpoint(Struct, frozen=True, gc=False):
    """An endpoint of a port.

    Attributes:
        family: the IP family.
        port: the name of the port and its protocol.
        address: its address and port.
        local: it is on this node.
        internal: its share of new connections to the ClusterIP.
        external: its share of new connections from outside to other fronts; None if there are none.
    """

    family: str
    port: str
    address: str
    local: bool
    internal: float
    external: float | None


class ServiceDetail(Struct, frozen=True, gc=False, rename="camel"):
    """A Service, and a part of its endpoints.

    Attributes:
        service: as it is in the list.
        ports: its first ports under all IP families.
        more_ports: how many more it has.
        lost: the first of the fronts that belong to another Service, and to which.
        total: how many endpoints its ports have.
        offset: how many endpoints are before this part.
        endpoints: the part.
    """

    service: ListedService
    ports: Sequence[ListedPort]
    more_ports: int
    lost: Sequence[str]
    total: int
    offset: int
    endpoints: Sequence[ListedEndpoint]


def owned(plan: ServicePlan) -> Iterator[tuple[str, str, int]]:
    """Address, protocol and port of each front of a plan; a node port has no address."""
    return chain.from_iterable(map(_fronts, plan.ports))


def _fronts(port: PortPlan) -> Iterator[tuple[str, str, int]]:
    addresses = dict.fromkeys((port.cluster_ip, *port.external_ips, *port.load_balancer_ips))
    for address in addresses:
        if address:
            yield address, port.protocol, port.port
    if port.node_port:
        yield "", port.protocol, port.node_port


def front_text(address: str, protocol: str, port: int) -> str:
    """A front as it is shown."""
    return f"{join(address, port) if address else f':{port}'}/{protocol}"


def lost_text(key: Key, lost: LostFront) -> str:
    """A front that a Service lost, and to which Service."""
    owner = "also a node port of this Service" if lost.owner == key else f"belongs to {'/'.join(lost.owner)}"
    return f"{lost.kind} {front_text(lost.address, lost.protocol, lost.port)} {owner}"


def endpoint_count(port: PortPlan) -> int:
    """How many endpoints a port uses by the policy that has more of them."""
    return max(len(port.cluster), len(port.local))


def local_count(port: PortPlan) -> int:
    """The same of endpoints on this node."""
    return max(sum(each.local for each in port.cluster), len(port.local))


def _own_name(port: PortPlan) -> str:
    return port.name.partition(":")[2]


def listed_port(family: str, port: PortPlan) -> ListedPort:
    """A port as it is shown."""
    fronts = [front_text(*each) for each in _fronts(port)]

    def words(action: str, *, local: bool) -> str:
        return f"{action}, policy {'Local' if local else 'Cluster'}"

    return ListedPort(
        family,
        _own_name(port),
        port.protocol,
        tuple(fronts[:MOST_FRONTS]),
        max(0, len(fronts) - MOST_FRONTS),
        words(port.internal_action, local=port.internal_local),
        words(port.external_action, local=port.external_local) if port.external else "",
        port.affinity,
        port.topology,
        len(port.source_ranges),
        len(port.endpoints),
    )


def listed_endpoints(family: str, port: PortPlan) -> Iterator[ListedEndpoint]:
    """The endpoints of a port as they are shown."""
    internal, external = set(port.internal_endpoints), set(port.external_endpoints)
    outside = port.external and port.external_action == FORWARD
    name = f"{_own_name(port) or port.port}/{port.protocol}"
    for each in port.endpoints:
        yield ListedEndpoint(
            family,
            name,
            join(each.address, each.port),
            each.local,
            1 / len(internal) if each in internal else 0.0,
            (1 / len(external) if each in external else 0.0) if outside else None,
        )
