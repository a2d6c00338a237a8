"""Connections to removed endpoints are deleted, and nothing else: bystanders of every kind stay."""

from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kubeproxy.model import endings
from kubeproxy.model.endings import Endings
from kubeproxy.model.flows import place
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint
from tests.unit.test_flows import TCP, UDP, WEB, Flow, Kernel, Rig

API: Key = ("shop", "api")
IPS = {WEB: "10.96.0.20", API: "10.96.0.21"}
NODE_PORTS = {WEB: 30080, API: 30081}
HERE, THERE = "192.0.2.1", "192.0.2.9"


def endpoint(number: int) -> Endpoint:
    return Endpoint(f"10.244.1.{number}", 8080)


def at(number: int) -> bytes:
    return place(endpoint(number).address, 8080)


def plan(
    *present: int, key: Key = WEB, ends: bool = True, usable: Sequence[int] | None = None
) -> ServicePlan:
    cluster = tuple(endpoint(i) for i in (present if usable is None else usable))
    port = PortPlan(
        "/".join(key),
        "TCP",
        80,
        IPS[key],
        node_port=NODE_PORTS[key],
        cluster=cluster,
        present=tuple(endpoint(i) for i in present) if ends else None,
    )
    return ServicePlan(*key, (port,))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


@pytest.fixture
def rig(kernel: Kernel) -> Rig:
    return Rig(kernel, NodeConfig())


FRONT = place(IPS[WEB], 80)


async def test_the_connections_of_a_removed_endpoint_end(rig: Rig, kernel: Kernel) -> None:
    others = [Flow(TCP, FRONT, at(2)), Flow(TCP, at(1), at(1)), Flow(UDP, FRONT, at(1))]
    kernel.table = [*others, Flow(TCP, FRONT, at(1)), Flow(TCP, place(HERE, 30080), at(1))]
    async with rig.running():
        rig.loop.full(plan(1, 2))
        await rig.cleaned()
        rig.loop.partial(plan(1, 2, usable=(2,)))  # it terminates, and keeps its connections
        await rig.cleaned()
        assert len(kernel.table) == 5
        rig.loop.partial(plan(2))
        await rig.cleaned()
        assert kernel.table == others
        assert rig.cleaner.ended == rig.cleaner.deleted == 2


async def test_the_last_endpoint_is_no_exception(rig: Rig, kernel: Kernel) -> None:
    kernel.table = [Flow(TCP, FRONT, at(1))]
    async with rig.running():
        rig.loop.full(plan(1))
        await rig.cleaned()
        rig.loop.partial(plan())
        await rig.cleaned()
        assert kernel.table == []


@pytest.mark.parametrize("then", ["comes back", "keeps", "is deleted"])
async def test_what_is_so_a_moment_later_counts(rig: Rig, kernel: Kernel, then: str) -> None:
    """An endpoint that moves between EndpointSlices may be in none for a moment."""
    kernel.table = [Flow(TCP, FRONT, at(1))]
    async with rig.running():
        rig.loop.full(plan(1, 2), plan(1, 2, key=API))
        await rig.cleaned()
        rig.loop.partial(plan(2))
        if then == "is deleted":
            rig.loop.gone(WEB)
        else:
            rig.loop.partial(plan(1, 2) if then == "comes back" else plan(2, ends=False))
        rig.loop.partial(plan(2, key=API))
        await rig.cleaned()  # that of the other Service
        assert kernel.table == [Flow(TCP, FRONT, at(1))]


async def test_an_endpoint_that_comes_back_while_flows_are_read(rig: Rig, kernel: Kernel) -> None:
    kernel.table = [Flow(TCP, FRONT, at(1))]
    async with rig.running():
        rig.loop.full(plan(1, 2))
        await rig.cleaned()
        kernel.meanwhile = lambda: rig.loop.ledger._plans.__setitem__(WEB, plan(1, 2))
        rig.loop.partial(plan(2))
        await rig.cleaned()
        assert kernel.table == [Flow(TCP, FRONT, at(1))]


class Tracked(NamedTuple):
    """A flow of a random table."""

    protocol: int
    destination: bytes
    source: bytes
    zone: int = 0


NUMBERS = st.sets(st.integers(1, 4), max_size=4)
SERVICES = st.builds(
    lambda key, present, ends: plan(*sorted(present), key=key, ends=ends),
    st.sampled_from([WEB, API]),
    NUMBERS,
    st.booleans(),
)
PLACES = st.sampled_from(
    [
        *(place(ip, 80) for ip in IPS.values()),
        *(place(node, port) for node in (HERE, THERE) for port in NODE_PORTS.values()),
        *(at(i) for i in range(1, 5)),
        place("10.96.0.99", 80),
        place("198.51.100.7", 443),
    ]
)


@given(
    st.lists(SERVICES, min_size=1, max_size=6),
    st.builds(Tracked, st.sampled_from([TCP, UDP]), PLACES, PLACES),
)
def test_only_connections_from_a_front_to_an_endpoint_removed_from_it_are_over(
    changes: list[ServicePlan], flow: Tracked
) -> None:
    plans: dict[Key, ServicePlan] = {}
    found = Endings()
    removed: dict[Key, set[bytes]] = {WEB: set(), API: set()}
    for after in changes:
        before = plans.get(after.key)
        for gone in endings.removed(before, after).values():
            found.add(after.key, after.ports[0], gone)
        was = before.ports[0].present if before else None
        now = after.ports[0].present
        if was is not None and now is not None:
            removed[after.key] |= {place(e.address, e.port) for e in was if e not in now}
        plans[after.key] = after

    def over(key: Key) -> bool:
        fronts = {place(IPS[key], 80), place(HERE, NODE_PORTS[key])}
        now = plans[key].ports[0].present if key in plans else None
        there = None if now is None else {place(e.address, e.port) for e in now}
        return (
            flow.protocol == TCP
            and flow.destination in fronts
            and flow.source in removed[key]
            and there is not None
            and flow.source not in there
        )

    local = place(HERE, 0)[:-2].__eq__
    assert found.is_over(flow, local, plans) == (over(WEB) or over(API))


def test_no_udp_port_is_ever_concerned() -> None:
    before, after = plan(1, 2), plan(2)
    udp = [
        replace(each, ports=(replace(each.ports[0], protocol="UDP", present=None),))
        for each in (before, after)
    ]
    assert not endings.removed(*udp)
    assert endings.removed(before, after)
