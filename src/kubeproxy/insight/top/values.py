"""What `kube-proxy top` answers. The fields are a stable interface: they are written as JSON, in camelCase.

A figure that could not be read is null; the reason is among the troubles. Rates are per second, over the time
between two readings.
"""

from msgspec import Struct

from kubeproxy.answers.observed import Observed
from kubeproxy.api.rows import Protocol


class TopEndpoint(Struct, frozen=True, gc=False, rename="camel"):
    """The traffic of one endpoint of a Service port.

    Attributes:
        address: its address.
        port: its port.
        connections_per_second: new connections.
        share: its share of the new connections of the Service port since the beginning, from 0 to 1; null
            without any.
        connections: new connections since the beginning.
        sent_per_second: bytes that clients sent, of the connections that ended; a relay counts all as they
            pass.
        received_per_second: the same of bytes that clients received.
        open: open connections; of UDP and SCTP flows that are tracked.
        waiting: connections whose client sent a SYN and has not confirmed an answer; attempts of a relay to
            connect.
        unanswered: connections that ended since the beginning and were never answered; attempts of a relay.
        resets: TCP connections that ended since the beginning by a reset; attempts of a relay that were
            refused.
        planned: new connections are sent there; false if it only has old ones.
        silent: it does not answer, so new connections are not sent there.
        uneven: its share is further from that of the other endpoints than chance explains.
    """

    address: str
    port: int
    connections_per_second: float | None = None
    share: float | None = None
    connections: int | None = None
    sent_per_second: float | None = None
    received_per_second: float | None = None
    open: int | None = None
    waiting: int | None = None
    unanswered: int | None = None
    resets: int | None = None
    planned: bool = True
    silent: bool = False
    uneven: bool = False


class TopPort(Struct, frozen=True, gc=False, rename="camel"):
    """The traffic of one port of a Service under one IP family: sums over its endpoints, see `TopEndpoint`.

    Attributes:
        name: the name of the port, which may be "".
        family: the IP family.
        protocol: the protocol.
        port: the port at its ClusterIP.
        uneven: some endpoint is.
    """

    name: str
    family: str
    protocol: Protocol
    port: int
    connections_per_second: float | None
    connections: int | None
    sent_per_second: float | None
    received_per_second: float | None
    open: int | None
    waiting: int | None
    unanswered: int | None
    resets: int | None
    uneven: bool
    endpoints: tuple[TopEndpoint, ...]


class LastChange(Struct, frozen=True, gc=False, rename="camel"):
    """The last change of a Service.

    Attributes:
        at: the time, RFC 3339 in UTC.
        what: what changed, e.g. "+10.244.1.9:8080 -10.244.1.7:8080".
        by: the object that changed, or the program that changed the rules; "" if it is not known.
    """

    at: str
    what: str
    by: str = ""


class TopService(Struct, frozen=True, gc=False, rename="camel"):
    """The traffic of one Service."""

    namespace: str
    name: str
    ports: tuple[TopPort, ...]
    last_change: LastChange | None = None


class TopSources(Struct, frozen=True, gc=False, rename="camel"):
    """Where the figures are from.

    Attributes:
        connections: "counters" of the rules, "events" of connection tracking, or the "relay"; "" if they
            cannot be read.
        connections_age: seconds since all counters were read; 0 with events.
        open_age: seconds since the open connections were read; null if they cannot be.
        bytes: whether bytes are counted.
        losses: how many times the kernel had more events than could be received; then figures are too low.
    """

    connections: str = ""
    connections_age: float = 0.0
    open_age: float | None = None
    bytes: bool = False
    losses: int = 0


class Top(Struct, frozen=True, gc=False, rename="camel"):
    """The traffic of the Services of a node.

    Attributes:
        node: the node.
        mode: how Services are programmed.
        seconds: since the beginning.
        services: the busiest first.
        sources: where the figures are from.
        troubles: what could not be read, and why.
        observed: what the daemon on this host has observed; null if none answers.
    """

    node: str
    mode: str
    seconds: float
    services: tuple[TopService, ...]
    sources: TopSources
    troubles: tuple[str, ...] = ()
    observed: Observed | None = None
