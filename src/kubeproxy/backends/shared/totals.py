"""Connections of endpoints, added up from counters that begin at 0 again when their rule is written again."""

from collections.abc import Hashable

from kubeproxy.backends.base import EndpointCounts
from kubeproxy.model.plan import PortId


class Totals:
    """Counts that never become lower.

    Attributes:
        counts: the connections so far.
    """

    def __init__(self) -> None:
        self.counts: EndpointCounts = {}
        self._last: dict[Hashable, int] = {}

    def take(self, counter: Hashable, value: int, port: PortId, endpoint: tuple[str, int]) -> None:
        """A counter of the kernel has a value.

        Args:
            counter: what identifies it.
            value: its value.
            port: the Service port it counts for.
            endpoint: the address and port of the endpoint it counts for.
        """
        last = self._last.get(counter, 0)
        self._last[counter] = value
        of_port = self.counts.setdefault(port, {})
        of_port[endpoint] = of_port.get(endpoint, 0) + (value - last if value >= last else value)
