"""Who owns a front that several Services name: whatever came first, the same one."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from kubeproxy.api import types
from kubeproxy.api.addresses import FAMILIES, family_of
from kubeproxy.api.rows import ServiceRow
from kubeproxy.model.node import IPVSSettings, NodeConfig
from kubeproxy.model.plan import Front, Key, LostFront, ServicePlan
from kubeproxy.model.state import State
from tests import strategies
from tests.fakes.cluster import NODE, endpoints, service

A, B, C = (("default", name) for name in "abc")
VIRTUAL = structs.replace(NODE, ipvs=IPVSSettings()).with_addresses(["192.0.2.1", "10.244.1.1"])
PORT = types.ServicePort
_HTTP = PORT(80)


def planned(*objects: types.Service | types.EndpointSlice, on: NodeConfig = NODE) -> dict[Key, ServicePlan]:
    """The plans of Services by a state that heard of them in this order."""
    state = State()
    for obj in objects:
        state.set(obj)
    return plans(state, on)


def plans(state: State, on: NodeConfig) -> dict[Key, ServicePlan]:
    """The plans of all Services."""
    found = {key: state.plan(key, on) for key in state.services}
    return {key: plan for key, plan in found.items() if plan is not None}


def in_both_orders(one: types.Service, other: types.Service, on: NodeConfig = NODE) -> dict[Key, ServicePlan]:
    """The plans of two Services, whichever came first, also if the second came to a running proxy."""
    found = planned(one, other, on=on)
    for first, second in ((one, other), (other, one)):
        assert planned(first, second, on=on) == found
        state = State()
        state.set(first)
        before = plans(state, on)
        touched = set(state.set(second))
        assert plans(state, on) == found
        assert {key for key in found if found[key] != before.get(key)} <= touched
    return found


def fronts(plan: ServicePlan) -> Iterator[Front]:
    """The fronts a plan has."""
    for port in plan.ports:
        for address in {port.cluster_ip, *port.external_ips, *port.load_balancer_ips}:
            if address:
                yield address, port.protocol, port.port
        if port.node_port:
            yield "", port.protocol, port.node_port
    if plan.health_check_port:
        yield "", "TCP", plan.health_check_port


def balanced(name: str, cluster_ip: str, *ips: str, port: PORT = _HTTP, **spec: Any) -> types.Service:
    """A Service of type LoadBalancer."""
    return service(name, cluster_ip, type="LoadBalancer", balancer=ips, ports=[port], **spec)


VICTIM = service("b", "10.96.0.2")


@pytest.mark.parametrize(
    ("thief", "lost"),
    [
        (service("a", "10.96.0.1", external_ips=("10.96.0.2",)), "external IP 10.96.0.2:80 TCP"),
        (balanced("a", "10.96.0.1", "10.96.0.2"), "load balancer IP 10.96.0.2:80 TCP"),
        (
            balanced("a", "10.96.0.1", "10.96.0.2", external_ips=("10.96.0.2",)),
            "load balancer IP 10.96.0.2:80 TCP",
        ),
    ],
)
def test_a_cluster_ip_is_the_service_s_whose_cluster_ip_it_is(thief: types.Service, lost: str) -> None:
    """CVE-2020-8554."""
    found = in_both_orders(thief, VICTIM)
    assert found[B] == planned(VICTIM)[B]
    assert [(str(front), front.owner) for front in found[A].lost] == [(lost, B)]
    assert not found[A].ports[0].external
    without = types.Service(thief.metadata, structs.replace(thief.spec, external_ips=()))
    assert structs.replace(found[A], lost=()) == planned(without)[A]


@pytest.mark.parametrize(
    ("one", "other", "lost"),
    [
        (
            service("a", "10.96.0.1", external_ips=("203.0.113.1",)),
            service("b", "10.96.0.2", external_ips=("203.0.113.1", "203.0.113.2")),
            "external IP 203.0.113.1:80 TCP",
        ),
        (
            service("a", "10.96.0.1", external_ips=("203.0.113.1",)),
            balanced("b", "10.96.0.2", "203.0.113.1"),
            "load balancer IP 203.0.113.1:80 TCP",
        ),
        (
            balanced("a", "10.96.0.1", "203.0.113.1"),
            service("b", "10.96.0.2", external_ips=("203.0.113.1",)),
            "external IP 203.0.113.1:80 TCP",
        ),
        (
            service("a", "10.96.0.1", type="NodePort", ports=[PORT(80, node_port=30080)]),
            service("b", "10.96.0.2", type="NodePort", ports=[PORT(80, node_port=30080)]),
            "node port 30080 TCP",
        ),
        (
            balanced("a", "10.96.0.1", external_traffic_policy="Local", health_check_node_port=31000),
            balanced("b", "10.96.0.2", external_traffic_policy="Local", health_check_node_port=31000),
            "health check node port 31000 TCP",
        ),
        (
            service("b", "10.96.0.1", type="NodePort", ports=[PORT(80, node_port=31000)]),
            balanced("a", "10.96.0.2", external_traffic_policy="Local", health_check_node_port=31000),
            "health check node port 31000 TCP",
        ),
        (service("a", "10.96.0.1"), service("b", "10.96.0.1"), "ClusterIP 10.96.0.1:80 TCP"),
    ],
)
def test_of_equal_claims_the_first_by_name_has_it(
    one: types.Service, other: types.Service, lost: str
) -> None:
    found = in_both_orders(one, other)
    owner, loser = ((s.metadata.namespace, s.metadata.name) for s in (one, other))
    assert found[owner] == planned(one)[owner]
    assert [(str(front), front.owner) for front in found[loser].lost] == [(lost, owner)]


def test_another_protocol_or_port_is_another_front() -> None:
    ports = [PORT(80, "a", node_port=30080), PORT(80, "b", "UDP", 30080), PORT(81, "c")]
    found = in_both_orders(
        service("a", "10.96.0.1", external_ips=("203.0.113.1",), type="NodePort", ports=ports[:1]),
        service("b", "10.96.0.2", external_ips=("203.0.113.1",), type="NodePort", ports=ports[1:]),
    )
    assert not found[A].lost
    assert not found[B].lost


def test_a_port_without_any_front_is_left_out() -> None:
    ports = [PORT(80, "a"), PORT(81, "b")]
    found = planned(
        service("a", "10.96.0.1"),
        service("b", "10.96.0.1", ports=ports, internal_traffic_policy="Local"),
        service("c", "10.96.0.1", external_ips=("203.0.113.1",), internal_traffic_policy="Local"),
        endpoints("c", "10.244.1.1", local=["10.244.1.1"]),
    )
    assert [port.name for port in found[B].ports] == ["default/b:b"]
    (port,) = found[C].ports
    assert (port.cluster_ip, port.external_ips, port.internal_local) == ("", ("203.0.113.1",), False)
    assert not port.uses_local


@pytest.mark.parametrize("on", [NODE, VIRTUAL])
def test_an_address_of_the_node_has_precedence_over_a_node_port_there(on: NodeConfig) -> None:
    at_node = service("b", "10.96.0.1", external_ips=("192.0.2.1",), ports=[PORT(30080)])
    node_port = service("a", "10.96.0.2", type="NodePort", ports=[PORT(80, node_port=30080)])
    found = in_both_orders(at_node, node_port, on)
    assert found[B] == planned(at_node, on=on)[B]
    assert found[A].ports[0].node_port == 30080
    assert found[A].ports[0].node_port_except == ("192.0.2.1",)
    assert found[A].lost == (LostFront("node port", "192.0.2.1", "TCP", 30080, B),)
    elsewhere = service("b", "10.96.0.1", external_ips=("203.0.113.1",), ports=[PORT(30080)])
    assert planned(elsewhere, node_port, on=on)[A] == planned(node_port, on=on)[A]


def test_what_a_service_names_twice_it_has_once() -> None:
    port = PORT(30080, node_port=30080)
    twice = balanced(
        "a",
        "10.96.0.1",
        "203.0.113.1",
        "203.0.113.1",
        "10.96.0.1",
        port=port,
        external_ips=("10.96.0.1", "203.0.113.1", "203.0.113.2", "203.0.113.2", "192.0.2.1"),
        external_traffic_policy="Local",
        health_check_node_port=30080,
    )
    plan = planned(twice)[A]
    (only,) = plan.ports
    assert (only.cluster_ip, only.load_balancer_ips) == ("10.96.0.1", ("203.0.113.1",))
    assert only.external_ips == ("203.0.113.1", "203.0.113.2", "192.0.2.1")
    assert only.node_port_except == ("192.0.2.1",)
    assert plan.health_check_port == 0
    assert [(str(front), front.owner) for front in plan.lost] == [("health check node port 30080 TCP", A)]


def test_external_ips_that_are_not_honoured_claim_nothing() -> None:
    first, second = (
        service("a", "10.96.0.1", external_ips=("203.0.113.1",)),
        balanced("b", "10.96.0.2", "203.0.113.1"),
    )
    assert planned(first, second)[B].lost
    off = structs.replace(NODE, external_ips=False)
    assert planned(first, second, on=off)[B] == planned(second, on=off)[B]


def test_the_next_one_has_it_when_the_owner_goes() -> None:
    state = State()
    for name, ip in (("c", "10.96.0.3"), ("a", "10.96.0.1"), ("b", "10.96.0.2")):
        state.set(service(name, ip, external_ips=("203.0.113.1",)))

    def owners() -> list[Key]:
        return [key for key, plan in plans(state, NODE).items() if plan.ports[0].external_ips]

    assert owners() == [A]
    assert set(state.gone("Service", *A)) == {A, B, C}
    assert owners() == [B]
    assert set(state.set(service("c", "203.0.113.1"))) == {B, C}, "it is the ClusterIP of that one now"
    assert not owners()
    assert set(state.gone("Service", *B)) == {B}, "it had nothing that others lost"
    assert set(state.set(service("c", "10.96.0.3", external_ips=("203.0.113.1",)))) == {C}
    assert owners() == [C]


def test_a_change_that_leaves_the_owner_touches_no_rival() -> None:
    state = State()
    state.set(service("a", "10.96.0.1", external_ips=("203.0.113.1",)))
    state.set(service("b", "10.96.0.2", external_ips=("203.0.113.1",)))
    plans(state, NODE)
    assert set(state.set(service("b", "10.96.0.2", external_ips=("203.0.113.1", "203.0.113.2")))) == {B}
    assert set(state.set(service("c", "10.96.0.3", external_ips=("203.0.113.1",)))) == {C}
    assert set(state.gone("Service", *C)) == {C}
    policy = service("a", "10.96.0.1", external_ips=("203.0.113.1",), internal_traffic_policy="Local")
    assert set(state.set(policy)) == {A}


nodes = (
    st.sampled_from(FAMILIES)
    .flatmap(strategies.nodes)
    .flatmap(
        lambda node: st.sampled_from(
            [node, structs.replace(node, ipvs=IPVSSettings()).with_addresses([node.address])]
        )
    )
)


@given(st.one_of(strategies.histories(), strategies.contests()), nodes)
def test_every_front_has_one_owner_and_the_right_one(
    history: list[list[strategies.Event]], node: NodeConfig
) -> None:
    """After each batch: plans that were not touched stay, no front is in two, and those that are named are in one."""
    state = State()
    before: dict[Key, ServicePlan] = {}
    for batch in history:
        touched = {key for event in batch for key in strategies.tell(state, event)}
        now = plans(state, node)
        if before:
            assert {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)} <= touched
        before = now
        has = [front for plan in now.values() for front in fronts(plan)]
        assert len(has) == len(set(has))
        wanted = dict(expected(state.services.values(), node))
        assert {front: key for key, plan in now.items() for front in fronts(plan)} == wanted
        for key, plan in now.items():
            for lost in plan.lost:
                assert lost.owner != key or lost.kind == "health check node port"
                assert wanted[lost.front] == lost.owner
    assert plans(reversed_state(state), node) == before


def expected(rows: Iterable[ServiceRow], node: NodeConfig) -> Iterator[tuple[Front, Key]]:
    """Who should own what, from all there is at once."""
    claims: dict[Front, list[tuple[int, Key]]] = {}
    for row in rows:
        ips = [ip for ip in row.cluster_ips if family_of(ip) == node.family]
        if not ips:
            continue
        named = [(0, ip) for ip in ips]
        named += [
            (1, ip) for ip in (*row.external_ips, *row.load_balancer_ips) if family_of(ip) == node.family
        ]
        key = row.namespace, row.name
        for port in row.ports:
            for rank, ip in named:
                claims.setdefault((ip, port.protocol, port.port), []).append((rank, key))
            if port.node_port:
                claims.setdefault(("", port.protocol, port.node_port), []).append((1, key))
        if row.health_check_port:
            claims.setdefault(("", "TCP", row.health_check_port), []).append((2, key))
    return ((front, min(found)[1]) for front, found in claims.items())


def reversed_state(state: State) -> State:
    """The same cluster, with its Services heard of in the reverse order by a proxy that runs."""
    other = State()
    other.plan(A, NODE)
    other.services = {}
    for key in sorted(state.services, reverse=True):
        other._set_service(("Service", *key), state.services[key], exists=True)
    other._slices = state._slices
    return other
