"""Connections that IPVS counted, by Service port and endpoint; real servers are asked for only where some came."""

from collections.abc import Callable
from typing import Any

from kubeproxy.backends.ipvs.counts import SETTLED_SECONDS, ServerCounter
from kubeproxy.model.node import IPVSSettings, NodeConfig
from kubeproxy.model.plan import Key, PortId, PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint
from kubeproxy.netlink.ipvs import TCP, Real, Virtual

NODE = NodeConfig(name="here", address="192.0.2.1", ipvs=IPVSSettings("", (), False, (0, 0, 0)))
E1, E2 = Endpoint("10.244.1.11", 8080), Endpoint("10.244.1.12", 8080)
R1, R2 = (Real(bytes(map(int, e.address.split("."))), e.port) for e in (E1, E2))
API, WEB = Virtual(TCP, bytes((10, 96, 0, 10)), 80), Virtual(TCP, bytes((10, 96, 0, 11)), 80)
API_PORT: PortId = ("shop/api:http", "TCP")
WEB_PORT: PortId = ("shop/web:http", "TCP")


class Statistics:
    """In place of IPVS."""

    def __init__(self) -> None:
        self.servers: dict[Virtual, dict[Real, int]] = {API: {R1: 3, R2: 4}, WEB: {R1: 0}}
        self.asked: list[Virtual] = []

    def all_connections(self) -> dict[Virtual, int]:
        return {virtual: sum(reals.values()) for virtual, reals in self.servers.items()}

    def connections(self, virtual: Virtual) -> dict[Real, int]:
        self.asked.append(virtual)
        return self.servers.get(virtual, {})


def plan(name: str, ip: str, *endpoints: Endpoint) -> tuple[Key, ServicePlan]:
    port = PortPlan(f"shop/{name}:http", "TCP", 80, ip, cluster=endpoints)
    return ("shop", name), ServicePlan("shop", name, (port,))


def counter(kernel: Any, clock: Callable[[], float] = lambda: 0.0) -> ServerCounter:
    made = ServerCounter(kernel, NODE, clock=clock)
    made.set(*plan("api", "10.96.0.10", E1, E2))
    made.set(*plan("web", "10.96.0.11", E1))
    return made


def test_only_servers_with_new_connections_are_asked() -> None:
    kernel = Statistics()
    passed = iter(range(0, 1000, int(2 * SETTLED_SECONDS)))
    made = counter(kernel, lambda: float(next(passed)))
    api = {(E1.address, 8080): 3, (E2.address, 8080): 4}
    assert made.read() == {API_PORT: api, WEB_PORT: {(E1.address, 8080): 0}}
    assert kernel.asked == [API, WEB]
    made.read()
    assert kernel.asked == [API, WEB]
    kernel.servers[WEB][R1] = 2
    assert made.read() == {API_PORT: api, WEB_PORT: {(E1.address, 8080): 2}}
    assert kernel.asked == [API, WEB, WEB]


def test_real_servers_may_be_counted_later_than_their_virtual_server() -> None:
    kernel = Statistics()
    made = counter(kernel)
    made.read()
    late = kernel.servers[WEB].copy()
    kernel.all_connections = lambda: {API: 7, WEB: 5}  # type: ignore[method-assign]
    made.read()
    assert kernel.servers[WEB] == late
    kernel.servers[WEB][R1] = 5
    assert (made.read() or {})[WEB_PORT] == {(E1.address, 8080): 5}


def test_counts_of_some_services_are_read_at_their_cost() -> None:
    kernel = Statistics()
    made = counter(kernel)
    assert made.read([("shop", "web")]) == {WEB_PORT: {(E1.address, 8080): 0}}
    assert kernel.asked == [WEB]


def test_counts_never_become_lower() -> None:
    kernel = Statistics()
    made = counter(kernel)
    made.read()
    kernel.servers[API] = {R1: 1, R2: 4}  # the real server was removed and came back
    after = made.read()
    assert after is not None
    assert after[API_PORT] == {(E1.address, 8080): 4, (E2.address, 8080): 4}
