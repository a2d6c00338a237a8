"""What the relay counts of the connections that it carries, in the form in which connection tracking says it.

The relay has the connections of clients, and connects to endpoints itself, so only it knows which endpoint a
client has. It is asked for what has changed since it was asked last.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from kubeproxy.api.addresses import Family
from kubeproxy.backends.relay_counts import RelayCounter
from kubeproxy.insight.top.flows import FlowCounts, OpenFlows
from kubeproxy.insight.top.fronts import PortName
from kubeproxy.insight.top.tally import Endpoint
from kubeproxy.model.plan import Key, PortId, ServicePlan
from kubeproxy.relay.traffic import TrafficReport, minus
from kubeproxy.relay.values import Tally


class RelayFlows:
    """See `FlowWatch`: counts since the first reading.

    Attributes:
        ports: the counts.
        open: the open connections, and attempts to connect that have no answer yet.
        bytes: they are always counted.
        changed: the ports whose counts have changed since this was emptied.
        losses: no count is lost.
    """

    bytes = True
    losses = 0

    def __init__(self, families: Mapping[Family, Callable[[str], TrafficReport]]) -> None:
        """Nothing is read yet.

        Args:
            families: asks the relay of a family, see `RelayCounter`.
        """
        self._counters = {family: RelayCounter(ask) for family, ask in families.items()}
        self._before: dict[PortName, dict[Endpoint, Tally]] = {}
        self._begun: set[Family] = set()
        self.ports: dict[PortName, FlowCounts] = {}
        self.open: dict[PortName, OpenFlows] = {}
        self.changed: set[PortName] = set()

    def set(self, family: Family, key: Key, plan: ServicePlan | None) -> None:
        """A Service has this plan now; None if it is gone."""
        self._counters[family].set(key, plan)

    def read(self) -> None:
        """Asks for what has changed.

        Raises:
            SyncError: the relay is not known.
        """
        for family, counter in self._counters.items():
            counter.read()
            name = partial(_name, family)
            if family not in self._begun:
                self._begun.add(family)
                for port, endpoint in counter.changed:
                    self._before.setdefault(name(port), {})[endpoint] = counter.traffic(port)[endpoint]
            for port, endpoint in counter.changed:
                if (tally := counter.traffic(port).get(endpoint)) is not None:
                    self._take(name(port), endpoint, tally)
            counter.changed.clear()

    def poll(self) -> None:
        """See `FlowWatch`. Nothing is reported unasked."""

    def close(self) -> None:
        """See `FlowWatch`."""

    def _take(self, port: PortName, endpoint: Endpoint, tally: Tally) -> None:
        counts = self.ports.get(port)
        if counts is None:
            counts = self.ports[port] = FlowCounts()
            self.open[port] = OpenFlows(Counter(), Counter())
        since = minus(tally, self._before.get(port, {}).get(endpoint, Tally("", endpoint)))
        counts.began[endpoint] = since.connections
        counts.sent[endpoint] = since.sent
        counts.received[endpoint] = since.received
        counts.unanswered[endpoint] = since.unanswered
        counts.resets[endpoint] = since.resets
        for of_port, number in ((self.open[port].open, tally.open), (self.open[port].waiting, tally.waiting)):
            of_port[endpoint] = number
            if not number:
                del of_port[endpoint]
        self.changed.add(port)


def _name(family: Family, port: PortId) -> PortName:
    name, protocol = port
    namespace, _, service = name.partition(":")[0].partition("/")
    return PortName(family, (namespace, service), name, protocol)
