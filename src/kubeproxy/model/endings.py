"""TCP connections to endpoints that were removed, of Services whose annotation says that they are to end.

A client that is connected to an endpoint that was removed, on a node that failed for example, waits for
minutes: its packets get no answer. If the flow is deleted from connection tracking, its next packet is sent
to another endpoint, which knows nothing of the connection and resets it. So the client notices at once.

Only connections to endpoints that are in no EndpointSlice of the Service any more are ended: an endpoint that
is not ready or terminates keeps its connections, however long that takes. The endpoint must have been removed
while the annotation was there and the Service existed; a Service that is deleted keeps its connections.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from kubeproxy.model import flows
from kubeproxy.model.arrivals import TCP
from kubeproxy.model.flows import Listing, Place, TrackedFlow, place
from kubeproxy.model.plan import Key, PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint

PortKey = tuple[str, int]
"""Name and number of a TCP port of a plan."""

Gone = Mapping[PortKey, frozenset[Endpoint]]
"""The endpoints that were removed, by port."""


def removed(before: ServicePlan | None, after: ServicePlan | None) -> Gone:
    """The endpoints that were removed from the TCP ports of a plan whose connections are then to end."""
    if before is None or after is None:
        return {}
    had = {(port.name, port.port): port.present for port in before.ports if port.present}
    if not had:
        return {}
    return {
        which: gone
        for port in after.ports
        if port.present is not None
        and (there := had.get(which := (port.name, port.port)))
        and (gone := frozenset(there).difference(port.present))
    }


def present(plan: ServicePlan | None, which: PortKey) -> frozenset[Endpoint] | None:
    """The endpoints of a port that were not removed; None if no connections of the port are to end."""
    for port in plan.ports if plan is not None else ():
        if (port.name, port.port) == which and port.present is not None:
            return frozenset(port.present)
    return None


class _Ending(NamedTuple):
    """A removed endpoint of a port."""

    key: Key
    which: PortKey
    endpoint: Endpoint


class Endings:
    """The removed endpoints of one family whose connections must be ended."""

    def __init__(self) -> None:
        self._at: dict[tuple[Place, Place], list[_Ending]] = {}  # by front and endpoint
        self._ports: set[Place] = set()
        self._sources: dict[Place, None] = {}

    def add(self, key: Key, port: PortPlan, gone: frozenset[Endpoint]) -> None:
        """Adds removed endpoints of a port that is in the kernel."""
        fronts = list(flows.fronts(port))
        self._ports.update(front for front in fronts if len(front) == 2)
        for endpoint in gone:
            source = place(endpoint.address, endpoint.port)
            self._sources[source] = None
            for front in fronts:
                ending = _Ending(key, (port.name, port.port), endpoint)
                self._at.setdefault((front, source), []).append(ending)

    def listings(self) -> Iterator[Listing]:
        """The flows that must be checked."""
        if len(self._sources) > flows.MOST_LISTINGS:
            yield Listing(TCP, answered=True)
        else:
            for source in self._sources:
                yield Listing(TCP, source=source, answered=True)

    def is_over(
        self, flow: TrackedFlow, local: Callable[[bytes], bool], plans: Mapping[Key, ServicePlan]
    ) -> bool:
        """Whether a flow is a connection from a front of a Service to an endpoint that was removed from it.

        Args:
            flow: the flow.
            local: returns whether a packed address is one of this node that accepts node ports.
            plans: the plans in the kernel now: an endpoint that has come back keeps its connections.
        """
        if flow.protocol != TCP or flow.source == flow.destination:
            return False
        found = self._at.get((flow.destination, flow.source), [])
        number = flow.destination[-2:]
        if not found and number in self._ports and local(flow.destination[:-2]):
            found = self._at.get((number, flow.source), [])
        return any(_is_gone(ending, plans) for ending in found)

    def settled(self) -> None:
        """All flows were checked."""
        self._at.clear()
        self._ports.clear()
        self._sources.clear()


def _is_gone(ending: _Ending, plans: Mapping[Key, ServicePlan]) -> bool:
    there = present(plans.get(ending.key), ending.which)
    return there is not None and ending.endpoint not in there
