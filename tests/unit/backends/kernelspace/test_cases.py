"""Cases that the recordings of the reference do not reach: several fronts at one address, endpoints that change."""

import pytest
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.windows.calls import Entity
from kubeproxy.windows.fake_profiles import WS2022, WS2025
from kubeproxy.windows.values import REMOTE_ENDPOINT, HcnEndpoint
from tests.fakes.cluster import endpoints, service
from tests.fakes.hns import (
    CNI_MAC,
    L1,
    L1_6,
    L2,
    NETWORK,
    R1,
    R2,
    SOURCE_VIP,
    WindowsNode,
    dual,
    fill,
    synced,
)

WEB, MORE = ("default", "web"), ("default", "more")


# Several fronts


def test_tcp_and_udp_at_one_address_and_port_are_two_load_balancers() -> None:
    at = WindowsNode()
    proxy = at.proxy()
    ports = (types.ServicePort(53, name="tcp"), types.ServicePort(53, name="udp", protocol="UDP"))
    proxy.tell(
        service("dns", "10.96.0.10", ports=ports),
        endpoints("dns", L1, local=(L1,), node="node1", port_name="tcp", port=53),
        endpoints(
            "dns", L2, local=(L2,), node="node1", port_name="udp", port=53, protocol="UDP", name="dns-2"
        ),
    )
    assert not proxy.full()
    assert at.balancers() == [
        f"10.96.0.10:53>53/TCP F=1 M=0 {{{L1}}}",
        f"10.96.0.10:53>53/UDP F=1 M=0 {{{L2}}}",
    ]
    proxy.tell(service("dns", "10.96.0.10", ports=ports[:1]))
    at.calls()
    assert not proxy.sync()
    assert at.calls() == ["HcnDeleteLoadBalancer"]
    assert at.balancers() == [f"10.96.0.10:53>53/TCP F=1 M=0 {{{L1}}}"]


def test_node_ports_of_both_families_and_one_endpoint_with_both_addresses() -> None:
    at = WindowsNode(local=())
    ident = at.add_local(L1, L1_6)
    for proxy in dual(at):
        assert not proxy.full()
    assert at.balancers() == [
        f"*:30080>8080/TCP F=0 M=18 {{{L1}}}",
        f"*:30080>8080/TCP F=2 M=18 {{{L1_6}}}",
        f"10.96.0.10:80>8080/TCP F=1 M=0 {{{L1}}}",
        f"[fd00:10:96::a]:80>8080/TCP F=3 M=0 {{{L1_6}}}",
    ]
    assert {each.endpoints for each in at.hns.load_balancers().values()} == {(ident,)}


def test_one_family_changes_and_the_other_one_stays() -> None:
    at = WindowsNode(local=())
    at.add_local(L1, L1_6)
    four, six = dual(at)
    assert not four.full()
    assert not six.full()
    before = at.ids()
    four.gone("EndpointSlice", "web-1")
    at.calls()
    assert not four.sync()
    assert at.calls() == ["HcnDeleteLoadBalancer"] * 2
    at.clock.time += 60
    assert six.intact()
    assert at.calls() == []
    assert len(at.ids().keys() & before.keys()) == 2


def test_two_ports_that_share_a_load_balancer_ip_have_one_health_check() -> None:
    at = WindowsNode(root_endpoint="cbr0", health_vips=True, healthz_port=10256)
    at.add_local("10.244.1.2", name="cbr0")
    proxy = at.proxy()
    ports = (types.ServicePort(80, name="http"), types.ServicePort(443, name="https"))
    proxy.tell(
        service("web", "10.96.0.10", ports=ports, balancer=("203.0.113.1",), type="LoadBalancer"),
        endpoints("web", L1, local=(L1,), node="node1", port_name="http"),
        endpoints("web", L1, local=(L1,), node="node1", port_name="https", port=8443, name="web-2"),
    )
    assert not proxy.full()
    health = [each for each in at.balancers() if ":10256" in each]
    assert health == ["203.0.113.1:10256>10256/TCP F=0 M=0 {10.244.1.2}"]
    # One of the ports goes: the health check is still that of the other one.
    proxy.tell(service("web", "10.96.0.10", ports=ports[:1], balancer=("203.0.113.1",), type="LoadBalancer"))
    at.calls()
    assert not proxy.sync()
    assert at.calls() == ["HcnDeleteLoadBalancer"] * 2
    assert [each for each in at.balancers() if ":10256" in each] == health


def test_two_services_that_share_a_load_balancer_ip_have_one_health_check() -> None:
    at = WindowsNode(root_endpoint="cbr0", health_vips=True, healthz_port=10256)
    at.add_local("10.244.1.2", name="cbr0")
    proxy = at.proxy()
    for number, name in enumerate(("a", "b")):
        ports = (types.ServicePort(80 + number),)
        proxy.tell(
            service(name, f"10.96.0.1{number}", ports=ports, balancer=("203.0.113.1",), type="LoadBalancer"),
            endpoints(name, L1, local=(L1,), node="node1"),
        )
    assert not proxy.full()
    assert sum(":10256" in each for each in at.balancers()) == 1
    before = at.ids()["203.0.113.1:10256/6"]
    proxy.gone("Service", "a")
    assert not proxy.sync()
    assert at.ids()["203.0.113.1:10256/6"] == before


# Endpoints


def test_one_of_300_endpoints_changes() -> None:
    at = WindowsNode()
    many = [f"10.244.{2 + n // 250}.{1 + n % 250}" for n in range(300)]
    proxy = synced(at, *many)
    before = at.ids()
    proxy.tell(endpoints("web", *many[1:], "10.244.9.9"))
    at.hns.calls.clear()
    assert not proxy.sync()
    assert [call.function for call in at.hns.changes()] == [
        "HcnCreateEndpoint",
        "HcnModifyLoadBalancer",
        "HcnDeleteEndpoint",
    ]
    # Its network is opened and closed, its id is read, and the first change in place is read back.
    assert len(at.hns.calls) <= 13, at.hns.counts()
    assert at.ids() == before


def test_an_endpoint_in_the_network_of_the_host_is_left_out_and_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A Pod with hostNetwork has the address of the node, of which HNS has no endpoint."""
    at = WindowsNode()
    proxy = at.proxy()
    addresses = "192.0.2.1", R1
    proxy.tell(service("web", "10.96.0.10"), endpoints("web", *addresses, local=addresses[:1], node="node1"))
    assert not proxy.full()
    for _ in range(3):
        at.clock.time += 60
        assert proxy.intact()
        assert not proxy.full()
    assert at.balancers() == [f"10.96.0.10:80>8080/TCP F=1 M=0 {{{R1}}}"]
    assert sum("192.0.2.1 is on this node" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("unique", [False, True])
def test_an_endpoint_that_names_another_host_than_has_its_address_now_is_replaced(unique: bool) -> None:
    at = WindowsNode(replace(WS2025, unique_macs=unique), kind="Overlay")
    stale = at.hns.add_endpoint(
        HcnEndpoint(at.network, (R1,), "02-11-0a-f4-02-15", REMOTE_ENDPOINT, "192.0.2.99")
    )
    vip = at.hns.add_endpoint(
        HcnEndpoint(at.network, ("10.96.0.10",), "00-15-5d-00-00-01", REMOTE_ENDPOINT, "192.0.2.99")
    )
    proxy = at.proxy()
    fill(proxy, L1, R1)
    refused = proxy.full()
    assert list(refused) == ([WEB] if unique else [])
    if unique:
        assert at.balancers() == [f"10.96.0.10:80>8080/TCP F=1 M=0 S=10.244.1.250 {{{L1}}}"]
        at.clock.time += 1
        assert not proxy.retry()
    assert at.balancers() == [f"10.96.0.10:80>8080/TCP F=1 M=0 S=10.244.1.250 {{{L1},{R1}}}"]
    found = at.hns.endpoints()
    assert stale not in found
    assert vip not in found
    assert {each.addresses[0]: each.provider for each in found.values() if each.remote} == {
        R1: "192.0.2.2",
        "10.96.0.10": "192.0.2.1",
    }
    at.calls()
    assert not proxy.full()
    assert not proxy.restarted().full()
    assert at.calls() == []


def test_a_subnet_that_moves_to_another_host_takes_its_endpoints_along() -> None:
    at = WindowsNode(kind="Overlay")
    proxy = synced(at, L1, R1)
    routes = [
        {
            "Type": "RemoteSubnetRoute",
            "Settings": {"DestinationPrefix": "10.244.2.0/24", "ProviderAddress": "192.0.2.3"},
        }
    ]
    at.hns.change(Entity.NETWORK, at.network, {"Policies": routes})
    at.clock.time += 60
    assert not proxy.intact()
    assert not proxy.full()
    assert [e.provider for e in at.hns.endpoints().values() if e.addresses == (R1,)] == ["192.0.2.3"]
    at.calls()
    assert not proxy.full()
    assert at.calls() == []


def test_an_endpoint_of_another_program_that_names_another_host_is_left_alone() -> None:
    at = WindowsNode(kind="Overlay")
    foreign = at.hns.add_endpoint(HcnEndpoint(at.network, (R1,), CNI_MAC, REMOTE_ENDPOINT, "192.0.2.99"))
    proxy = synced(at, R1)
    assert foreign in at.hns.endpoints()
    (used,) = {each for b in at.hns.load_balancers().values() for each in b.endpoints}
    assert at.hns.endpoints()[used].provider == "192.0.2.2"
    assert not proxy.full()
    assert at.calls() == []


@pytest.mark.parametrize("known", [True, False])
def test_a_pod_that_moves_to_this_node_gets_the_endpoint_of_the_network_plug_in(known: bool) -> None:
    """Addresses move between nodes in some networks. No load balancer names an endpoint that is not there."""
    at = WindowsNode(WS2022)
    proxy = synced(at, R1, R2)
    twin = next(i for i, each in at.hns.endpoints().items() if each.addresses == (R1,))
    here = at.add_local(R1)
    if known:
        proxy.tell(endpoints("web", R1, R2, local=(R1,), node="node1"))
        assert not proxy.sync()
    else:
        at.clock.time += 60
        assert proxy.intact()
    assert at.calls() == ["HcnDeleteLoadBalancer", "HcnCreateLoadBalancer", "HcnDeleteEndpoint"]
    assert twin not in at.hns.endpoints()
    (found,) = at.hns.load_balancers().values()
    assert here in found.endpoints
    assert at.balancers() == [f"10.96.0.10:80>8080/TCP F=1 M=0 {{{R1},{R2}}}"]


def test_a_pod_that_moves_away_from_this_node_gets_an_endpoint_on_another_one() -> None:
    at = WindowsNode()
    proxy = synced(at, L1, L2)
    at.hns.remove(
        Entity.ENDPOINT, next(i for i, each in at.hns.endpoints().items() if each.addresses == (L1,))
    )
    at.clock.time += 60
    assert proxy.intact()
    assert at.balancers() == [f"10.96.0.10:80>8080/TCP F=1 M=0 {{{L2}}}"]
    proxy.tell(endpoints("web", L1, L2, local=(L2,), node="node1"))
    assert not proxy.sync()
    assert at.balancers() == [f"10.96.0.10:80>8080/TCP F=1 M=0 {{{L1},{L2}}}"]
    assert at.endpoints() == ["10.244.1.11 remote", "10.244.1.12 local"]


@pytest.mark.parametrize(
    ("address", "provider", "source"),
    [
        ("10.244.2.21", "192.0.2.2", SOURCE_VIP),
        ("10.244.3.21", "192.0.2.3", SOURCE_VIP),  # in two subnets: the last one counts
        ("192.0.2.2", "192.0.2.2", "192.0.2.1"),  # a node
        ("203.0.113.9", "192.0.2.1", "192.0.2.1"),  # no Pod of the network
    ],
)
def test_which_host_an_endpoint_names_and_where_packets_come_from(
    address: str, provider: str, source: str
) -> None:
    at = WindowsNode(kind="Overlay", network=False)
    subnets = {"10.244.2.0/23": "192.0.2.2", "10.244.3.0/24": "192.0.2.3"}
    at.network = at.hns.add_network(NETWORK, "Overlay", remote=subnets)
    synced(at, address)
    assert at.balancers() == [f"10.96.0.10:80>8080/TCP F=1 M=0 S={source} {{{address}}}"]
    assert [e.provider for e in at.hns.endpoints().values() if e.addresses == (address,)] == [provider]


def test_the_second_service_with_the_same_node_as_endpoint_has_the_same_source() -> None:
    at = WindowsNode(kind="Overlay")
    proxy = synced(at, "192.0.2.2")
    fill(proxy, "192.0.2.2", name="more", ip="10.96.0.11")
    assert not proxy.sync()
    assert {each.source_vip for each in at.hns.load_balancers().values()} == {"192.0.2.1"}
