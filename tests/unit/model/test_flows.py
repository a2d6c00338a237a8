"""Which flows are stale, and which ones a change asks to be looked at."""

from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.api.addresses import pack
from kubeproxy.api.rows import Protocol
from kubeproxy.model.flows import MOST_LISTINGS, Fronts, Listing, Place, place
from kubeproxy.model.plan import PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint

UDP, SCTP, TCP = 17, 132, 6
DNS, WEB = ("shop", "dns"), ("shop", "web")
HERE = pack("192.0.2.1")
A, B, C = (place(f"10.244.1.{i}", 5353) for i in (1, 2, 3))


class Flow(NamedTuple):
    protocol: int
    destination: Place
    source: Place
    zone: int = 0


def port(*endpoints: int, name: str = "dns", protocol: Protocol = "UDP", **fields: Any) -> PortPlan:
    """A port of shop/dns with endpoints 10.244.1.N:5353."""
    backends = tuple(Endpoint(f"10.244.1.{i}", 5353) for i in endpoints)
    defaults = {"cluster_ip": "10.96.0.10", "port": 53, "cluster": backends, "serving": backends}
    return PortPlan(f"shop/{name}", protocol, **{**defaults, **fields})


def service(*ports: PortPlan, name: str = "dns") -> ServicePlan:
    return ServicePlan("shop", name, ports)


def looked_at(fronts: Fronts) -> set[Listing]:
    """Takes all listings."""
    return set(iter(fronts.next_listing, None))


def started(*ports: PortPlan) -> Fronts:
    """Nothing is left to be done."""
    fronts = Fronts()
    fronts.set(DNS, service(*ports))
    looked_at(fronts)
    fronts.settled()
    return fronts


def stale(fronts: Fronts, destination: Place, source: Place | None = None, protocol=UDP, zone=0) -> bool:
    """Whether a flow is; without a source it was not translated."""
    return fronts.is_stale(Flow(protocol, destination, source or destination, zone), lambda a: a == HERE)


CLUSTER = place("10.96.0.10", 53)
EVERYWHERE = port(
    1, 2, node_port=30053, external_ips=("192.0.2.99",), load_balancer_ips=("203.0.113.1", "203.0.113.2")
)
FRONTS = [
    CLUSTER,
    place("192.0.2.99", 53),
    place("203.0.113.1", 53),
    place("203.0.113.2", 53),
    place("192.0.2.1", 30053),
]


class TestStale:
    @pytest.mark.parametrize("front", FRONTS)
    def test_at_every_front(self, front):
        fronts = started(EVERYWHERE)
        assert not stale(fronts, front, A)
        assert not stale(fronts, front, B)
        assert stale(fronts, front, C)
        assert stale(fronts, front), "it was not translated"

    @pytest.mark.parametrize(
        "other",
        [
            place("10.96.0.10", 54),
            place("10.96.0.11", 53),
            place("192.0.2.1", 53),
            place("192.0.2.2", 30053),
            place("10.96.0.10", 30053),
            place("198.51.100.7", 30053),
        ],
    )
    def test_others_are_nobody_s_business(self, other):
        fronts = started(EVERYWHERE)
        assert not stale(fronts, other)
        assert not stale(fronts, other, C)

    def test_protocols_are_apart(self):
        fronts = started(port(1), port(2, name="sig", protocol="SCTP"))
        assert [stale(fronts, CLUSTER, source) for source in (A, B)] == [False, True]
        assert [stale(fronts, CLUSTER, source, SCTP) for source in (A, B)] == [True, False]
        assert not stale(fronts, CLUSTER, C, TCP)

    def test_tcp_has_no_fronts(self):
        fronts = Fronts()
        fronts.set(DNS, service(port(1, protocol="TCP", serving=())))
        assert looked_at(fronts) == set()
        assert list(fronts.services) == []
        assert not stale(fronts, CLUSTER, B, TCP)

    def test_an_endpoint_that_only_serves_until_it_ends_keeps_its_flows(self):
        draining = (Endpoint("10.244.1.1", 5353), Endpoint("10.244.1.2", 5353))
        fronts = started(port(1, serving=draining))
        assert not stale(fronts, CLUSTER, B)

    def test_another_port_of_an_endpoint(self):
        assert stale(started(port(1)), CLUSTER, place("10.244.1.1", 5354))

    def test_without_endpoints(self):
        fronts = started(port())
        assert stale(fronts, CLUSTER, A)
        assert not stale(fronts, CLUSTER), "nobody would answer anyway"

    def test_an_endpoint_at_its_front(self):
        """A Pod in the node's network that listens on the very node port."""
        backend = (Endpoint("192.0.2.1", 30053),)
        fronts = started(port(node_port=30053, serving=backend))
        assert not stale(fronts, place("192.0.2.1", 30053))

    def test_in_a_zone(self):
        """Open vSwitch sees the same packets, and knows them by where they went before we translated them."""
        fronts = started(EVERYWHERE)
        assert not stale(fronts, CLUSTER, zone=7)
        assert stale(fronts, CLUSTER, C, zone=7)
        assert not stale(fronts, CLUSTER, A, zone=7)

    def test_ipv6(self):
        backends = (Endpoint("fd00::1", 53),)
        fronts = started(port(cluster_ip="fd00:10::1", serving=backends))
        assert not stale(fronts, place("fd00:10::1", 53), place("fd00::1", 53))
        assert stale(fronts, place("fd00:10::1", 53), place("fd00::2", 53))

    def test_a_front_of_two_services(self):
        fronts = started(port(1, external_ips=("192.0.2.99",)))
        fronts.set(
            WEB,
            service(port(2, name="web", cluster_ip="10.96.0.20", external_ips=("192.0.2.99",)), name="web"),
        )
        both = place("192.0.2.99", 53)
        assert [stale(fronts, both, source) for source in (A, B, C)] == [False, False, True]
        fronts.set(DNS, None)
        assert [stale(fronts, both, source) for source in (A, B, C)] == [True, False, True]
        assert [stale(fronts, CLUSTER, source) for source in (A, B, C)] == [True, False, False]


class TestGone:
    @pytest.mark.parametrize("front", FRONTS)
    def test_flows_of_a_deleted_service(self, front):
        fronts = started(EVERYWHERE)
        fronts.set(DNS, None)
        assert stale(fronts, front, A)
        assert not stale(fronts, front, C), "the work of somebody else"
        assert not stale(fronts, front), "the address may be a real one"
        looked_at(fronts)
        fronts.settled()
        assert not stale(fronts, front, A), "it is no front any more"

    def test_a_service_without_endpoints_leaves_nothing(self):
        fronts = started(port())
        fronts.set(DNS, None)
        assert looked_at(fronts) == set()

    def test_a_node_port_that_moved(self):
        fronts = started(port(1, node_port=30053))
        fronts.set(DNS, service(port(1, node_port=30054)))
        old, new = place("192.0.2.1", 30053), place("192.0.2.1", 30054)
        assert looked_at(fronts) == {Listing(UDP, source=A), Listing(UDP, place("", 30054))}
        assert stale(fronts, old, A)
        assert not stale(fronts, new, A)
        assert stale(fronts, new), "spoken to before it was a node port"

    def test_a_node_port_that_another_service_took(self):
        fronts = started(port(1, node_port=30053))
        fronts.set(DNS, service(port(1)))
        fronts.set(WEB, service(port(2, name="web", cluster_ip="10.96.0.20", node_port=30053), name="web"))
        at = place("192.0.2.1", 30053)
        assert [stale(fronts, at, source) for source in (A, B, C)] == [True, False, True]
        assert looked_at(fronts) >= {Listing(UDP, source=A), Listing(UDP, place("", 30053))}

    def test_until_it_was_looked_at_it_is_known(self):
        """An address that went and another change before anybody could look."""
        fronts = started(port(1, external_ips=("192.0.2.99",)))
        fronts.set(DNS, service(port(2)))
        fronts.set(DNS, service(port(3)))
        assert stale(fronts, place("192.0.2.99", 53), A)


class TestLookedAt:
    def test_what_is_told_again_asks_for_nothing(self):
        fronts = started(EVERYWHERE)
        fronts.set(DNS, service(EVERYWHERE))
        assert looked_at(fronts) == set()

    def test_an_endpoint_more_asks_for_nothing(self):
        fronts = started(port(1))
        fronts.set(DNS, service(port(1, 2)))
        assert looked_at(fronts) == set()

    def test_the_first_endpoint(self):
        """Clients may have been talking to a front that led nowhere."""
        fronts = started(port(node_port=30053))
        fronts.set(DNS, service(port(1, node_port=30053)))
        assert looked_at(fronts) == {Listing(UDP, CLUSTER), Listing(UDP, place("", 30053))}

    def test_one_endpoint_less_of_many_fronts(self):
        fronts = started(EVERYWHERE)
        fronts.set(DNS, service(port(1, **_fields(EVERYWHERE))))
        assert looked_at(fronts) == {Listing(UDP, source=B)}

    def test_some_endpoints_less_of_one_front(self):
        """It may be the cluster's DNS, and all flows there are."""
        fronts = started(port(1, 2, 3))
        fronts.set(DNS, service(port(1)))
        assert looked_at(fronts) == {Listing(UDP, source=B), Listing(UDP, source=C)}

    def test_many_endpoints_less_of_one_front(self):
        fronts = started(port(1, 2, 3, 4, 5, 6))
        fronts.set(DNS, service(port(1)))
        assert looked_at(fronts) == {Listing(UDP, CLUSTER)}

    def test_the_last_endpoint(self):
        fronts = started(EVERYWHERE)
        fronts.set(DNS, service(port(**_fields(EVERYWHERE))))
        assert looked_at(fronts) == {Listing(UDP, source=A), Listing(UDP, source=B)}

    def test_the_service_goes_after_its_last_endpoint(self):
        """Both before the flows are looked at."""
        fronts = started(port(1))
        fronts.set(DNS, service(port()))
        fronts.set(DNS, None)
        assert looked_at(fronts) == {Listing(UDP, source=A)}
        assert fronts.is_stale(Flow(UDP, CLUSTER, A), HERE.__eq__)

    def test_a_front_less(self):
        fronts = started(port(*range(1, 6), external_ips=("192.0.2.99",)))
        fronts.set(DNS, service(port(*range(1, 6))))
        assert looked_at(fronts) == {Listing(UDP, place("192.0.2.99", 53))}

    def test_many_of_them_are_one_list(self):
        fronts = started(port(*range(1, 101), node_port=30053))
        for i in range(MOST_LISTINGS + 1):
            fronts.set(("shop", f"s{i}"), service(port(1, cluster_ip=f"10.96.1.{i}"), name=f"s{i}"))
        fronts.set(WEB, service(port(1, name="sig", protocol="SCTP"), name="web"))
        assert looked_at(fronts) == {Listing(UDP), Listing(SCTP, CLUSTER)}

    def test_all(self):
        fronts = started(port(1), port(2, name="sig", protocol="SCTP"))
        fronts.set(DNS, service(port(2), port(2, name="sig", protocol="SCTP")))
        fronts.look_at_all()
        assert looked_at(fronts) == {Listing(UDP), Listing(SCTP)}
        fronts = started(port(1, protocol="TCP", serving=()))
        fronts.look_at_all()
        assert looked_at(fronts) == set()


def _fields(port: PortPlan) -> dict[str, Any]:
    return {name: getattr(port, name) for name in ("node_port", "external_ips", "load_balancer_ips")}


# Few numbers, so that Services meet at fronts and endpoints.
_PORTS = st.builds(
    lambda ip, number, node_port, external, endpoints, protocol: port(
        *sorted(endpoints),
        name=f"{number}{protocol}",
        protocol=protocol,
        cluster_ip=f"10.96.0.{ip}",
        port=number,
        node_port=node_port,
        external_ips=tuple(f"192.0.2.{e}" for e in sorted(external)),
    ),
    st.integers(1, 3),
    st.integers(53, 54),
    st.sampled_from([0, 30053, 30054]),
    st.sets(st.integers(8, 9)),
    st.sets(st.integers(1, 4)),
    st.sampled_from(["UDP", "SCTP"]),
)
_PLANS = st.none() | st.lists(_PORTS, max_size=2, unique_by=lambda p: p.name).map(
    lambda ports: service(*ports)
)
_STEPS = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), _PLANS, st.booleans()), max_size=12)


def _every_flow() -> list[Flow]:
    destinations = [place(f"10.96.0.{i}", p) for i in (1, 2, 3) for p in (53, 54)]
    destinations += [place(f"192.0.2.{i}", p) for i in (8, 9) for p in (53, 54)]
    destinations += [place(f"192.0.2.{i}", p) for i in (1, 2) for p in (30053, 30054)]
    sources = [place(f"10.244.1.{i}", 5353) for i in range(1, 6)]
    return [Flow(p, d, s) for p in (UDP, SCTP) for d in destinations for s in (d, *sources)]


EVERY_FLOW = _every_flow()


def _possible(plans: dict[str, ServicePlan | None], flow: Flow) -> bool:
    """Whether packets can make such a flow while these Services are served."""
    owners = [
        p
        for plan in plans.values()
        for p in (plan.ports if plan else ())
        if {"UDP": UDP, "SCTP": SCTP}[p.protocol] == flow.protocol and flow.destination in _places(p)
    ]
    served = {place(b.address, b.port) for p in owners for b in p.serving}
    return flow.source in served if served else flow.source == flow.destination


def _places(port: PortPlan) -> set[Place]:
    places = {place(ip, port.port) for ip in (port.cluster_ip, *port.external_ips)}
    return places | {place("192.0.2.1", port.node_port)} if port.node_port else places


@given(_STEPS)
def test_after_a_change_every_flow_that_became_stale_is_looked_at(steps):
    """Clients speak all the time, to all fronts, and reach all endpoints; the table is cleaned now and then."""
    fronts = Fronts()
    plans: dict[str, ServicePlan | None] = {}
    table = {flow for flow in EVERY_FLOW if _possible(plans, flow)}
    for name, plan, cleaned in steps:
        plans[name] = plan
        fronts.set(("shop", name), plan)
        present = {flow for flow in EVERY_FLOW if _possible(plans, flow)}
        assert not any(fronts.is_stale(flow, HERE.__eq__) for flow in present)
        table |= present
        if cleaned:
            listings = looked_at(fronts)
            for flow in [flow for flow in table if fronts.is_stale(flow, HERE.__eq__)]:
                assert any(_lists(listing, flow) for listing in listings), flow
                table.remove(flow)
            fronts.settled()
            left = {flow for flow in table - present if flow.source != flow.destination}
            assert not {flow.destination for flow in left} & {
                d for p in plans.values() if p for q in p.ports for d in _places(q)
            }


@given(_STEPS)
def test_only_the_last_word_counts(steps):
    """However it came to it, what is stale is what a start with the same Services finds stale."""
    fronts, last = Fronts(), {}
    for name, plan, _ in steps:
        fronts.set(("shop", name), plan)
        last[name] = plan
    fronts.settled()
    fresh = Fronts()
    for name, plan in last.items():
        fresh.set(("shop", name), plan)
    fresh.settled()
    assert set(fronts.services) == set(fresh.services)
    for flow in EVERY_FLOW:
        assert fronts.is_stale(flow, HERE.__eq__) == fresh.is_stale(flow, HERE.__eq__)


def _lists(listing: Listing, flow: Flow) -> bool:
    return (
        listing.protocol == flow.protocol
        and listing.destination in {b"", flow.destination, flow.destination[-2:]}
        and listing.source in {b"", flow.source}
    )
