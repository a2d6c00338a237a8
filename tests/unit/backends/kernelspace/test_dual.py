"""Drivers of both IP families over one HNS, at their own pace, while other programs and HNS do what they like."""

from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kubeproxy.api.addresses import IPV4, IPV6
from kubeproxy.backends.base import SyncError
from kubeproxy.windows import errors
from kubeproxy.windows.calls import Entity
from kubeproxy.windows.fake_profiles import WS2022, WS2025, Profile
from kubeproxy.windows.values import HcnEndpoint, HcnLoadBalancer, PortMapping
from tests import strategies
from tests.fakes.hns import HnsProxy, WindowsNode

PAIRS = tuple(zip(strategies.ENDPOINTS[IPV4][:3], strategies.ENDPOINTS[IPV6][:3], strict=True))
"""The addresses of endpoints on this node: each has both."""

FORMS = replace(WS2025, forms=frozenset({"case", "names", "order", "bits", "defaults"}))
Step = Literal["four", "six", "look", "steal", "lose", "down", "empty", "again", "retry", "restart", "refuse"]
STEPS = st.sampled_from(
    ["four", "six", "look", "steal", "lose", "down", "empty", "again", "retry", "restart", "refuse"]
)


class DualNode:
    """A node with both families, and a load balancer of another program."""

    def __init__(self, profile: Profile) -> None:
        self.at = WindowsNode(profile, local=())
        self._add_local()
        other = self.at.hns.add_network("other")
        self.foreign = self.at.hns.add_endpoint(HcnEndpoint(other, ("172.16.0.1",)))
        self.at.hns.add_load_balancer(
            HcnLoadBalancer((self.foreign,), ("172.16.9.9",), (PortMapping(6, 80, 80),))
        )
        self.others = self._others()
        self.proxies = self._proxies()
        self.loaded = {proxy.node.family: False for proxy in self.proxies}

    def _proxies(self) -> list[HnsProxy]:
        return [
            HnsProxy(self.at, replace(self.at.config(family, primary=family == IPV4), name=strategies.NODE))
            for family in (IPV4, IPV6)
        ]

    def _add_local(self) -> None:
        for pair in PAIRS:
            self.at.add_local(*pair)

    def _others(self) -> dict[str, HcnLoadBalancer]:
        found = self.at.hns.load_balancers()
        return {ident: each for ident, each in found.items() if self.foreign in each.endpoints}

    def hear(self, event: strategies.Event) -> None:
        for proxy in self.proxies:
            proxy.hear(event)

    def sync(self, proxy: HnsProxy) -> None:
        """What the control loop does: a full sync after one that failed."""
        family = proxy.node.family
        try:
            (proxy.sync if self.loaded[family] else proxy.full)()
            self.loaded[family] = True
        except SyncError:
            self.loaded[family] = False

    def look(self, proxy: HnsProxy) -> None:
        if self.loaded[proxy.node.family] and not proxy.intact():
            self.loaded[proxy.node.family] = False
            self.sync(proxy)

    def do(self, step: Step) -> None:
        hns, (four, six) = self.at.hns, self.proxies
        ours = sorted(hns.load_balancers().keys() - self.others.keys())
        match step:
            case "four":
                self.sync(four)
            case "six":
                self.sync(six)
            case "look":
                self.at.clock.time += 30
                for proxy in self.proxies:
                    self.look(proxy)
            case "steal" if ours:
                hns.remove(Entity.LOAD_BALANCER, ours[0])
            case "lose":
                remote = sorted(ident for ident, each in hns.endpoints().items() if each.remote)
                for ident in remote[:1]:
                    hns.remove(Entity.ENDPOINT, ident)
            case "down":
                hns.stop()
                self.sync(four)
                hns.start()
            case "empty":
                hns.stop()
                hns.start(empty=True)
                self.others = self._others()
            case "again":
                hns.remove_network(self.at.network)
                self.at.add_network(())
                self._add_local()
            case "retry":
                self.at.clock.time += 60
                for proxy in self.proxies:
                    if self.loaded[proxy.node.family]:
                        self.retry(proxy)
            case "restart":
                states = [proxy.state for proxy in self.proxies]
                for proxy in self.proxies:
                    proxy.close()
                self.proxies = self._proxies()
                for proxy, state in zip(self.proxies, states, strict=True):
                    proxy.state = state
                self.loaded = {IPV4: False, IPV6: False}
            case "refuse":
                hns.fail("HcnCreate*", errors.PORT_ALREADY_EXISTS, times=2)
            case _:
                pass

    def retry(self, proxy: HnsProxy) -> None:
        try:
            proxy.retry()
        except SyncError:
            self.loaded[proxy.node.family] = False

    def settle(self) -> None:
        """Nothing more happens, and the loops do what is due."""
        self.at.hns.heal()
        for _ in range(4):
            self.at.clock.time += 60
            for proxy in self.proxies:
                self.sync(proxy)
                self.retry(proxy)
                self.look(proxy)

    def check(self) -> None:
        """What holds when all is quiet."""
        assert self._others() == self.others
        seen = set()
        for ident, each in self.at.hns.load_balancers().items():
            if ident not in self.others:
                key = (each.vips, each.mappings[0].protocol, each.mappings[0].external_port, each.flags & 2)
                assert key not in seen
                seen.add(key)
                assert set(each.endpoints) <= self.at.hns.endpoints().keys()
        assert all(proxy.driver.next_retry == float("inf") for proxy in self.proxies)


@settings(max_examples=60)
@given(
    st.lists(st.one_of(strategies.events(), STEPS), max_size=14),
    strategies.histories(2),
    st.sampled_from([WS2022, WS2025, FORMS]),
)
def test_whatever_happens_both_families_end_as_after_a_start(
    steps: list[strategies.Event | Step], history: list[list[strategies.Event]], profile: Profile
) -> None:
    node = DualNode(profile)
    for event in (event for batch in history for event in batch):
        node.hear(event)
    for step in steps:
        if isinstance(step, str):
            node.do(step)
        else:
            node.hear(step)
    node.settle()
    node.check()
    fresh = DualNode(profile)
    for proxy, same in zip(fresh.proxies, node.proxies, strict=True):
        proxy.state = same.state
        assert not proxy.full()
    ours = [line for line in node.at.balancers() if "172.16" not in line]
    assert ours == [line for line in fresh.at.balancers() if "172.16" not in line]
    assert node.at.endpoints() == fresh.at.endpoints()
    node.at.calls()
    for proxy in node.proxies:
        assert not proxy.full()
    assert node.at.calls() == []
