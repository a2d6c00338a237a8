"""A Windows node in memory: an HNS with a network, and a proxy without a loop over it."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.api.addresses import IPV4, IPV6, Family
from kubeproxy.backends.base import Failures
from kubeproxy.backends.kernelspace import prepare
from kubeproxy.backends.kernelspace.driver import KernelspaceDriver
from kubeproxy.machine.fake import FakeMachine
from kubeproxy.model.node import HNSSettings, NodeConfig
from kubeproxy.windows.fake import FakeHns
from kubeproxy.windows.fake_profiles import WS2025, Profile
from kubeproxy.windows.values import REMOTE_ENDPOINT, HcnEndpoint, HcnLoadBalancer
from tests.fakes.clock import FakeClock
from tests.fakes.cluster import Proxy, endpoints, service

NETWORK = "cbr0net"
HOST_MAC = "00-15-5d-00-00-01"
CNI_MAC = "00-15-5d-aa-00-01"
ADDRESSES = {IPV4: "192.0.2.1", IPV6: "2001:db8:2::1"}
L1_6 = "fd00:10:244:1::11"
L1, L2, R1, R2 = "10.244.1.11", "10.244.1.12", "10.244.2.21", "10.244.2.22"
SOURCE_VIP = "10.244.1.250"


class WindowsNode:
    """A node with HNS.

    Attributes:
        hns: its HNS.
        network: the id of the network.
        clock: its time.
        machine: the host.
    """

    def __init__(
        self,
        profile: Profile = WS2025,
        kind: str = "L2Bridge",
        *,
        local: Iterable[str] = (L1, L2),
        network: bool = True,
        **settings: Any,
    ) -> None:
        """Creates it.

        Args:
            profile: the version of Windows.
            kind: the type of the network.
            local: the addresses of endpoints that the network plug-in has made.
            network: whether the network exists.
            settings: of the mode.
        """
        self.hns = FakeHns(profile)
        self.kind = kind
        self.network = ""
        if network:
            self.add_network(local)
        self.clock = FakeClock()
        self.machine = FakeMachine(("127.0.0.1", "::1", *ADDRESSES.values()), clock=self.clock)
        self.machine.hns = self.hns.hcn
        overlay = {"source_vip": SOURCE_VIP} if kind == "Overlay" else {}
        self.settings = HNSSettings(**{"network": NETWORK, "dsr": True, **overlay, **settings})

    def add_network(self, local: Iterable[str] = (L1, L2), name: str = NETWORK) -> None:
        """The network plug-in creates the network, and endpoints."""
        remote = {"10.244.2.0/24": "192.0.2.2"} if self.kind == "Overlay" else {}
        self.network = self.hns.add_network(name, self.kind, remote=remote)
        for address in local:
            self.add_local(address)

    def add_local(self, *addresses: str, name: str = "", mac: str = CNI_MAC, network: str = "") -> str:
        """The network plug-in creates an endpoint on this node; returns its id."""
        endpoint = HcnEndpoint(network or self.network, addresses, mac, name=name or addresses[0])
        return self.hns.add_endpoint(endpoint)

    def add_remote(self, address: str, mac: str = CNI_MAC, *, network: str = "") -> str:
        """Another program creates an endpoint on another node; returns its id."""
        return self.hns.add_endpoint(HcnEndpoint(network or self.network, (address,), mac, REMOTE_ENDPOINT))

    def config(self, family: Family = IPV4, *, primary: bool = True) -> NodeConfig:
        """The node, as plans are made for it."""
        return NodeConfig(
            family=family, name="node1", address=ADDRESSES[family], hns=self.settings, primary=primary
        )

    def proxy(self, family: Family = IPV4, *, primary: bool = True) -> "HnsProxy":
        """A proxy of a new process."""
        return HnsProxy(self, self.config(family, primary=primary))

    def state(self) -> tuple[list[str], list[str]]:
        """The load balancers and the endpoints of the network, readable and in order, without ids."""
        endpoints = self.hns.endpoints()
        shown = [
            f"{'/'.join(each.addresses)} {'remote' if each.remote else 'local'}"
            for each in endpoints.values()
            if each.network == self.network
        ]
        return sorted(map(self._shown, self.hns.load_balancers().values())), sorted(shown)

    def balancers(self) -> list[str]:
        """The load balancers."""
        return self.state()[0]

    def endpoints(self) -> list[str]:
        """The endpoints."""
        return self.state()[1]

    def ids(self) -> dict[str, str]:
        """The ids of load balancers by address, protocol and port."""
        return {
            self._shown(each).partition(">")[0] + f"/{each.mappings[0].protocol}": each.id
            for each in self.hns.load_balancers().values()
            if each.mappings
        }

    def _shown(self, balancer: HcnLoadBalancer) -> str:
        endpoints = self.hns.endpoints()
        backends = [
            endpoints[ident].addresses[-1 if balancer.flags & 2 else 0] if ident in endpoints else "(gone)"
            for ident in balancer.endpoints
        ]
        if not balancer.mappings:
            return f"no mappings {{{','.join(sorted(backends))}}}"
        (mapping,) = balancer.mappings
        return show(
            balancer.vips[0] if balancer.vips else "",
            mapping.external_port,
            mapping.internal_port,
            mapping.protocol,
            balancer.flags,
            mapping.flags,
            mapping.distribution,
            balancer.source_vip,
            backends,
        )

    def calls(self) -> list[str]:
        """The names of the calls that changed something since the last time this was asked."""
        found = [
            call.function + ("" if not call.code else f" {call.code:#010x}") for call in self.hns.changes()
        ]
        self.hns.calls.clear()
        return found


def show(
    vip: str,
    port: int,
    internal: int,
    protocol: int,
    flags: int,
    port_flags: int,
    distribution: int,
    source: str,
    backends: Sequence[str],
) -> str:
    """A load balancer on one line."""
    at = f"[{vip}]" if ":" in vip else vip or "*"
    name = {6: "TCP", 17: "UDP", 132: "SCTP"}[protocol]
    more = (f" D={distribution}" if distribution else "") + (f" S={source}" if source else "")
    return f"{at}:{port}>{internal}/{name} F={flags} M={port_flags}{more} {{{','.join(sorted(backends))}}}"


class HnsProxy(Proxy):
    """A proxy at the test's command on a Windows node."""

    def __init__(self, at: WindowsNode, config: NodeConfig) -> None:
        self.at = at
        self.driver: KernelspaceDriver = prepare.open_driver(at.machine, config)
        super().__init__(self.driver, config)

    def full(self) -> Failures:
        """A full sync; of a Service that is refused all else is programmed."""
        failures = super().full()
        self.applied = self.plans()
        return failures

    def retry(self) -> Failures:
        """What the control loop does when the time of a retry has come."""
        return asyncio.run(self.driver.retry())

    def close(self) -> None:
        """The driver ends; what it programmed stays."""
        asyncio.run(self.driver.close())

    def forget(self) -> None:
        """No Service is there any more."""
        for namespace, name in list(self.state.services):
            self.gone("Service", name, namespace)

    def differs(self) -> list[str]:
        """What a `load` would do."""
        held = asyncio.run(self.driver.read())
        return self.driver.difference(held, self.node, self.plans()).lines()

    def restarted(self) -> "HnsProxy":
        """A new process that has received the same objects."""
        asyncio.run(self.driver.close())
        self.at.machine = replaced_machine(self.at)
        other = HnsProxy(self.at, self.node)
        other.state = self.state
        return other


def fill(proxy: HnsProxy, *addresses: str, name: str = "web", ip: str = "10.96.0.10") -> None:
    """A Service with these endpoints; `L1` and `L2` are on the node."""
    local = tuple(each for each in addresses if each in {L1, L2})
    proxy.tell(service(name, ip), endpoints(name, *addresses, local=local, node="node1"))


def synced(at: WindowsNode, *addresses: str) -> HnsProxy:
    """A proxy that has programmed such a Service; its calls until then are forgotten."""
    proxy = at.proxy()
    fill(proxy, *addresses)
    assert not proxy.full()
    at.calls()
    return proxy


def dual(at: WindowsNode) -> tuple[HnsProxy, HnsProxy]:
    """A Service of both families whose endpoint on this node has both addresses in one object of HNS."""
    four, six = at.proxy(), at.proxy(IPV6, primary=False)
    ports = (types.ServicePort(80, node_port=30080),)
    both = service("web", "10.96.0.10", "fd00:10:96::a", type="NodePort", ports=ports)
    for proxy in (four, six):
        proxy.tell(both)
        proxy.tell(endpoints("web", L1, local=(L1,), node="node1"))
        proxy.tell(endpoints("web", L1_6, local=(L1_6,), node="node1", name="web-6"))
    return four, six


def replaced_machine(at: WindowsNode) -> FakeMachine:
    """The same host, as a new process sees it."""
    machine = FakeMachine(("127.0.0.1", "::1", *ADDRESSES.values()), clock=at.clock)
    machine.hns = at.hns.hcn
    return machine


def profile(*, modify: bool = True, affinity: bool = True, dsr: bool = True) -> Profile:
    """A version of Windows with some features."""
    from kubeproxy.windows.values import HnsVersion

    if not dsr:
        return replace(WS2025, version=HnsVersion(9, 2))
    if not affinity:
        return replace(WS2025, version=HnsVersion(11, 10))
    return replace(WS2025, version=HnsVersion(15, 5) if modify else HnsVersion(14, 0))
