"""Connections of endpoints, added up from counters that begin at 0 again when their rule is written again."""

from collections.abc import Callable, Hashable, Iterable
from typing import Final

from kubeproxy.backends.base import EndpointCounts
from kubeproxy.model.plan import PortId

_SPARE: Final = 10_000
"""So many counters that are gone are kept before they are looked for."""


class Totals:
    """Counts that never become lower.

    Attributes:
        counts: the connections so far.
    """

    def __init__(self) -> None:
        self.counts: EndpointCounts = {}
        self._last: dict[Hashable, tuple[int, PortId, tuple[str, int]]] = {}

    def take(self, counter: Hashable, value: int, port: PortId, endpoint: tuple[str, int]) -> None:
        """A counter of the kernel has a value.

        Args:
            counter: what identifies it.
            value: its value.
            port: the Service port it counts for.
            endpoint: the address and port of the endpoint it counts for.
        """
        last, _, _ = self._last.get(counter, (0, port, endpoint))
        self._last[counter] = value, port, endpoint
        of_port = self.counts.setdefault(port, {})
        of_port[endpoint] = of_port.get(endpoint, 0) + (value - last if value >= last else value)

    def prune(self, number: int, counters: Callable[[], Iterable[Hashable]]) -> None:
        """Forgets counters that are gone, and endpoints that have none, if there are many of them.

        Args:
            number: how many counters there are.
            counters: those that there are.
        """
        if len(self._last) <= number + _SPARE:
            return
        self._last = {each: self._last[each] for each in counters() if each in self._last}
        kept = {(port, endpoint) for _, port, endpoint in self._last.values()}
        for port, of_port in list(self.counts.items()):
            for endpoint in [each for each in of_port if (port, each) not in kept]:
                del of_port[endpoint]
            if not of_port:
                del self.counts[port]
