"""What is found at the start, what another program or a restart of HNS changes, and what HNS refuses."""

import pytest
from msgspec.structs import replace

from kubeproxy.backends.base import SyncError
from kubeproxy.windows import errors
from kubeproxy.windows.calls import Entity
from kubeproxy.windows.fake_profiles import WS2025
from kubeproxy.windows.values import REMOTE_ENDPOINT, HcnEndpoint
from tests.fakes.hns import CNI_MAC, L1, L2, R1, R2, HnsProxy, WindowsNode, fill

WEB = "10.96.0.10:80>8080/TCP F=1 M=0"


def synced(node: WindowsNode, *addresses: str) -> HnsProxy:
    proxy = node.proxy()
    fill(proxy, *addresses)
    assert not proxy.full()
    return proxy


def test_a_start_keeps_what_is_right_and_changes_the_rest() -> None:
    node = WindowsNode()
    synced(node, L1, R1)
    before = node.ids()
    node.calls()
    again = node.proxy()
    fill(again, L1, R1)
    assert not again.full()
    assert node.calls() == []
    other = node.proxy()
    fill(other, L1)
    assert not other.full()
    assert node.ids() == before
    assert node.calls() == ["HcnModifyLoadBalancer", "HcnDeleteEndpoint"]


def test_what_a_service_left_goes_and_what_is_of_others_stays() -> None:
    node = WindowsNode()
    synced(node, L1, R1)
    foreign = node.add_remote("10.244.2.99", CNI_MAC)
    leaked = node.hns.add_endpoint(
        HcnEndpoint(node.network, ("10.244.2.98",), "02-11-0a-f4-02-62", REMOTE_ENDPOINT)
    )
    assert not node.proxy().full()
    assert node.balancers() == []
    assert foreign in node.hns.endpoints()
    assert leaked not in node.hns.endpoints()


def test_an_hns_whose_modify_does_nothing_is_noticed_once(caplog: pytest.LogCaptureFixture) -> None:
    node = WindowsNode(replace(WS2025, modify_ignored=True))
    proxy = synced(node, L1)
    for addresses in ((L1, R1), (L1, R1, R2)):
        fill(proxy, *addresses)
        assert not proxy.sync()
        assert node.balancers() == [f"{WEB} {{{','.join(sorted(addresses))}}}"]
    assert caplog.text.count("HNS cannot change load balancers in place") == 1


def test_a_load_balancer_that_exists_already_is_adopted() -> None:
    node = WindowsNode()
    proxy = synced(node, L1)
    node.hns.fail("HcnCreateLoadBalancer", errors.PORT_ALREADY_EXISTS, done=True, naming="10.96.0.11")
    fill(proxy, L1, name="more", ip="10.96.0.11")
    assert not proxy.sync()
    assert len(node.balancers()) == 2


def test_hns_that_is_away_loses_nothing() -> None:
    node = WindowsNode()
    proxy = synced(node, L1, R1)
    before = node.ids()
    node.hns.stop()
    fill(proxy, L1)
    with pytest.raises(SyncError):
        proxy.sync()
    node.hns.start()
    node.calls()
    assert not proxy.full()
    assert node.ids() == before
    assert "HcnCreateLoadBalancer" not in node.calls()


def test_hns_that_is_back_empty_gets_everything_once() -> None:
    node = WindowsNode()
    proxy = synced(node, L1, R1)
    before = node.state()
    node.hns.stop()
    with pytest.raises(SyncError):
        proxy.full()
    node.hns.start(empty=True)
    node.calls()
    assert not proxy.full()
    assert node.state() == before
    assert sorted(node.calls()) == ["HcnCreateEndpoint", "HcnCreateLoadBalancer"]


def test_a_network_that_was_made_again_gets_everything_on_its_new_id() -> None:
    node = WindowsNode()
    proxy = synced(node, L1, R1)
    before = node.state()
    node.hns.remove_network(node.network)
    with pytest.raises(SyncError):
        proxy.full()
    node.add_network()
    assert not proxy.full()
    assert node.state() == before
    assert all(each.network == node.network for each in node.hns.endpoints().values())


def test_an_address_that_passes_to_another_service_is_deleted_first() -> None:
    node = WindowsNode()
    proxy = synced(node, L1)
    proxy.gone("Service", "web")
    fill(proxy, L2, name="other")
    node.calls()
    assert not proxy.sync()
    assert node.balancers() == [f"{WEB} {{{L2}}}"]
    assert node.calls() == ["HcnDeleteLoadBalancer", "HcnCreateLoadBalancer"]


def test_an_endpoint_that_the_network_plug_in_makes_later_joins() -> None:
    node = WindowsNode(local=(L1,))
    proxy = synced(node, L1, L2)
    assert node.balancers() == [f"{WEB} {{{L1}}}"]
    node.add_local(L2)
    node.clock.time += 60
    assert proxy.intact()
    assert node.balancers() == [f"{WEB} {{{L1},{L2}}}"]


def test_a_load_balancer_that_another_program_deleted_is_restored() -> None:
    node = WindowsNode()
    proxy = synced(node, L1)
    node.hns.remove(Entity.LOAD_BALANCER, next(iter(node.hns.load_balancers())))
    node.clock.time += 60
    assert not proxy.intact()
    assert not proxy.full()
    assert node.balancers() == [f"{WEB} {{{L1}}}"]
