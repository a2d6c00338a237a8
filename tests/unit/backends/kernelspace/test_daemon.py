"""The whole daemon with the flags of Windows, on a host in memory with an HNS and an API server."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from kubeproxy import backends
from kubeproxy.api import types
from kubeproxy.app import App
from kubeproxy.clock import SystemClock
from kubeproxy.config import watch
from kubeproxy.config.load import load
from kubeproxy.model.plan import Key
from kubeproxy.windows import errors
from kubeproxy.windows.fake_profiles import WS2019, WS2022, WS2025, Profile
from tests.fakes.apiserver import FakeApiServer
from tests.fakes.cluster import endpoints, service
from tests.fakes.hns import L1, NETWORK, R1, WindowsNode
from tests.fakes.nodes import node, running, served

WEB: Key = ("default", "web")


def free_ports() -> list[int]:
    """Two ports on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return [each.getsockname()[1] for each in (one, other)]


def daemon(windows: WindowsNode, server: FakeApiServer, **flags: Any) -> App:
    given = {
        "hostname-override": "node1",
        "master": server.url,
        "healthz-port": 0,
        "metrics-port": 0,
        "network-name": NETWORK,
        "enable-dsr": True,
        **flags,
    }
    windows.machine.clock = SystemClock()
    return App(load(given, "win32"), windows.machine)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 HNS in memory reports nothing
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("profile", [WS2019, WS2022, WS2025])
async def test_services_come_change_and_go(profile: Profile) -> None:
    windows = WindowsNode(profile)
    async with FakeApiServer() as server:
        server.store.put(node("node1", "192.0.2.1"))
        server.store.put(served(service("web", "10.96.0.10")))
        server.store.put(served(endpoints("web", L1, R1, local=(L1,), node="node1")))
        app = daemon(windows, server)
        async with running([app]):
            await until(lambda: windows.balancers() == [f"10.96.0.10:80>8080/TCP F=1 M=0 {{{L1},{R1}}}"])
            server.store.put(served(endpoints("web", L1, local=(L1,), node="node1")))
            await until(lambda: windows.balancers() == [f"10.96.0.10:80>8080/TCP F=1 M=0 {{{L1}}}"])
        # The end of the daemon leaves what it has made, and the next one keeps it.
        (ident,) = windows.hns.load_balancers()
        async with running([daemon(windows, server)]):
            server.store.put(served(service("more", "10.96.0.11")))
            server.store.put(served(endpoints("more", L1, local=(L1,), node="node1")))
            await until(lambda: len(windows.balancers()) == 2)
        assert ident in windows.hns.load_balancers()
    options = load({"network-name": NETWORK}, "win32")
    backends.cleanup(windows.machine, "kernelspace", config=options.config, platform="win32")
    assert windows.balancers() == []
    assert windows.endpoints() == sorted(["10.244.1.11 local", "10.244.1.12 local"])


async def test_what_hns_refuses_is_an_event_and_is_retried() -> None:
    windows = WindowsNode()
    windows.hns.fail("HcnCreateLoadBalancer", errors.PORT_ALREADY_EXISTS, times=2, naming="10.96.0.10")
    async with FakeApiServer() as server:
        server.store.put(node("node1", "192.0.2.1"))
        for name, ip in (("web", "10.96.0.10"), ("api", "10.96.0.11")):
            server.store.put(served(service(name, ip)))
            server.store.put(served(endpoints(name, L1, local=(L1,), node="node1")))
        async with running([daemon(windows, server)]):
            await until(lambda: len(windows.balancers()) == 1)
            await until(lambda: any("10.96.0.10" in event.get("note", "") for event in server.events))
            await until(lambda: len(windows.balancers()) == 2)


async def test_health_checks_follow_the_port_of_the_health_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch.follow, "__kwdefaults__", {"look": 0.05, "settle": 0.02})
    monkeypatch.setattr(watch, "sys", SimpleNamespace(platform="win32"))
    file = tmp_path / "config.yaml"

    def write(healthz: str) -> None:
        given = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "healthzBindAddress": healthz,
            "metricsBindAddress": "",
            "winkernel": {"networkName": NETWORK, "forwardHealthCheckVip": True},
        }
        file.write_text(yaml.safe_dump(given))

    windows = WindowsNode(root_endpoint="cbr0")
    windows.add_local("10.244.1.2", name="cbr0")
    windows.machine.clock = SystemClock()
    ports = free_ports()
    write(f"127.0.0.1:{ports[0]}")
    async with FakeApiServer() as server:
        server.store.put(node("node1", "192.0.2.1"))
        server.store.put(served(service("web", "10.96.0.10", balancer=("203.0.113.1",), type="LoadBalancer")))
        server.store.put(served(endpoints("web", L1, local=(L1,), node="node1")))
        flags = {"config": str(file), "master": server.url, "hostname-override": "node1"}

        def health(port: int) -> str:
            return f"203.0.113.1:{port}>{port}/TCP F=0 M=0 {{10.244.1.2}}"

        async with running([App(load(flags, "win32"), windows.machine)]):
            await until(lambda: health(ports[0]) in windows.balancers())
            write(f"127.0.0.1:{ports[1]}")
            await until(lambda: health(ports[1]) in windows.balancers())
            await until(lambda: health(ports[0]) not in windows.balancers())
            assert len(windows.balancers()) == 3


async def test_sources_of_node_ports_that_are_not_limited_are_reported() -> None:
    windows = WindowsNode()
    limited = served(
        service("web", "10.96.0.10", type="NodePort", ports=(types.ServicePort(80, node_port=30080),))
    )
    limited["metadata"]["annotations"] = {"kube-proxy/allowed-sources": "192.0.2.0/24"}
    async with FakeApiServer() as server:
        server.store.put(node("node1", "192.0.2.1"))
        server.store.put(limited)
        server.store.put(served(endpoints("web", L1, local=(L1,), node="node1")))
        async with running([daemon(windows, server)]):
            await until(lambda: f"*:30080>8080/TCP F=0 M=18 {{{L1}}}" in windows.balancers())
            await until(lambda: any(each.get("reason") == "SourcesNotLimited" for each in server.events))
