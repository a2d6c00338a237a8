"""TCP connections without an answer that current rules would send elsewhere.

The first SYN of a connection may have been sent before the rules of its Service existed, or to an endpoint
that does not exist any more, such as those of a node that failed. The kernel treats every retransmission in
the same way, so the client cannot connect until it gives up. If the flow is deleted, the next retransmission
is looked up in the current rules. Only connections without an answer may be deleted: in state SYN_SENT,
without any reply, to a front that was just added (or whose first endpoint was, or that lost an endpoint and
has others), and not to an endpoint. All other connections are kept, because deleting the flow of a
connection resets it.

`Arrivals` only has these fronts, until the flows to them have been checked. At a front that several Services
name, flows to an endpoint of any of them are kept.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from kubeproxy import protocols
from kubeproxy.model import flows
from kubeproxy.model.flows import Listing, Place, place
from kubeproxy.model.plan import PortPlan, ServicePlan

TCP = protocols.TCP


class TrackedConnection(flows.TrackedFlow, Protocol):
    """A tracked flow."""

    @property
    def unanswered(self) -> bool:
        """Whether it is a TCP connection in state SYN_SENT without a reply."""


def have_come(before: ServicePlan | None, after: ServicePlan) -> list[PortPlan]:
    """The TCP ports of a plan for which a front or the first endpoint was added."""
    had = {(port.name, port.port): port for port in before.ports if port.protocol == "TCP"} if before else {}
    return [
        port
        for port in after.ports
        if port.protocol == "TCP"
        and _has_endpoints(port)
        and _has_come(had.get((port.name, port.port)), port)
    ]


def _has_come(before: PortPlan | None, after: PortPlan) -> bool:
    if before is None or not _has_endpoints(before):
        return True
    if before.cluster_ip != after.cluster_ip or before.node_port != after.node_port:
        return True
    return not {*before.external_ips, *before.load_balancer_ips}.issuperset(
        (*after.external_ips, *after.load_balancer_ips)
    )


def have_lost(before: ServicePlan | None, after: ServicePlan | None) -> list[tuple[str, int]]:
    """Name and number of the TCP ports of a plan that lost an endpoint and have others."""
    if before is None or after is None:
        return []
    had = {(port.name, port.port): port for port in before.ports if port.protocol == "TCP"}
    return [
        which
        for port in after.ports
        if port.protocol == "TCP"
        and (old := had.get(which := (port.name, port.port)))
        and _has_lost(old, port)
    ]


def _has_lost(before: PortPlan, after: PortPlan) -> bool:
    if (before.cluster, before.local) == (after.cluster, after.local) or not _has_endpoints(after):
        return False
    return not {*before.cluster, *before.local} <= {*after.cluster, *after.local}


def _has_endpoints(port: PortPlan) -> bool:
    return bool(port.cluster or port.local)


class Arrivals:
    """The TCP fronts of one family whose flows must be checked."""

    def __init__(self) -> None:
        self._ports: dict[Place, list[PortPlan]] = {}

    def add(self, ports: Iterable[PortPlan]) -> None:
        """Adds ports as they are in the kernel: flows to their fronts must be checked."""
        for port in ports:
            for front in flows.fronts(port):
                self._ports.setdefault(front, []).append(port)

    def listings(self) -> Iterator[Listing]:
        """The flows that must be checked."""
        if len(self._ports) > flows.MOST_LISTINGS:
            yield Listing(TCP)
        else:
            for front in self._ports:
                yield Listing(TCP, destination=front)

    def is_waiting(self, flow: TrackedConnection, local: Callable[[bytes], bool]) -> bool:
        """Whether a flow is that of a client that cannot connect.

        A flow in a conntrack zone that was not translated is kept, as for UDP.

        Args:
            flow: the flow.
            local: returns whether a packed address is one of this node that accepts node ports.
        """
        ports = self._ports.get(flow.destination)
        if ports is None:
            ports = self._ports.get(flow.destination[-2:])
            if ports is None or not local(flow.destination[:-2]):
                return False
        if not flow.unanswered:
            return False
        if flow.source == flow.destination:
            return flow.zone == 0
        return not any(
            flow.source == place(b.address, b.port) for port in ports for b in (*port.cluster, *port.local)
        )

    def settled(self) -> None:
        """All flows were checked."""
        self._ports.clear()
