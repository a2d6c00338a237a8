"""The backends that have a relay: led by rules, listening themselves, and localhost beside another mode."""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kubeproxy.api.addresses import FAMILIES
from kubeproxy.backends.base import Change, Failures, StaleError, SyncError
from kubeproxy.backends.localhost import Localhost
from kubeproxy.backends.userspace.driver import Led
from kubeproxy.backends.userspace.listening import Listening
from kubeproxy.figures import Histogram
from kubeproxy.model.node import LocalTraffic, NodeConfig
from kubeproxy.model.plan import Key, PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint
from tests.fakes.relay import FakeRelay

HERE = "127.0.0.1"
NODE = NodeConfig(name="here", address=HERE, local_traffic=LocalTraffic("range", "10.244.1.0/24"))
E1, E2, FAR = (
    Endpoint("10.244.1.11", 8080, local=True),
    Endpoint("10.244.1.12", 8080, local=True),
    Endpoint("10.244.2.21", 8080),
)


class Rules:
    """The backend behind: it remembers the plans it was given."""

    def __init__(self) -> None:
        self.plans: dict[Key, ServicePlan] = {}
        self.calls: list[Sequence[Change]] = []
        self.refuses: Failures = {}
        self.fails = False
        self.node = NODE

    async def load(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        if self.fails:
            raise SyncError("no")
        self.node = node
        self.calls.append([Change(key, None, plan) for key, plan in plans.items()])
        self.plans = dict(plans)
        return self.refuses

    async def apply(self, node: NodeConfig, changes: Sequence[Change]) -> Failures:
        if self.fails:
            raise SyncError("no")
        self.node = node
        self.calls.append(changes)
        for change in changes:
            assert self.plans.get(change.key) == change.before
            if change.after is None:
                self.plans.pop(change.key, None)
            else:
                self.plans[change.key] = change.after
        return self.refuses

    async def intact(self) -> bool:
        return True

    def watch(self, disturbed: Callable[[str], None]) -> bool:
        disturbed("watched")
        return False

    async def close(self) -> None:
        pass


@pytest.fixture
def relay() -> Iterator[FakeRelay]:
    relay = FakeRelay()
    yield relay
    relay.stop()


def plan(*backends: Endpoint, name: str = "web", **settings: Any) -> ServicePlan:
    port = PortPlan(
        name=f"default/{name}",
        protocol=settings.pop("protocol", "TCP"),
        port=settings.pop("port", 80),
        cluster_ip=settings.pop("cluster_ip", "10.96.0.10"),
        cluster=backends,
        local=tuple(b for b in backends if b.local) if settings.get("external_local") else (),
        any=bool(backends),
        **settings,
    )
    return ServicePlan("default", name, (port,))


def sync(
    backend: Any,
    *changes: tuple[ServicePlan | None, ServicePlan | None],
    full: bool = False,
    node: NodeConfig = NODE,
) -> Failures:
    told = [Change((before or after).key, before, after) for before, after in changes if before or after]  # type: ignore[union-attr]
    if full:
        return asyncio.run(backend.load(node, {c.key: c.after for c in told if c.after is not None}))
    return asyncio.run(backend.apply(node, told))


def led(relay: FakeRelay) -> tuple[Led, Rules]:
    rules = Rules()
    return Led(rules, relay, lambda node: node.address), rules


def test_rules_lead_to_a_socket_that_knows_the_endpoints(relay: FakeRelay) -> None:
    backend, rules = led(relay)
    wanted = plan(E1, FAR, affinity=60, node_port=30080)
    assert sync(backend, (None, wanted), full=True) == {}
    ((address, number, udp), listener) = next(iter(relay.open_now.items()))
    (port,) = rules.plans["default", "web"].ports
    assert port.cluster == (Endpoint(HERE, number),)
    assert (address, udp, port.affinity, port.node_port) == (HERE, False, 0, 30080)
    assert listener.choices[0].targets == ((E1.address, 8080), (FAR.address, 8080))
    assert listener.affinity == 60
    assert listener.translated
    assert rules.node.relayed


def test_a_full_sync_waits_until_the_relay_accepts_connections(relay: FakeRelay) -> None:
    backend, rules = led(relay)
    wanted = plan(E1)
    relay.accepts = False
    with pytest.raises(SyncError, match="does not accept"):
        sync(backend, (None, wanted), full=True)
    relay.accepts = True
    assert sync(backend, (None, wanted), full=True) == {}
    assert relay.settled == [1, 1]
    relay.accepts = False
    assert sync(backend, (wanted, plan(E1, FAR)), full=False) == {}, "a process that runs is not waited for"
    assert rules.plans
    assert sync(backend, (None, wanted), full=True) == {}, "nor one that was ready and hangs now"
    assert relay.settled == [1, 1]


def test_a_change_of_endpoints_is_none_for_the_rules(relay: FakeRelay) -> None:
    backend, rules = led(relay)
    before, after = plan(E1), plan(E1, E2)
    sync(backend, (None, before), full=True)
    sync(backend, (before, after))
    assert rules.calls[1:] == [[]]
    (listener,) = relay.open_now.values()
    assert len(listener.choices[0].targets) == 2


def test_policies_have_sockets_of_their_own(relay: FakeRelay) -> None:
    backend, rules = led(relay)
    before, after = (
        plan(E1, FAR, node_port=30080, external_local=True),
        plan(FAR, node_port=30080, external_local=True),
    )
    sync(backend, (None, before), full=True)
    (port,) = rules.plans["default", "web"].ports
    assert len(relay.open_now) == 2
    assert relay.open_now[HERE, port.local[0].port, False].choices[0].targets == ((E1.address, 8080),)
    sync(backend, (before, after))
    (port,) = rules.plans["default", "web"].ports
    assert port.local == ()
    assert [key[1] for key in relay.open_now] == [port.cluster[0].port]
    sync(backend, (after, None))
    assert relay.open_now == {}


def test_sctp_is_the_kernel_s(relay: FakeRelay) -> None:
    backend, rules = led(relay)
    wanted = plan(E1, protocol="SCTP", affinity=60)
    sync(backend, (None, wanted), full=True)
    assert rules.plans["default", "web"] == wanted
    assert relay.open_now == {}


def test_udp_flows_are_known_by_the_relay_s_socket(relay: FakeRelay) -> None:
    backend, _ = led(relay)
    wanted = plan(E1, protocol="UDP", serving=(E1, E2))
    sync(backend, (None, wanted), full=True)
    (port,) = backend.in_kernel(wanted).ports
    assert port.serving == port.cluster
    (listener,) = relay.open_now.values()
    assert listener.kept == ((E1.address, 8080), (E2.address, 8080))


def test_without_a_free_port_one_service_is_refused_and_the_others_are_led(relay: FakeRelay) -> None:
    backend, rules = led(relay)
    with socket.create_server((HERE, 0)) as taken:
        port = taken.getsockname()[1]
        node = replace(NODE, relay_ports=(port, port))
        failures = sync(
            backend, (None, plan(E1)), (None, plan(E1, protocol="UDP", name="dns")), full=True, node=node
        )
        assert list(failures) == [("default", "web")]
        assert "no socket on 127.0.0.1 for default/web" in failures["default", "web"]
        assert ("default", "web") not in rules.plans
        assert rules.plans["default", "dns"].ports[0].cluster == (Endpoint(HERE, port),)
        with pytest.raises(StaleError, match="no socket"):
            sync(backend, (None, plan(E1, name="late")), node=node)


def test_sockets_go_after_the_rules_and_only_if_these_went(relay: FakeRelay) -> None:
    backend, rules = led(relay)
    wanted = plan(E1)
    sync(backend, (None, wanted), full=True)
    rules.fails = True
    with pytest.raises(SyncError):
        sync(backend, (wanted, None))
    assert len(relay.open_now) == 1
    rules.fails = False
    sync(backend, full=True)
    assert relay.open_now == {}


def test_a_node_with_another_address_has_other_sockets(relay: FakeRelay) -> None:
    backend, rules = led(relay)
    sync(backend, (None, plan(E1)), full=True)
    sync(backend, (None, plan(E1)), full=True, node=replace(NODE, address="127.0.0.2"))
    assert [key[0] for key in relay.open_now] == ["127.0.0.2"]
    assert rules.plans["default", "web"].ports[0].cluster[0].address == "127.0.0.2"


_plans = st.builds(
    lambda name, backends, protocol, local, node_port: plan(
        *backends, name=name, protocol=protocol, external_local=local, node_port=node_port
    ),
    st.sampled_from(["web", "db"]),
    st.lists(st.sampled_from([E1, E2, FAR]), unique=True).map(tuple),
    st.sampled_from(["TCP", "UDP", "SCTP"]),
    st.booleans(),
    st.sampled_from([0, 30080]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(_plans, st.booleans()), max_size=8))
def test_differences_lead_where_a_full_sync_leads(steps: list[tuple[ServicePlan, bool]]) -> None:
    """Whatever the way: every socket named is open with the plan's endpoints, and no other one is."""
    relay = FakeRelay()
    backend, rules = led(relay)
    sync(backend, full=True)
    applied: dict[Key, ServicePlan] = {}
    for wanted, goes in steps:
        before, after = applied.pop(wanted.key, None), None if goes else wanted
        if before != after:
            sync(backend, (before, after))
        if after is not None:
            applied[after.key] = after
    named = set()
    for key, known in applied.items():
        for port, own in zip(rules.plans[key].ports, known.ports, strict=True):
            for sockets, endpoints in ((port.cluster, own.cluster), (port.local, own.local)):
                if own.protocol == "SCTP":
                    assert sockets == endpoints
                elif endpoints:
                    at = (HERE, sockets[0].port, own.protocol == "UDP")
                    named.add(at)
                    assert relay.open_now[at].choices[0].targets == tuple(
                        (b.address, b.port) for b in endpoints
                    )
    assert relay.open_now.keys() == named
    assert rules.plans.keys() == applied.keys()
    relay.stop()


def free_port() -> int:
    with socket.create_server((HERE, 0)) as sock:
        return int(sock.getsockname()[1])


def test_listening_serves_what_is_local_and_says_what_is_not(
    relay: FakeRelay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    number, node_port = free_port(), free_port()
    backend = Listening(relay, lambda: [HERE])
    wanted = plan(
        E1, FAR, port=number, cluster_ip=HERE, external_ips=("203.0.113.1",), node_port=node_port, external_local=True
    )  # fmt: skip
    assert sync(backend, (None, wanted), full=True) == {}
    inside, outside = relay.open_now[HERE, number, False], relay.open_now["0.0.0.0", node_port, False]
    assert inside.choices[0].clients == ()
    assert [choice.clients for choice in outside.choices] == [("127.0.0.1/32", "10.244.1.0/24"), ()]
    assert [len(choice.targets) for choice in outside.choices] == [2, 1]
    assert not inside.translated
    assert "not served: 1 of the Services' addresses" in caplog.text
    sync(backend, (wanted, None))
    assert relay.open_now == {}


def test_listening_keeps_source_ranges(relay: FakeRelay) -> None:
    number = free_port()
    backend = Listening(relay, lambda: [HERE])
    wanted = plan(E1, port=number, load_balancer_ips=(HERE,), source_ranges=("10.0.0.0/8",))
    sync(backend, (None, wanted), full=True)
    assert relay.open_now[HERE, number, False].admitted == ("10.0.0.0/8",)


def test_listening_follows_addresses_that_come(relay: FakeRelay) -> None:
    number = free_port()
    local: list[str] = []
    backend = Listening(relay, lambda: local)
    wanted = plan(E1, port=number, cluster_ip=HERE)
    sync(backend, (None, wanted), full=True)
    assert relay.open_now == {}
    assert asyncio.run(backend.intact())
    local.append(HERE)
    assert not asyncio.run(backend.intact())
    sync(backend, (None, wanted), full=True)
    assert relay.open_now.keys() == {(HERE, number, False)}


def test_listening_refuses_one_whose_port_is_taken(relay: FakeRelay) -> None:
    backend = Listening(relay, lambda: [HERE])
    with socket.create_server((HERE, 0)) as taken:
        port = taken.getsockname()[1]
        failures = sync(backend, (None, plan(E1, port=port, cluster_ip=HERE)), full=True)
    assert failures == {("default", "web"): f"cannot listen on {HERE}:{port} TCP: Address already in use"}


def test_localhost_beside_another_mode(relay: FakeRelay, caplog: pytest.LogCaptureFixture) -> None:
    rules = Rules()
    backend = Localhost(rules, relay)
    node = replace(NODE, localhost_relay=True)
    one, two = free_port(), free_port()
    before, after = plan(E1, FAR, node_port=one, external_local=True), plan(E1, node_port=two)
    sync(backend, (None, before), full=True, node=node)
    assert rules.plans["default", "web"] == before
    assert relay.open_now[HERE, one, False].choices[0].targets == ((E1.address, 8080), (FAR.address, 8080))
    sync(backend, (before, after), node=node)
    assert relay.open_now.keys() == {(HERE, two, False)}
    assert sockets_told(backend) == [1, 0]
    with socket.create_server((HERE, 0)) as taken:
        third = plan(E1, node_port=taken.getsockname()[1])
        sync(backend, (after, third), node=node)
        assert asyncio.run(backend.intact())
        assert relay.open_now == {}
        assert caplog.text.count("is not served on localhost: Address already in use") == 1
        assert sockets_told(backend) == [0, 2]
    asyncio.run(backend.intact())
    assert len(relay.open_now) == 1
    sync(backend, (third, plan(node_port=one)), node=node)
    assert relay.open_now == {}


@pytest.mark.parametrize("policy", [False, True])
def test_localhost_obeys_the_policy_if_that_is_asked_for(relay: FakeRelay, policy: bool) -> None:
    backend = Localhost(Rules(), relay)
    node = replace(NODE, localhost_relay=True, localhost_policy=policy)
    port = free_port()
    sync(backend, (None, plan(FAR, node_port=port, external_local=True)), full=True, node=node)
    assert relay.open_now.keys() == (set() if policy else {(HERE, port, False)})
    sync(backend, (None, plan(E1, FAR, node_port=port, external_local=True)), full=True, node=node)
    targets = relay.open_now[HERE, port, False].choices[0].targets
    assert targets == ((E1.address, 8080),) if policy else ((E1.address, 8080), (FAR.address, 8080))


def sockets_told(backend: Localhost) -> list[float | Histogram]:
    return [f.value for f in backend.figures() if "localhost_nodeport" in f.name]


@pytest.mark.parametrize("shared", [False, True])
def test_each_figure_is_told_once(shared: bool) -> None:
    relays = [FakeRelay(labels={"ip_family": family}) for family in FAMILIES]
    told = [
        (figure.name, *figure.labels.items())
        for relay in relays
        for figure in Localhost(
            Led(Rules(), relay, lambda node: node.address) if shared else Rules(), relay, shared=shared
        ).figures()
    ]
    assert len(told) == len(set(told)) == 2 * 11


def test_localhost_is_where_the_ranges_have_it(relay: FakeRelay) -> None:
    backend = Localhost(Rules(), relay)
    port = free_port()
    ranges = replace(
        NODE, localhost_relay=True, node_port_ranges=("127.0.0.0/8",), node_port_addresses=("127.0.0.2",)
    )
    sync(backend, (None, plan(E1, node_port=port)), full=True, node=ranges)
    assert relay.open_now.keys() == {("127.0.0.2", port, False)}
    sync(backend, (None, plan(E1, node_port=port)), full=True, node=NODE)
    assert relay.open_now == {}
