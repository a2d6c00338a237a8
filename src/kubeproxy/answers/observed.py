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


class Observed(Struct, frozen=True, gc=False, rename="camel"):
    """What was observed since the daemon started.

    Attributes:
        convergence: how long changes took until they were in the kernel.
    """

    convergence: tuple[Converged, ...] = ()
