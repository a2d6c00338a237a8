"""HNS may return a load balancer in another form than it was sent: nothing is written twice because of that."""

from typing import Any, get_args

import pytest
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.api.addresses import IPV6
from kubeproxy.backends.kernelspace.view import ROUNDS
from kubeproxy.windows import errors
from kubeproxy.windows.calls import Entity
from kubeproxy.windows.fake_forms import ReturnedForm
from kubeproxy.windows.fake_profiles import WS2022, WS2025, Profile
from tests.fakes.cluster import endpoints, service
from tests.fakes.hns import L1, L2, R1, R2, HnsProxy, WindowsNode

FORMS: tuple[ReturnedForm, ...] = get_args(ReturnedForm)
ALL = frozenset(FORMS) - {"host address"}
"""Those that have no effect on which address a load balancer has."""

V6 = ("fd00:10:244:1::11", "fd00:10:244:2::21")


def node(
    *forms: ReturnedForm, profile: Profile = WS2025, kind: str = "L2Bridge", local: tuple[str, ...] = (L1, L2)
) -> WindowsNode:
    made = WindowsNode(
        replace(profile, forms=frozenset(forms)),
        kind,
        local=local,
        root_endpoint="cbr0",
        health_vips=True,
        healthz_port=10256,
    )
    made.add_local("10.244.1.2", name="cbr0")
    return made


def preserving(found: types.Service) -> types.Service:
    annotations = types.Annotations(preserve_destination="true")
    return replace(found, metadata=replace(found.metadata, annotations=annotations))


def fill(proxy: HnsProxy) -> None:
    """Services of all kinds."""
    ports = (types.ServicePort(80, node_port=30080),)
    outside: dict[str, Any] = {"type": "LoadBalancer", "external_ips": ("198.51.100.1",)}
    proxy.tell(
        service("web", "10.96.0.10"),
        endpoints("web", L1, R1, local=(L1,), node="node1"),
        service(
            "out",
            "10.96.0.11",
            ports=ports,
            balancer=("203.0.113.1",),
            session_affinity="ClientIP",
            **outside,
        ),
        endpoints("out", L1, R1, local=(L1,), node="node1"),
        preserving(service("kept", "10.96.0.12", balancer=("203.0.113.2",), type="LoadBalancer")),
        endpoints("kept", L1, L2, local=(L1, L2), node="node1"),
    )


def synced(at: WindowsNode) -> HnsProxy:
    proxy = at.proxy()
    fill(proxy)
    assert not proxy.full()
    return proxy


def looked(at: WindowsNode, proxy: HnsProxy) -> None:
    """So many looks that every load balancer is read again, and a full sync."""
    for _ in range(ROUNDS + 1):
        at.clock.time += 30
        assert proxy.intact()
    assert not proxy.full()


@pytest.mark.parametrize("profile", [WS2022, WS2025])
@pytest.mark.parametrize("forms", [*((form,) for form in FORMS), tuple(sorted(ALL))])
@pytest.mark.parametrize("kind", ["L2Bridge", "Overlay"])
def test_nothing_is_written_twice(profile: Profile, forms: tuple[ReturnedForm, ...], kind: str) -> None:
    at, plain = node(*forms, profile=profile, kind=kind), node(profile=profile, kind=kind)
    proxy = synced(at)
    synced(plain)
    assert at.state() == plain.state()
    assert len(at.calls()) == len(plain.calls())
    looked(at, proxy)
    assert at.calls() == []
    proxy.tell(endpoints("out", L1, R1, R2, local=(L1,), node="node1"))
    assert not proxy.sync()
    written = at.calls()
    modifies = profile is WS2025
    assert ("HcnModifyLoadBalancer" in written, "HcnDeleteLoadBalancer" in written) == (
        modifies,
        not modifies,
    )
    looked(at, proxy)
    assert at.calls() == []


@pytest.mark.parametrize("forms", FORMS)
def test_a_later_departure_from_the_form_is_a_change_by_others(forms: ReturnedForm) -> None:
    at = node(forms)
    proxy = synced(at)
    before = at.state()
    ident = next(i for i, each in at.hns.load_balancers().items() if each.vips == ("10.96.0.10",))
    at.hns.change(Entity.LOAD_BALANCER, ident, {"Flags": 0})
    assert at.state() != before
    for _ in range(ROUNDS + 1):
        at.clock.time += 30
        if not proxy.intact():
            break
    assert not proxy.full()
    assert at.state() == before


@pytest.mark.parametrize("forms", [("bits",), ("bits", "defaults", "names")])
def test_a_start_replaces_one_load_balancer_of_each_form_at_most(forms: tuple[ReturnedForm, ...]) -> None:
    at = node(*forms)
    proxy = at.proxy()
    for number in range(20):
        proxy.tell(
            service(f"s{number}", f"10.96.1.{number}"),
            endpoints(f"s{number}", L1, local=(L1,), node="node1"),
        )
    assert not proxy.full()
    at.calls()
    again = proxy.restarted()
    assert not again.full()
    assert at.calls() == ["HcnDeleteLoadBalancer", "HcnCreateLoadBalancer"]
    looked(at, again)
    assert at.calls() == []


def test_of_a_form_that_loses_what_was_asked_for_a_start_takes_nothing_for_granted() -> None:
    """Affinity that HNS does not return may have been asked for, or not."""
    at = node("lossy")
    proxy = synced(at)
    proxy.tell(service("web", "10.96.0.10", session_affinity="ClientIP"))
    again = proxy.restarted()
    assert not again.full()
    assert f"10.96.0.10:80>8080/TCP F=1 M=0 D=2 {{{L1},{R1}}}" in at.balancers()
    again.tell(service("web", "10.96.0.10"))
    assert not again.sync()
    assert f"10.96.0.10:80>8080/TCP F=1 M=0 {{{L1},{R1}}}" in at.balancers()


def test_what_could_not_be_replaced_is_created_again_as_it_was_asked_for() -> None:
    at = node("bits", "lossy", profile=WS2022)
    proxy = synced(at)
    before = at.balancers()
    at.hns.fail("HcnCreateLoadBalancer", errors.INVALID_POLICY, naming="10.96.0.10")
    proxy.tell(endpoints("web", L1, local=(L1,), node="node1"))
    refused = proxy.full()
    assert list(refused) == [("default", "web")]
    assert at.balancers() == before


def test_the_other_family_too() -> None:
    at = node("case", "order", "defaults", "bits", local=V6[:1])
    proxy = at.proxy(IPV6)
    ports = (types.ServicePort(80, node_port=30080),)
    proxy.tell(
        service("web", "fd00:10:96::a", type="NodePort", ports=ports),
        endpoints("web", *V6, local=V6[:1], node="node1"),
    )
    assert not proxy.full()
    at.calls()
    looked(at, proxy)
    assert at.calls() == []


def test_another_hns_that_creates_less_than_it_was_asked_for_is_corrected_by_a_full_sync() -> None:
    """An answer that names other endpoints is no form: it is changed at the next full sync."""
    at = node()
    proxy = synced(at)
    ident = next(i for i, each in at.hns.load_balancers().items() if each.vips == ("10.96.0.10",))
    less = at.hns.load_balancers()[ident].endpoints[:1]
    at.hns.change(Entity.LOAD_BALANCER, ident, {"HostComputeEndpoints": list(less)})
    again = proxy.restarted()
    at.calls()
    assert not again.full()
    assert at.calls() == ["HcnModifyLoadBalancer"]
