"""The ports of Services whose flows are looked at, and how a flow is found to be of one of them."""

from collections.abc import Collection
from typing import NamedTuple

from kubeproxy.model import flows
from kubeproxy.model.flows import Place
from kubeproxy.model.plan import Key, PortPlan


class WatchedPort(NamedTuple):
    """A port of a Service: name and number as in its plan."""

    service: Key
    name: str
    number: int


class WatchedFronts:
    """The fronts of such ports."""

    def __init__(self) -> None:
        self._ports: dict[Place, WatchedPort] = {}

    def add(self, port: WatchedPort, plan: PortPlan) -> None:
        """The fronts of a plan are those of this port."""
        self._ports.update(dict.fromkeys(flows.fronts(plan), port))

    def remove(self, port: WatchedPort, plan: PortPlan) -> None:
        """They are no more, unless another port has them now."""
        for front in flows.fronts(plan):
            if self._ports.get(front) == port:
                del self._ports[front]

    def find(self, destination: Place, own: Collection[bytes]) -> WatchedPort | None:
        """The port that flows to a destination are of; None if it is not watched.

        Args:
            destination: the place that a client sends to.
            own: the addresses of this node.
        """
        port = self._ports.get(destination)
        if port is None and destination[:-2] in own:
            port = self._ports.get(destination[-2:])
        return port
