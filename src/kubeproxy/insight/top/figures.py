"""What is computed from the counts of Service ports: sums, rates that begin, and an order."""

from collections.abc import Iterable

from kubeproxy.answers.snapshot import Snapshot
from kubeproxy.api.addresses import Family
from kubeproxy.insight.top.fronts import PortName
from kubeproxy.insight.top.tally import Rates
from kubeproxy.insight.top.values import TopEndpoint, TopPort
from kubeproxy.model.plan import PortPlan


def summed(name: PortName, plan: PortPlan, endpoints: tuple[TopEndpoint, ...]) -> TopPort:
    """A port with the sums over its endpoints."""
    return TopPort(
        name=name.name.partition(":")[2],
        family=name.family,
        protocol=name.protocol,
        port=plan.port,
        connections_per_second=total(each.connections_per_second for each in endpoints),
        connections=whole(each.connections for each in endpoints),
        sent_per_second=total(each.sent_per_second for each in endpoints),
        received_per_second=total(each.received_per_second for each in endpoints),
        open=whole(each.open for each in endpoints),
        waiting=whole(each.waiting for each in endpoints),
        unanswered=whole(each.unanswered for each in endpoints),
        resets=whole(each.resets for each in endpoints),
        uneven=any(each.uneven for each in endpoints),
        endpoints=endpoints,
    )


def from_zero(at: float) -> Rates:
    """Rates of counts that were 0 at a time."""
    rates = Rates()
    rates.read({}, at)
    return rates


def equal_chances(plan: PortPlan, snapshot: Snapshot, family: Family) -> bool:
    """Whether each endpoint of a port is chosen with the same chance, by whomever."""
    node = snapshot.node(family)
    scheduler = node.ipvs.scheduler if node is not None and node.ipvs is not None else ""
    mixed = plan.uses_cluster and plan.uses_local and set(plan.cluster) != set(plan.local)
    divided = plan.cluster_distribution is not None or plan.local_distribution is not None
    return not plan.affinity and not mixed and not divided and scheduler in {"", "rr"}


def speed(rates: Rates, since: float) -> float:
    """How fast counts grow; 0 if they were read before a time: at this time all that grow were read."""
    return sum((rates.per_second or {}).values()) if rates.at >= since else 0.0


def total(values: Iterable[float | None]) -> float | None:
    """The sum of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return round(sum(known), 3) if known else None


def whole(values: Iterable[int | None]) -> int | None:
    """The same of whole numbers."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def order(port: TopPort) -> tuple[str, int, str]:
    """The order in which ports of a Service are shown."""
    return port.family, port.port, port.protocol
