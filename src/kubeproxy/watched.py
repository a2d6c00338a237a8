"""The ports of Services whose flows are looked at, and how a flow is found to be of one of them."""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from kubeproxy.model import flows
from kubeproxy.model.flows import Place
from kubeproxy.model.plan import Key, PortPlan


class WatchedPort(NamedTuple):
    """A port of a Service: name and number as in its plan."""

    service: Key
    name: str
    number: int


class WatchedPorts:
    """Such ports, with their plans and fronts.

    Attributes:
        plans: the plan of each port.
    """

    def __init__(self) -> None:
        self.plans: dict[WatchedPort, PortPlan] = {}
        self._of: dict[Key, list[WatchedPort]] = {}
        self._fronts: dict[Place, WatchedPort] = {}

    def of(self, service: Key) -> Sequence[WatchedPort]:
        """Those of a Service."""
        return self._of.get(service, ())

    def services(self) -> Collection[Key]:
        """The Services that have some."""
        return self._of.keys()

    def replace(self, service: Key, plans: Iterable[PortPlan]) -> None:
        """The ports of a Service that are watched from now on."""
        for port in self._of.pop(service, ()):
            for front in flows.fronts(self.plans.pop(port)):
                if self._fronts.get(front) == port:  # another port may have it now
                    del self._fronts[front]
        for plan in plans:
            port = WatchedPort(service, plan.name, plan.port)
            self.plans[port] = plan
            self._of.setdefault(service, []).append(port)
            self._fronts.update(dict.fromkeys(flows.fronts(plan), port))

    def find(self, destination: Place, own: Collection[bytes]) -> WatchedPort | None:
        """The port that flows to a destination are of; None if it is not watched.

        Args:
            destination: the place that a client sends to.
            own: the addresses of this node.
        """
        port = self._fronts.get(destination)
        if port is None and destination[:-2] in own:
            port = self._fronts.get(destination[-2:])
        return port
