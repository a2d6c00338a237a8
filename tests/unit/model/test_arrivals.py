"""Which TCP connections are those of clients who came before their Service."""

from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.api.addresses import pack
from kubeproxy.model.arrivals import TCP, Arrivals, have_come
from kubeproxy.model.flows import MOST_LISTINGS, Listing, Place, fronts, place
from kubeproxy.model.plan import PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint

HERE = pack("192.0.2.1")
A, B, C = (place(f"10.244.1.{i}", 8080) for i in (1, 2, 3))
CLUSTER, EXTERNAL, BALANCER = (place(a, 80) for a in ("10.96.0.10", "203.0.113.10", "203.0.113.20"))
NODE_PORT = place("192.0.2.1", 30080)


class Flow(NamedTuple):
    destination: Place
    source: Place
    unanswered: bool = True
    zone: int = 0
    protocol: int = TCP


def port(*endpoints: int, **fields: Any) -> PortPlan:
    """A port of shop/web with endpoints 10.244.1.N:8080, and every kind of front."""
    backends = tuple(Endpoint(f"10.244.1.{i}", 8080) for i in endpoints)
    defaults = {"cluster_ip": "10.96.0.10", "node_port": 30080, "external_ips": ("203.0.113.10",)}
    defaults |= {"load_balancer_ips": ("203.0.113.20",), "cluster": backends}
    return PortPlan("shop/web", fields.pop("protocol", "TCP"), 80, **{**defaults, **fields})


def service(*ports: PortPlan) -> ServicePlan:
    return ServicePlan("shop", "web", ports)


def arrived(*ports: PortPlan) -> Arrivals:
    arrivals = Arrivals()
    arrivals.add(ports)
    return arrivals


def local(address: bytes) -> bool:
    return address == HERE


@pytest.mark.parametrize("front", [CLUSTER, EXTERNAL, BALANCER, NODE_PORT])
def test_a_client_who_came_before_the_front_waits(front: Place) -> None:
    assert arrived(port(1, 2)).is_waiting(Flow(front, front), local)
    assert arrived(port(1, 2)).is_waiting(Flow(front, C), local), "it leads to an endpoint that is none"


@pytest.mark.parametrize(
    "flow",
    [
        Flow(CLUSTER, CLUSTER, unanswered=False),
        Flow(CLUSTER, A),
        Flow(NODE_PORT, B),
        Flow(CLUSTER, C, unanswered=False),
        Flow(CLUSTER, CLUSTER, zone=1),
        Flow(place("10.96.0.11", 80), place("10.96.0.11", 80)),
        Flow(place("10.96.0.10", 81), place("10.96.0.10", 81)),
        Flow(place("192.0.2.2", 30080), place("192.0.2.2", 30080)),
        Flow(A, A),
    ],
)
def test_no_other_connection_is_touched(flow: Flow) -> None:
    assert not arrived(port(1, 2)).is_waiting(flow, local)


def test_what_leads_to_an_endpoint_of_any_service_at_a_front_is_left_alone() -> None:
    arrivals = arrived(port(1), port(2))
    assert not arrivals.is_waiting(Flow(CLUSTER, A), local)
    assert not arrivals.is_waiting(Flow(CLUSTER, B), local)
    assert arrivals.is_waiting(Flow(CLUSTER, C), local)


def test_local_endpoints_count() -> None:
    arrivals = arrived(port(cluster=(), local=(Endpoint("10.244.1.1", 8080),)))
    assert not arrivals.is_waiting(Flow(CLUSTER, A), local)
    assert arrivals.is_waiting(Flow(CLUSTER, CLUSTER), local)


@pytest.mark.parametrize(
    ("before", "after", "came"),
    [
        (None, port(1), True),
        (None, port(), False),
        (None, port(1, protocol="UDP"), False),
        (port(), port(1), True),
        (port(1), port(1), False),
        (port(1), port(2, 3), False),
        (port(1), port(), False),
        (port(1, protocol="UDP"), port(1), True),
        (port(1), port(1, external_ips=(), load_balancer_ips=("203.0.113.10",)), False),
        (port(1), port(1, external_ips=("203.0.113.10", "203.0.113.11")), True),
        (port(1), port(1, load_balancer_ips=("203.0.113.21",)), True),
        (port(1), port(1, node_port=0), True),
        (port(1), port(1, cluster_ip="10.96.0.11"), True),
        (port(cluster=(), local=(Endpoint("10.244.1.1", 8080),)), port(1), False),
    ],
)
def test_what_comes(before: PortPlan | None, after: PortPlan, *, came: bool) -> None:
    had = service(before) if before else None
    assert have_come(had, service(after)) == ([after] if came else [])


def test_few_fronts_are_listed_one_by_one() -> None:
    assert set(arrived(port(1)).listings()) == {
        Listing(TCP, destination=front) for front in (CLUSTER, EXTERNAL, BALANCER, place("", 30080))
    }
    many = [port(1, cluster_ip=f"10.96.0.{i}") for i in range(MOST_LISTINGS)]
    assert list(arrived(*many).listings()) == [Listing(TCP)]


def test_what_was_looked_at_is_forgotten() -> None:
    arrivals = arrived(port(1))
    arrivals.settled()
    assert list(arrivals.listings()) == []
    assert not arrivals.is_waiting(Flow(CLUSTER, CLUSTER), local)


_ADDRESSES = (
    "10.96.0.10",
    "10.96.0.11",
    "203.0.113.10",
    "203.0.113.20",
    "192.0.2.1",
    "192.0.2.2",
    "10.244.1.1",
)
_PLACES = st.builds(place, st.sampled_from(_ADDRESSES), st.sampled_from((80, 81, 30080, 8080)))
_FLOWS = st.builds(
    Flow, _PLACES, st.one_of(_PLACES, st.sampled_from((A, B, C))), st.booleans(), st.integers(0, 1)
)


@given(st.lists(st.sets(st.integers(1, 3)), max_size=3), _FLOWS)
def test_only_unanswered_flows_to_a_front_and_to_no_endpoint_wait(
    endpoints: list[set[int]], flow: Flow
) -> None:
    ports = [port(*some) for some in endpoints]
    waiting = arrived(*ports).is_waiting(flow, local)
    places = {front for p in ports for front in fronts(p)}
    at_front = flow.destination in places or (
        flow.destination[-2:] in places and local(flow.destination[:-2])
    )
    served = any(flow.source == place(b.address, b.port) for p in ports for b in p.cluster)
    foreign = flow.zone != 0 and flow.source == flow.destination
    assert waiting == (at_front and flow.unanswered and not served and not foreign)
