"""What HNS refuses is retried, each load balancer and endpoint at its own pace."""

from kubeproxy.windows import errors
from kubeproxy.windows.calls import Entity
from tests.fakes.cluster import endpoints, service
from tests.fakes.hns import L1, L2, R1, HnsProxy, WindowsNode, fill, synced

WEB, MORE = ("default", "web"), ("default", "more")


def after(at: WindowsNode, proxy: HnsProxy, seconds: float) -> list[str]:
    """What is called when the time of retries has come, so many seconds later."""
    at.clock.time += seconds
    if proxy.driver.next_retry <= at.clock.time:
        proxy.retry()
    return at.calls()


def test_a_port_that_exists_is_retried_at_growing_intervals_and_harms_nobody() -> None:
    at = WindowsNode()
    at.hns.fail("HcnCreateLoadBalancer", errors.PORT_ALREADY_EXISTS, times=-1, naming="10.96.0.10")
    proxy = at.proxy()
    fill(proxy, L1)
    fill(proxy, L2, name="more", ip="10.96.0.11")
    assert list(proxy.full()) == [WEB]
    assert at.balancers() == [f"10.96.0.11:80>8080/TCP F=1 M=0 {{{L2}}}"]
    at.calls()
    delays = []
    for _ in range(9):
        seconds = proxy.driver.next_retry - at.clock.time
        delays.append(seconds)
        assert not after(at, proxy, seconds - 0.1)
        assert set(after(at, proxy, 0.1)) == {"HcnCreateLoadBalancer 0x803b0013"}
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    at.hns.heal()
    assert after(at, proxy, 60) == ["HcnCreateLoadBalancer"]
    assert proxy.driver.next_retry == float("inf")
    assert not proxy.retry()


def test_a_retry_lists_nothing_and_reads_nothing_of_others() -> None:
    at = WindowsNode()
    at.hns.fail("HcnCreateLoadBalancer", errors.INVALID_IP, naming="10.96.0.10")
    proxy = at.proxy()
    fill(proxy, L1)
    for number in range(50):
        fill(proxy, L1, R1, name=f"s{number}", ip=f"10.96.1.{number}")
    assert list(proxy.full()) == [WEB]
    at.hns.calls.clear()
    at.clock.time += 1
    assert not proxy.retry()
    names = [call.function for call in at.hns.calls]
    assert names == ["HcnCreateLoadBalancer", "HcnQueryLoadBalancerProperties", "HcnCloseLoadBalancer"]


def test_each_refused_load_balancer_has_its_own_time() -> None:
    at = WindowsNode()
    at.hns.fail("HcnCreateLoadBalancer", errors.INVALID_IP, times=-1)
    proxy = at.proxy()
    fill(proxy, L1)
    assert list(proxy.full()) == [WEB]
    for _ in range(6):
        after(at, proxy, proxy.driver.next_retry - at.clock.time)
    old = proxy.driver.next_retry
    fill(proxy, L1, name="more", ip="10.96.0.11")
    assert set(proxy.sync()) == {WEB, MORE}
    assert proxy.driver.next_retry == at.clock.time + 1, "the new one is not as late as the old one"
    after(at, proxy, 1)
    assert proxy.driver.next_retry == at.clock.time + 2
    at.hns.heal()
    after(at, proxy, 2)
    assert at.balancers() == [f"10.96.0.11:80>8080/TCP F=1 M=0 {{{L1}}}"]
    assert proxy.driver.next_retry == old
    after(at, proxy, old - at.clock.time)
    assert len(at.balancers()) == 2


def test_two_load_balancers_of_one_service_have_their_own_times() -> None:
    at = WindowsNode()
    proxy = at.proxy()
    proxy.tell(
        service("web", "10.96.0.10", external_ips=("198.51.100.1",)),
        endpoints("web", L1, local=(L1,), node="node1"),
    )
    at.hns.fail("HcnCreateLoadBalancer", errors.INVALID_IP, times=-1, naming="198.51.100.1")
    assert list(proxy.full()) == [WEB]
    for _ in range(6):
        after(at, proxy, proxy.driver.next_retry - at.clock.time)
    proxy.tell(service("web", "10.96.0.10", external_ips=("198.51.100.1", "198.51.100.2")))
    at.hns.fail("HcnCreateLoadBalancer", errors.INVALID_IP, times=-1, naming="198.51.100.2")
    assert list(proxy.sync()) == [WEB]
    assert proxy.driver.next_retry == at.clock.time + 1


def test_a_refused_endpoint_is_retried_and_forgotten_with_its_service() -> None:
    at = WindowsNode()
    at.hns.fail("HcnCreateEndpoint", errors.INVALID_IP, times=-1, naming=R1)
    proxy = at.proxy()
    fill(proxy, L1, R1)
    assert list(proxy.full()) == [WEB]
    assert at.balancers() == [f"10.96.0.10:80>8080/TCP F=1 M=0 {{{L1}}}"]
    at.calls()
    assert after(at, proxy, 1) == ["HcnCreateEndpoint 0x803b001e"]
    proxy.gone("Service", "web")
    assert not proxy.sync()
    assert proxy.driver.next_retry == float("inf")


def test_an_endpoint_of_a_clusterip_is_retried() -> None:
    at = WindowsNode(kind="Overlay")
    at.hns.fail("HcnCreateEndpoint", errors.INVALID_IP, times=2, naming="10.96.0.10")
    proxy = at.proxy()
    fill(proxy, L1)
    assert list(proxy.full()) == [WEB]
    at.calls()
    assert after(at, proxy, 1) == ["HcnCreateEndpoint 0x803b001e"]
    assert after(at, proxy, 2) == ["HcnCreateEndpoint", "HcnCreateLoadBalancer"]
    assert not proxy.retry()


def test_what_cannot_be_deleted_is_retried() -> None:
    at = WindowsNode()
    proxy = synced(at, L1)
    at.hns.fail("HcnDeleteLoadBalancer", errors.E_FAIL, times=6)
    proxy.gone("Service", "web")
    assert list(proxy.sync()) == [WEB]
    at.calls()
    failed = ["HcnDeleteLoadBalancer 0x80004005"] * 2
    seen = []
    while proxy.driver.next_retry < float("inf"):
        seen += after(at, proxy, proxy.driver.next_retry - at.clock.time)
    assert seen[-1:] == ["HcnDeleteLoadBalancer"]
    assert seen[:-1] == failed * (len(seen) // 2)
    assert at.balancers() == []


def test_what_is_blocked_by_another_refusal_does_not_keep_the_loop_busy() -> None:
    """A load balancer that was refused, and whose ClusterIP then lost its endpoint, has nothing to be tried."""
    at = WindowsNode(kind="Overlay")
    at.hns.fail("HcnCreateLoadBalancer", errors.INVALID_IP, times=-1)
    proxy = at.proxy()
    fill(proxy, L1)
    proxy.full()
    vip = next(i for i, each in at.hns.endpoints().items() if each.addresses == ("10.96.0.10",))
    at.hns.remove(Entity.ENDPOINT, vip)
    at.hns.fail("HcnCreateEndpoint", errors.INVALID_IP, times=-1)
    proxy.full()
    at.clock.time += 60
    proxy.retry()
    assert proxy.driver.next_retry > at.clock.time
