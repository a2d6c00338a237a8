"""Counts of the connections of endpoints, from a relay that carries them."""

from collections.abc import Callable, Collection, Mapping

from kubeproxy.backends import relayed
from kubeproxy.backends.base import EndpointCounts
from kubeproxy.model.plan import Key, PortId, ServicePlan
from kubeproxy.relay.traffic import Total, TrafficReport, minus, plus
from kubeproxy.relay.values import Tally, Target


class RelayCounter:
    """See `ConnectionCounter`. The relay says more than that about its connections.

    Only what has changed is read, so the cost of a reading follows the traffic.

    Attributes:
        by_service, partial: see there.
        changed: the endpoints of Service ports whose traffic has changed; to be emptied by the reader.
    """

    by_service = True
    partial = False

    def __init__(self, ask: Callable[[str], TrafficReport]) -> None:
        """Nothing is read yet.

        Args:
            ask: the counts since the report with a token, see `Relay.traffic`.
        """
        self._ask = ask
        self._token = ""
        self._last: dict[tuple[PortId, Target], Total] = {}
        self._traffic: dict[PortId, dict[Target, Tally]] = {}
        self._counts: EndpointCounts = {}
        self._ports: dict[Key, list[PortId]] = {}
        self.changed: set[tuple[PortId, Target]] = set()

    def set(self, key: Key, plan: ServicePlan | None) -> None:
        """See `ConnectionCounter`."""
        ports = [(port.name, port.protocol) for port in plan.ports] if plan is not None else []
        for port in self._ports.pop(key, ()):
            if port not in ports:
                self._counts.pop(port, None)
                for target in self._traffic.pop(port, ()):
                    self._last.pop((port, target), None)
        if ports:
            self._ports[key] = ports

    def traffic(self, port: PortId) -> Mapping[Target, Tally]:
        """What has been read of a Service port, by endpoint."""
        return self._traffic.get(port, {})

    def read(self, only: Collection[Key] = ()) -> EndpointCounts | None:  # noqa: ARG002 all costs no more
        """See `ConnectionCounter`."""
        report = self._ask(self._token)
        self._token = report.token
        if report.full:
            self._begin()
        for total in report.totals:
            self._take(relayed.port_of(total.tally.group), total)
        return self._counts

    def close(self) -> None:
        """See `ConnectionCounter`."""

    def _begin(self) -> None:
        """The relay is another one, which has counted from 0 and has none of the known connections."""
        self._last.clear()
        for port, of_port in self._traffic.items():
            for target, total in of_port.items():
                of_port[target] = plus(total, Tally(total.group, target))
                self.changed.add((port, target))

    def _take(self, port: PortId, total: Total) -> None:
        """A target has these counts now."""
        target = total.tally.target
        last = self._last.get((port, target))
        new = total.tally if last is None or last.began != total.began else minus(total.tally, last.tally)
        self._last[port, target] = total
        of_port = self._traffic.setdefault(port, {})
        before = of_port.get(target)
        known = of_port[target] = new if before is None else plus(before, new)
        self._counts.setdefault(port, {})[target] = known.connections
        self.changed.add((port, target))
