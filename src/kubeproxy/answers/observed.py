"""What only the running daemon knows, because it has observed it. Commands ask for it."""

from typing import Literal

from msgspec import Struct

ChangeKind = Literal[
    "service_added", "service_changed", "service_removed", "endpoint_added", "endpoint_removed"
]
"""What a change means on this node; one change of an EndpointSlice may both add and remove endpoints."""

Since = Literal["change", "received"]
"""What is measured from: the change in the cluster, or its arrival at this node."""


class Converged(Struct, frozen=True, gc=False, rename="camel"):
    """How long changes of one kind took until they were in the kernel, in seconds.

    Each time is a bound that such a share of the changes was within; null if it exceeds all bounds.
    """

    kind: ChangeKind
    since: Since
    count: int
    median: float | None
    p99: float | None
    p999: float | None


class SilentEndpoint(Struct, frozen=True, gc=False, rename="camel"):
    """An endpoint that gets no connections because it does not answer.

    Attributes:
        namespace: of the Service.
        name: of the Service.
        port: the name of the Service port, which may be "".
        address: its address.
        endpoint_port: its port.
        seconds: for how long it has not answered.
        failures: how many connections have failed.
        next_trial: in how many seconds it is tried again; 0 if it is being tried.
        on_trial: it is used until the first connection to it.
    """

    namespace: str
    name: str
    port: str
    address: str
    endpoint_port: int
    seconds: float
    failures: int
    next_trial: float
    on_trial: bool


class FullEndpoint(Struct, frozen=True, gc=False, rename="camel"):
    """A near endpoint that has as many open connections as its limit.

    Attributes:
        port: the name of the Service port, "" if it has none.
        connections: the open connections.
    """

    namespace: str
    name: str
    port: str
    address: str
    endpoint_port: int
    connections: int


class Observed(Struct, frozen=True, gc=False, rename="camel"):
    """What was observed since the daemon started.

    Attributes:
        convergence: how long changes took until they were in the kernel.
        silent: the endpoints that get no connections because they do not answer.
        full: the near endpoints that get none because they have as many as their limit.
    """

    convergence: tuple[Converged, ...] = ()
    silent: tuple[SilentEndpoint, ...] = ()
    full: tuple[FullEndpoint, ...] = ()
