"""What connection tracking says of the flows to Services.

Those that are open, and those that begin and end.
"""

import errno
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct

from kubeproxy.api.addresses import IPV4, Family, unpack
from kubeproxy.insight.top.fronts import FrontIndex, Place, PortName
from kubeproxy.insight.top.tally import Endpoint
from kubeproxy.machine.base import Machine
from kubeproxy.netlink import flow_values
from kubeproxy.netlink.conntrack_events import FlowEvents

ACCOUNTING: Final = "net/netfilter/nf_conntrack_acct"
_EVENTS: Final = "net/netfilter/nf_conntrack_events"
_OVER: Final = frozenset({0, 7, 8})
"""TCP states NONE, TIME_WAIT and CLOSE."""

_CONNECTING: Final = frozenset({1, 2, 9})
"""SYN_SENT, SYN_RECV and SYN_SENT2: the client has not confirmed an answer."""


class OpenFlows(Struct, frozen=True, gc=False):
    """Connections of one Service port at one moment, by endpoint.

    Attributes:
        open: those that were established and have not ended; of UDP and SCTP all flows that are tracked.
        waiting: TCP connections whose client sent a SYN and has not confirmed an answer.
    """

    open: Counter[Endpoint]
    waiting: Counter[Endpoint]


def list_open(
    machine: Machine, fronts: Mapping[Family, FrontIndex], *, marked: bool = True
) -> dict[PortName, OpenFlows]:
    """Lists the open connections.

    Args:
        machine: this host.
        fronts: the Service ports of each family.
        marked: only those that rules have translated; IPVS needs none.

    Raises:
        OSError: they cannot be listed.
    """
    open_: dict[PortName, Counter[Place]] = {}
    waiting: dict[PortName, Counter[Place]] = {}
    for family, known in fronts.items():
        domain = socket.AF_INET if family == IPV4 else socket.AF_INET6
        for protocol, destination, source, state, _ in flow_values.translated(machine, domain, marked=marked):
            if state in _OVER or (port := known.find(protocol, destination)) is None:
                continue
            counts = waiting if state in _CONNECTING else open_
            counts.setdefault(port, Counter())[source] += 1
    return {
        port: OpenFlows(_read(open_.get(port, {})), _read(waiting.get(port, {})))
        for port in open_.keys() | waiting.keys()
    }


def _read(counts: Mapping[Place, int]) -> Counter[Endpoint]:
    return Counter({endpoint(place): count for place, count in counts.items()})


def endpoint(place: Place) -> Endpoint:
    """A place as address and port."""
    return unpack(place[:-2]), int.from_bytes(place[-2:])


class FlowCounts:
    """What began and ended at one Service port, by endpoint.

    Attributes:
        began: connections that began.
        sent: bytes of clients of the connections that ended.
        received: bytes of answers of the connections that ended.
        unanswered: connections that ended and were never answered.
        resets: TCP connections that ended by a reset.
    """

    __slots__ = ("began", "received", "resets", "sent", "unanswered")

    def __init__(self) -> None:
        self.began: Counter[Endpoint] = Counter()
        self.sent: Counter[Endpoint] = Counter()
        self.received: Counter[Endpoint] = Counter()
        self.unanswered: Counter[Endpoint] = Counter()
        self.resets: Counter[Endpoint] = Counter()


class FlowWatch:
    """Counts flows of Services as they begin and end, while it is open.

    Attributes:
        ports: the counts.
        bytes: whether bytes of some flow were counted.
        changed: the ports where connections began or bytes were counted since this was emptied.
    """

    def __init__(
        self, machine: Machine, find: Callable[[int, Place], PortName | None], *, begins: bool = True
    ) -> None:
        """Begins to count.

        Args:
            machine: this host.
            find: the Service port that serves a place, of a protocol.
            begins: count connections that begin, too.

        Raises:
            OSError: the kernel does not report flows.
        """
        try:
            if machine.sysctl(_EVENTS).strip() == "0":
                raise OSError(errno.EOPNOTSUPP, f"sysctl {_EVENTS} is 0")
        except FileNotFoundError:
            pass
        self._events = FlowEvents(machine, new=begins)
        self._find = find
        self._places: dict[Place, Endpoint] = {}
        self.ports: dict[PortName, FlowCounts] = {}
        self.bytes = False
        self.changed: set[PortName] = set()

    @property
    def losses(self) -> int:
        """How many times the kernel had more to report than could be received."""
        return self._events.losses

    def poll(self) -> None:
        """Counts what was reported."""
        for event in self._events.read():
            port = self._find(event.protocol, event.destination)
            if port is None:
                continue
            counts = self.ports.get(port)
            if counts is None:
                counts = self.ports[port] = FlowCounts()
            at = self._places.get(event.source)
            if at is None:
                at = self._places[event.source] = endpoint(event.source)
            if not event.ended:
                counts.began[at] += 1
                self.changed.add(port)
                continue
            counts.unanswered[at] += event.unanswered
            counts.resets[at] += event.reset
            if event.sent is not None and event.received is not None:
                self.bytes = True
                self.changed.add(port)
                counts.sent[at] += event.sent
                counts.received[at] += event.received

    def close(self) -> None:
        """Closes its socket."""
        self._events.close()
