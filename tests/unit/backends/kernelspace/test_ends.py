"""A process that ends between any two calls leaves what the next one brings to the state of a fresh start."""

from itertools import count

import pytest
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.windows.fake_profiles import WS2019, WS2022, WS2025, Profile
from tests.fakes.cluster import endpoints, service
from tests.fakes.faults import KilledError
from tests.fakes.hns import L1, L2, R1, R2, HnsProxy, WindowsNode


def begin(proxy: HnsProxy) -> None:
    """Three Services."""
    proxy.tell(
        service("web", "10.96.0.1", external_ips=("198.51.100.1",)),
        endpoints("web", L1, R1, local=(L1,), node="node1"),
        service("other", "10.96.0.2"),
        endpoints("other", R1),
        service("gone", "10.96.0.3"),
        endpoints("gone", R2),
    )


def change(proxy: HnsProxy) -> None:
    """One changes in everything but its ClusterIP, one loses its endpoints, one goes, and one takes an address."""
    ports = (types.ServicePort(80, node_port=30080),)
    proxy.tell(
        service("web", "10.96.0.1", ports=ports, balancer=("203.0.113.1",), type="LoadBalancer"),
        endpoints("web", L2, "10.244.2.23", local=(L2,), node="node1"),
        endpoints("other", L1, local=(L1,), node="node1"),
        service("late", "10.96.0.4", external_ips=("198.51.100.1",)),
        endpoints("late", R2, "10.244.2.24"),
    )
    proxy.gone("Service", "gone")
    proxy.gone("EndpointSlice", "gone-1")


def fresh(profile: Profile, kind: str) -> tuple[list[str], list[str]]:
    proxy = WindowsNode(profile, kind, dsr=False).proxy()
    begin(proxy)
    change(proxy)
    assert not proxy.full()
    return proxy.at.state()


def kill_at(at: WindowsNode, last: int) -> None:
    """The process ends before the call of this number that changes something, counted from now."""
    numbers = count()

    def interfere(function: str) -> int:
        if function.startswith(("HcnCreate", "HcnModify", "HcnDelete")) and next(numbers) == last:
            raise KilledError
        return 0

    at.hns.interfere = interfere


@pytest.mark.parametrize("profile", [WS2019, WS2022, WS2025])
@pytest.mark.parametrize("kind", ["L2Bridge", "Overlay"])
@pytest.mark.parametrize("at_start", [False, True])
def test_the_next_process_ends_as_after_a_fresh_start(profile: Profile, kind: str, at_start: bool) -> None:
    quiet = replace(profile, failing_delete=0, leaked_ports=0)
    expected = fresh(quiet, kind)
    for last in count():
        at = WindowsNode(quiet, kind, dsr=False)
        proxy = at.proxy()
        begin(proxy)
        if not at_start:
            assert not proxy.full()
        change(proxy)
        kill_at(at, last)
        try:
            assert not (proxy.full() if at_start else proxy.sync())
        except KilledError:
            ended = True
        else:
            ended = False
        at.hns.interfere = lambda _: 0
        again = proxy.restarted()
        assert not again.full()
        assert at.state() == expected, last
        assert again.driver.next_retry == float("inf")
        at.calls()
        assert not again.full()
        assert at.calls() == []
        if not ended:
            assert last > 8
            break
