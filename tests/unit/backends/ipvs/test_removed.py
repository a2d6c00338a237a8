"""Connections to endpoints that were removed end, where the Service asks for it; no others do."""

import random
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.api.addresses import pack, unpack
from kubeproxy.model.plan import ServicePlan
from kubeproxy.netlink import ipvs
from kubeproxy.netlink.ipvs import Load, Real, Virtual
from tests import strategies
from tests.fakes.cluster import endpoints, service
from tests.unit.backends.ipvs.rig import HERE, Rig
from tests.unit.backends.ipvs.test_properties import small_world

WEB, PLAIN = Virtual(ipvs.TCP, pack("10.96.0.1"), 80), Virtual(ipvs.TCP, pack("10.96.0.2"), 80)
ONE, TWO = (Real(pack(f"10.244.1.1{i}"), 8080) for i in (1, 2))
ENDS = types.Annotations(removed_endpoints="end-connections")


def slices(*addresses: str, terminating: str = "") -> Iterator[types.EndpointSlice]:
    """The endpoints of both Services."""
    ends = types.EndpointConditions(ready=False, serving=True, terminating=True)
    for name in ("web", "plain"):
        made = endpoints(name, *addresses)
        yield replace(
            made,
            endpoints=tuple(
                replace(e, conditions=ends) if terminating in (e.addresses or ()) else e
                for e in made.endpoints or ()
            ),
        )


def connected() -> Rig:
    """Two Services with connections to the same endpoints, one of which asks for the end of connections."""
    rig = Rig(HERE)
    web = service("web", "10.96.0.1")
    rig.tell(
        replace(web, metadata=replace(web.metadata, annotations=ENDS)),
        service("plain", "10.96.0.2"),
        *slices("10.244.1.11", "10.244.1.12"),
    )
    assert not rig.full()
    connect(rig)
    return rig


def connect(rig: Rig) -> None:
    """All real servers have connections."""
    for _, reals in rig.kernel.virtuals.values():
        for real, load in reals.items():
            reals[real] = Load(load.weight, 1, 0)


def weights(rig: Rig, virtual: Virtual) -> dict[Real, int]:
    return {real: load.weight for real, load in rig.kernel.reals(virtual).items()}


def test_a_removed_endpoint_is_deleted_after_a_second_and_of_other_services_drains() -> None:
    rig = connected()
    rig.tell(*slices("10.244.1.11"))
    rig.partial()
    rig.driver.end_removed()
    assert weights(rig, WEB) == weights(rig, PLAIN) == {ONE: 1, TWO: 0}
    rig.a_second_later()
    assert weights(rig, WEB) == {ONE: 1}
    assert weights(rig, PLAIN) == {ONE: 1, TWO: 0}
    assert rig.intact()


def test_an_endpoint_that_terminates_drains_until_it_is_removed() -> None:
    rig = connected()
    rig.tell(*slices("10.244.1.11", "10.244.1.12", terminating="10.244.1.12"))
    rig.partial()
    rig.a_second_later()
    assert weights(rig, WEB) == {ONE: 1, TWO: 0}
    rig.tell(*slices("10.244.1.11"))
    rig.partial()
    rig.a_second_later()
    assert weights(rig, WEB) == {ONE: 1}


def test_an_endpoint_that_comes_back_within_a_second_keeps_its_connections() -> None:
    rig = connected()
    rig.tell(*slices("10.244.1.11"))
    rig.partial()
    rig.tell(*slices("10.244.1.11", "10.244.1.12"))
    rig.partial()
    rig.a_second_later()
    assert weights(rig, WEB) == {ONE: 1, TWO: 1}


def test_a_full_sync_meanwhile_forgets_nothing_and_finds_removals_itself() -> None:
    rig = connected()
    rig.tell(*slices("10.244.1.11"))
    rig.partial()
    assert not rig.full()
    rig.a_second_later()
    assert weights(rig, WEB) == {ONE: 1}
    rig = connected()
    rig.tell(*slices("10.244.1.11"))
    assert not rig.full()
    rig.a_second_later()
    assert weights(rig, WEB) == {ONE: 1}


def test_what_was_removed_before_the_start_drains() -> None:
    rig = connected()
    rig.tell(*slices("10.244.1.11"))
    rig.partial()
    other = rig.restarted()
    assert not other.full()
    other.a_second_later()
    assert weights(other, WEB) == {ONE: 1, TWO: 0}


def removed(before: ServicePlan | None, after: ServicePlan | None, virtual: Virtual) -> set[Real]:
    """The endpoints of a virtual server's port that left their slices, if their connections are to end."""
    sides = []
    for plan in (before, after):
        ports = [
            port
            for port in (plan.ports if plan is not None else ())
            if virtual.protocol == ipvs.TCP
            and (
                (port.port == virtual.port and unpack(virtual.address) in (port.cluster_ip, *port.external_ips, *port.load_balancer_ips))
                or (port.node_port == virtual.port and virtual.address == pack("192.0.2.1"))
            )
        ]  # fmt: skip
        there = next((port.present for port in ports if port.protocol == "TCP"), None)
        sides.append(None if there is None else {Real(pack(e.address), e.port) for e in there})
    was, now = sides
    return set() if was is None or now is None else was - now


@given(strategies.histories(), st.randoms())
def test_no_connection_ends_but_those_to_removed_endpoints(
    history: list[list[strategies.Event]], chance: random.Random
) -> None:
    with small_world():
        rig = Rig(replace(HERE, node_port_addresses=("192.0.2.1",)))
        assert not rig.full()
        for batch in history:
            connect(rig)
            before = {key: rig.state.plan(key, rig.node) for key in rig.state.services}
            had = rig.kernel.servers()
            for event in batch:
                rig.hear(event)
            after = {key: rig.state.plan(key, rig.node) for key in rig.state.services}
            if chance.random() < 0.2:
                assert not rig.full()
            else:
                assert not rig.sync()
            rig.a_second_later()
            for virtual, reals in rig.kernel.servers().items():
                ended = {real for real in had.get(virtual, {}) if real not in reals}
                over = [removed(before.get(key), after.get(key), virtual) for key in before.keys() | after]
                if virtual.protocol == ipvs.TCP:
                    assert ended == set.union(set(), *over) & had.get(virtual, {}).keys()
