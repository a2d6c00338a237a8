"""Which TCP clients wait for something that will never answer.

A client may have begun before its Service's rules were there, or its first SYN was sent to an endpoint that no longer exists, such
as those of a node that failed. The kernel sends every retransmission the same way, so the client waits until it gives up. When
such a flow is deleted the next retransmission is looked up in the current rules. Only connections without an answer qualify: in
state SYN_SENT, without any reply, to a front that just came (or whose first endpoint just came, or that lost an endpoint and has
others), and not on their way to an endpoint. Every other connection is left alone, whatever its front: it would be reset.

`Arrivals` holds these fronts until the flows to them were looked at, and nothing else: what TCP Services there are is not
kept. At a front that several Services name, what leads to an endpoint of any of them is left alone.
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
        """Whether it is a TCP connection in state SYN_SENT that saw no reply."""


def have_come(before: ServicePlan | None, after: ServicePlan) -> list[PortPlan]:
    """The TCP ports of a plan of which a front came, or the first endpoint."""
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
    """The TCP fronts of one family at which clients may wait."""

    def __init__(self) -> None:
        self._ports: dict[Place, list[PortPlan]] = {}

    def add(self, ports: Iterable[PortPlan]) -> None:
        """Flows to the fronts of these ports, as the kernel has them now, are to be looked at."""
        for port in ports:
            for front in flows.fronts(port):
                self._ports.setdefault(front, []).append(port)

    def listings(self) -> Iterator[Listing]:
        """The flows to be looked at."""
        if len(self._ports) > flows.MOST_LISTINGS:
            yield Listing(TCP)
        else:
            for front in self._ports:
                yield Listing(TCP, destination=front)

    def is_waiting(self, flow: TrackedConnection, local: Callable[[bytes], bool]) -> bool:
        """Whether a flow is that of a client who waits in vain.

        A flow in a conntrack zone that was not translated is left alone, as with UDP.

        Args:
            flow: the flow.
            local: whether a packed address is one of this node's that accept node ports.
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
        """Everything was looked at."""
        self._ports.clear()
