"""Networks that are made again, IP families that are not served any more, the endpoint of the host."""

from typing import Any

import pytest

from kubeproxy import backends
from kubeproxy.backends.base import SyncError
from kubeproxy.backends.kernelspace.mode import settings
from kubeproxy.config.load import load
from kubeproxy.log import V2
from kubeproxy.windows.calls import Entity
from kubeproxy.windows.fake_profiles import WS2019
from kubeproxy.windows.values import HcnEndpoint, HcnLoadBalancer, PortMapping
from tests.fakes.cluster import endpoints, service
from tests.fakes.hns import L1, L1_6, NETWORK, R1, R2, HnsProxy, WindowsNode, dual, fill, synced


@pytest.mark.parametrize("addresses", [(L1,), (L1, R1), (R1,)])
def test_a_network_that_is_made_again_without_a_notification_is_noticed(addresses: tuple[str, ...]) -> None:
    at = WindowsNode()
    proxy = synced(at, *addresses)
    before = at.state()
    at.hns.remove_network(at.network)
    at.add_network()
    at.clock.time += 60
    assert not proxy.intact()
    assert not proxy.full()
    assert at.state() == before
    assert all(each.network == at.network for each in at.hns.endpoints().values())


def test_a_network_that_another_driver_found_first_is_noticed() -> None:
    at = WindowsNode(local=())
    at.add_local(L1, L1_6)
    four, six = dual(at)
    assert not four.full()
    assert not six.full()
    at.hns.rename_network(at.network)
    assert not four.full()
    at.clock.time += 1  # the lists of the other driver are recent
    assert not six.intact()
    assert not six.full()
    assert six.intact()


def test_a_network_that_was_made_again_while_it_had_no_endpoints() -> None:
    at = WindowsNode(local=())
    proxy = at.proxy()
    assert not proxy.full()
    at.hns.remove_network(at.network)
    at.add_network()
    fill(proxy, L1)
    assert not proxy.sync()
    assert at.balancers() == [f"10.96.0.10:80>8080/TCP F=1 M=0 {{{L1}}}"]


def test_a_node_that_has_one_family_now_keeps_nothing_of_the_other_one() -> None:
    at = WindowsNode(local=())
    at.add_local(L1, L1_6)
    four, six = dual(at)
    far = "fd00:10:244:2::21"
    six.tell(endpoints("web", L1_6, far, local=(L1_6,), node="node1", name="web-6"))
    assert not four.full()
    assert not six.full()
    alone = four.restarted()
    foreign = at.add_local("fd00:172::1", network=at.hns.add_network("other"))
    at.calls()
    assert not alone.full()
    assert sorted(at.calls()) == ["HcnDeleteEndpoint"] + ["HcnDeleteLoadBalancer"] * 2
    assert at.balancers() == [
        f"*:30080>8080/TCP F=0 M=18 {{{L1}}}",
        f"10.96.0.10:80>8080/TCP F=1 M=0 {{{L1}}}",
    ]
    assert foreign in at.hns.endpoints()
    assert alone.intact()


def test_a_family_that_is_not_served_any_more_while_the_process_runs() -> None:
    at = WindowsNode(local=())
    at.add_local(L1, L1_6)
    four, six = dual(at)
    six.tell(endpoints("web", L1_6, "fd00:10:244:2::21", local=(L1_6,), node="node1", name="web-6"))
    assert not four.full()
    assert not six.full()
    assert four.intact()
    six.close()
    at.clock.time += 60
    assert four.intact(), "no other program did that"
    assert at.balancers() == [
        f"*:30080>8080/TCP F=0 M=18 {{{L1}}}",
        f"10.96.0.10:80>8080/TCP F=1 M=0 {{{L1}}}",
    ]
    assert at.endpoints() == [f"{L1}/{L1_6} local"]
    at.calls()
    at.clock.time += 60
    assert four.intact()
    assert not four.full()
    assert at.calls() == []


def test_a_second_driver_of_one_family_is_no_reason_to_remove_anything() -> None:
    """While a configuration replaces another one, both have drivers."""
    at = WindowsNode(local=())
    at.add_local(L1, L1_6)
    four, six = dual(at)
    assert not four.full()
    assert not six.full()
    again, _ = dual(at)
    four.close()
    assert not again.full()
    assert len(at.balancers()) == 4


def test_a_command_that_reads_counts_for_nothing() -> None:
    at = WindowsNode()
    proxy = synced(at, L1, R2)
    assert proxy.differs() == []
    assert at.calls() == []


def test_a_cleanup_without_the_network_removes_what_it_left() -> None:
    at = WindowsNode()
    synced(at, L1, R1)
    other = at.hns.add_endpoint(HcnEndpoint(at.hns.add_network("other"), ("172.16.0.1",)))
    foreign = at.hns.add_load_balancer(HcnLoadBalancer((other,), ("172.16.9.9",), (PortMapping(6, 80, 80),)))
    empty = at.hns.add_load_balancer({"HostComputeEndpoints": [], "PortMappings": []})
    at.hns.remove_network(at.network)
    assert len(at.hns.load_balancers()) == 3
    options = load({"network-name": NETWORK}, "win32")
    for _ in range(2):
        backends.cleanup(at.machine, "kernelspace", config=options.config, platform="win32")
        assert at.hns.load_balancers().keys() == {foreign, empty}


def test_subnets_in_another_order_are_the_same_network() -> None:
    at = WindowsNode(kind="Overlay")
    proxy = synced(at, L1, R1)
    for subnets in (("10.244.2.0/24", "10.244.3.0/24"), ("10.244.3.0/24", "10.244.2.0/24")):
        routes = [
            {
                "Type": "RemoteSubnetRoute",
                "Settings": {"DestinationPrefix": each, "ProviderAddress": "192.0.2.2"},
            }
            for each in subnets
        ]
        at.hns.change(Entity.NETWORK, at.network, {"Policies": routes})
        at.clock.time += 60
        if subnets[0] == "10.244.2.0/24":
            assert not proxy.intact()
            assert not proxy.full()
        assert proxy.intact()
    assert at.calls() == []


# The endpoint of the host


def with_health_checks(at: WindowsNode) -> HnsProxy:
    proxy = at.proxy()
    proxy.tell(
        service("web", "10.96.0.10", balancer=("203.0.113.1",), type="LoadBalancer"),
        endpoints("web", L1, local=(L1,), node="node1"),
    )
    assert not proxy.full()
    return proxy


def health(at: WindowsNode) -> list[str]:
    return [each for each in at.balancers() if ":10256" in each]


HEALTH: dict[str, Any] = {"root_endpoint": "cbr0", "health_vips": True, "healthz_port": 10256}
CHECK = "203.0.113.1:10256>10256/TCP F=0 M=0 {10.244.1.2}"


def test_an_endpoint_of_the_host_that_is_made_again_gets_the_health_checks() -> None:
    at = WindowsNode(**HEALTH)
    root = at.add_local("10.244.1.2", name="cbr0")
    proxy = with_health_checks(at)
    assert health(at) == [CHECK]
    at.hns.remove(Entity.ENDPOINT, root)
    again = at.add_local("10.244.1.2", name="cbr0")
    at.clock.time += 60
    assert not proxy.intact()
    assert not proxy.full()
    assert health(at) == [CHECK]
    assert (again,) in [each.endpoints for each in at.hns.load_balancers().values()]


def test_an_endpoint_of_the_host_that_comes_later_gets_the_health_checks() -> None:
    at = WindowsNode(**HEALTH)
    proxy = with_health_checks(at)
    assert health(at) == []
    at.add_local("10.244.1.3", name="other")
    at.clock.time += 60
    assert proxy.intact()
    at.add_local("10.244.1.2", name="cbr0")
    at.clock.time += 60
    assert not proxy.intact()
    assert not proxy.full()
    assert health(at) == [CHECK]


def test_an_endpoint_of_the_host_on_another_network() -> None:
    at = WindowsNode(**HEALTH)
    at.add_local("10.244.1.2", name="cbr0", network=at.hns.add_network("host"))
    proxy = with_health_checks(at)
    assert health(at) == [CHECK]
    at.calls()
    assert not proxy.full()
    again = proxy.restarted()
    assert not again.full()
    assert at.calls() == []


def test_what_was_made_over_an_endpoint_of_another_network_is_removed_by_who_made_it() -> None:
    at = WindowsNode(**HEALTH)
    at.add_local("10.244.1.2", name="cbr0", network=at.hns.add_network("host"))
    proxy = with_health_checks(at)
    proxy.gone("Service", "web")
    assert not proxy.sync()
    assert at.balancers() == []


# Settings


def test_an_overlay_network_that_comes_later_needs_a_source_vip() -> None:
    at = WindowsNode(kind="Overlay", network=False, source_vip="")
    proxy = at.proxy()
    at.add_network()
    with pytest.raises(SyncError, match="needs --source-vip, and it is not set"):
        proxy.full()
    assert at.calls() == []


@pytest.mark.parametrize("everywhere", [True, False])
def test_health_checks_on_the_first_hns_need_a_health_server_at_one_address(
    everywhere: bool, caplog: pytest.LogCaptureFixture
) -> None:
    at = WindowsNode(WS2019, **HEALTH, healthz_everywhere=everywhere)
    at.proxy()
    assert ("set --healthz-bind-address to the node's address" in caplog.text) is everywhere


@pytest.mark.parametrize(("address", "everywhere"), [("0.0.0.0:10256", True), ("192.0.2.1:10256", False)])
def test_where_the_health_server_listens(address: str, everywhere: bool) -> None:
    flags = {"network-name": "x", "forward-healthcheck-vip": True, "healthz-bind-address": address}
    found = settings(load(flags, "win32").config)
    assert (found.healthz_port, found.healthz_everywhere) == (10256, everywhere)


def test_a_public_endpoint_that_changes_the_source_of_all_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(V2)
    at = WindowsNode(kind="Overlay")
    proxy = at.proxy()
    fill(proxy, L1, R1)
    assert not proxy.full()
    assert "instead of the source VIP" not in caplog.text
    fill(proxy, L1, R1, "203.0.113.9")
    assert not proxy.sync()
    assert at.balancers() == [f"10.96.0.10:80>8080/TCP F=1 M=0 S=192.0.2.1 {{{L1},{R1},203.0.113.9}}"]
    assert "Service default/web: an endpoint on another node is no Pod" in caplog.text


# What is remembered


def test_endpoints_that_came_and_went_are_forgotten() -> None:
    at = WindowsNode()
    proxy = at.proxy()
    view = proxy.driver._view
    for number in range(100):
        fill(proxy, f"10.244.9.{number}")
        proxy.sync() if number else proxy.full()
    at.clock.time += 60
    assert proxy.intact()
    assert len(view._gone) <= 1
    assert len(view.forms._asked) == 1


def test_an_endpoint_that_a_deleted_service_waited_for_is_forgotten() -> None:
    at = WindowsNode(local=())
    proxy = at.proxy()
    fill(proxy, L1)
    assert not proxy.full()
    proxy.gone("Service", "web")
    assert not proxy.sync()
    at.clock.time += 60
    at.hns.calls.clear()
    assert proxy.intact()
    assert [call.function for call in at.hns.calls] == ["HcnEnumerateEndpoints", "HcnEnumerateLoadBalancers"]
