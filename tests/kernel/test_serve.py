"""What others ask the daemon: health checks of load balancers from outside, probes and scrapes on the node."""

import asyncio
import contextlib
import gzip
import http.client
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kubeproxy.api import types
from tests.fakes.apiserver import FakeApiServer
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import PATIENCE, Station, until
from tests.lab import netns
from tests.lab.daemon import Daemon
from tests.lab.topology import EP11, EP11_6, EP12, NODE_NAME, REMOTE, ROOT, Lab

modes = pytest.mark.parametrize("mode", ["iptables", "nftables"])
NODE, NODE6, BRIDGE = "192.0.2.1", "2001:db8:2::1", "10.244.1.1"
CHECK = 30900


def fetch(
    lab: Lab, role: str, host: str, port: int, path: str = "/", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """What a URL answers to a client somewhere."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with netns.inside(lab.name(role)):
        client = socket.socket(family, socket.SOCK_STREAM)
    with contextlib.closing(http.client.HTTPConnection(host, port)) as connection:
        client.settimeout(PATIENCE / 12)
        connection.sock = client
        client.connect((host, port))
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()


def status(lab: Lab, role: str, host: str, port: int, path: str = "/") -> int | str:
    """The status a URL answers with, or why it does not."""
    try:
        return fetch(lab, role, host, port, path)[0]
    except OSError as e:
        return type(e).__name__


def weight(lab: Lab, host: str = NODE, port: int = CHECK) -> tuple[int, str]:
    """What a load balancer learns from a health-check node port."""
    code, headers, _ = fetch(lab, "out", host, port)
    return code, headers["X-Load-Balancing-Endpoint-Weight"]


def metrics(lab: Lab) -> dict[str, float]:
    """The samples of one scrape, each under its name, or its name and the values of its labels."""
    body = fetch(lab, "node", "127.0.0.1", 10249, "/metrics")[2].decode()
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


def ports(lab: Lab) -> set[int]:
    """The TCP ports that are open on the node."""
    told = lab.run("node", "ss", "-tlnH")
    return {int(line.split()[3].rpartition(":")[2]) for line in told.splitlines()}


def balanced(*ips: str, port: int = CHECK) -> types.Service:
    """A Service whose load balancer asks nodes whether they have endpoints."""
    return service(
        "web",
        *ips,
        type="LoadBalancer",
        balancer=["203.0.113.10"],
        external_traffic_policy="Local",
        health_check_node_port=port,
    )


def web(*addresses: str) -> types.EndpointSlice:
    return endpoints("web", *addresses, local=(EP11, EP12, EP11_6), node=NODE_NAME)


def test_a_scraper_of_the_reference_finds_all_with_its_flags(lab: Lab, tmp_path: Path) -> None:
    """With --bind-address=:: the reference serves where it always does: a scraper must find ours there after a take-over."""
    flags = [
        "--bind-address=::",
        "--proxy-mode=nftables",
        "--version=v1.36.2-x",
        "--feature-gates=NextYearsGate=true",
    ]
    command = [
        sys.executable,
        "-m",
        "kubeproxy",
        f"--manifests={tmp_path}",
        f"--hostname-override={NODE_NAME}",
        *flags,
    ]
    with Daemon(lab, command) as daemon:
        assert fetch(lab, "out", NODE, 10256, "/livez")[0] == 200
        assert status(lab, "out", NODE, 10249, "/metrics") != 200, "metrics are for the node alone"
        code, headers, body = fetch(
            lab, "node", "127.0.0.1", 10249, "/metrics", **{"Accept-Encoding": "gzip, deflate"}
        )
        assert (code, headers["Content-Encoding"]) == (200, "gzip")
        lines = gzip.decompress(body).decode().splitlines()
        assert any(line.startswith("# HELP kubeproxy_proxy_livez_total [ALPHA] ") for line in lines)
        assert any('git_version="v1.36.2-x"' in line for line in lines)
        wish = "application/json;v=v1beta1;g=config.k8s.io;as=Flagz"
        _, headers, body = fetch(lab, "node", "127.0.0.1", 10249, "/flagz", Accept=wish)
        assert (headers["Content-Type"], json.loads(body)["flags"]["bind-address"]) == (
            "application/json",
            "::",
        )
        assert fetch(lab, "node", "127.0.0.1", 10249, "/statusz", Accept="application/json")[0] == 406
        daemon.says("feature gate NextYearsGate is unknown")


@modes
def test_load_balancers_learn_where_endpoints_are(lab: Lab, tmp_path: Path, mode: str) -> None:
    station = Station(lab, tmp_path, mode=mode)
    station.folder.put(
        balanced("10.96.0.10", "fd00:10:96::10"),
        web(EP11, EP12, REMOTE),
        endpoints("web", EP11_6, local=[EP11_6], node=NODE_NAME, name="web-6"),
    )
    if mode == "iptables":
        # The node lets in nothing of itself: rules of ours let health checks in.
        lab.run("node", "iptables-nft", "-P", "INPUT", "DROP")
    with station.running():
        for node in (NODE, NODE6):  # each family has its own ports, in its own time
            until(lambda: status(lab, "out", node, CHECK) == 200)  # noqa: B023 called at once
        assert weight(lab) == (200, "2")
        assert weight(lab, NODE6) == (200, "1")
        station.folder.put(web(EP11, REMOTE))
        until(lambda: weight(lab) == (200, "1"))
        station.folder.put(web(REMOTE))
        until(lambda: weight(lab) == (503, "0"))
        assert weight(lab, NODE6) == (200, "1")
        body = json.loads(fetch(lab, "out", NODE, CHECK)[2])
        assert body["service"] == {"namespace": "default", "name": "web"}
        station.folder.put(balanced("10.96.0.10", port=CHECK + 1), web(EP11))
        until(lambda: status(lab, "out", NODE, CHECK + 1) == 200)
        until(lambda: ports(lab) & {CHECK, CHECK + 1} == {CHECK + 1})
        station.folder.remove("Service", "web")
        until(lambda: not ports(lab) & {CHECK, CHECK + 1})


def test_health_checks_are_on_the_addresses_of_node_ports(lab: Lab, tmp_path: Path) -> None:
    station = Station(lab, tmp_path, mode="nftables", nodePortAddresses=["192.0.2.0/24"])
    station.folder.put(balanced("10.96.0.10"), web(EP11))
    with station.running():
        until(lambda: status(lab, "out", NODE, CHECK) == 200)
        assert status(lab, "client", BRIDGE, CHECK) == "ConnectionRefusedError"
        assert status(lab, "node", "127.0.0.1", CHECK) == "ConnectionRefusedError"
        lab.run("node", "ip", "address", "add", "192.0.2.77/24", "dev", "eth0")
        try:
            until(lambda: status(lab, "node", "192.0.2.77", CHECK) == 200)
        finally:
            lab.run("node", "ip", "address", "del", "192.0.2.77/24", "dev", "eth0")


def test_a_health_port_that_is_taken_is_named_and_opened_when_it_is_free(lab: Lab, tmp_path: Path) -> None:
    station = Station(lab, tmp_path, mode="nftables")
    with netns.inside(lab.name("node")):
        other = socket.create_server(("0.0.0.0", CHECK))
    station.folder.put(balanced("10.96.0.10"), web(EP11))
    with other, station.running() as daemon:
        daemon.says("cannot be opened")
        name = (
            f"Service default/web: health check node port {CHECK} cannot be opened on {NODE}: Address already"
        )
        daemon.says(name)
        other.close()
        until(lambda: status(lab, "out", NODE, CHECK) == 200)


@modes
def test_pages_tell_how_it_fares(lab: Lab, tmp_path: Path, mode: str) -> None:
    station = Station(lab, tmp_path, mode=mode)
    station.folder.put(service("a", "10.96.0.10"), endpoints("a", EP11))
    with station.running() as daemon:
        for host in ("127.0.0.1", "::1", NODE, NODE6):
            assert status(lab, "node", host, 10256, "/healthz") == 200
        assert status(lab, "node", NODE, 10249, "/metrics") == "ConnectionRefusedError"
        body = json.loads(fetch(lab, "node", "127.0.0.1", 10256, "/healthz")[2])
        assert body["healthy"] is True
        assert set(body["status"]) == {"IPv4", "IPv6"}
        assert fetch(lab, "node", "127.0.0.1", 10249, "/proxyMode")[2].decode() == mode
        assert status(lab, "node", "127.0.0.1", 10256, "/readyz") == 200
        before = metrics(lab)
        assert before["kubeproxy_services IPv4"] == 1
        assert before["kubeproxy_sync_full_proxy_rules_duration_seconds_count IPv4"] == 1
        station.folder.put(service("b", "10.96.0.11"), endpoints("b", EP12))
        until(lambda: metrics(lab)["kubeproxy_services IPv4"] == 2)
        after = metrics(lab)
        assert after["kubeproxy_sync_partial_proxy_rules_duration_seconds_count IPv4"] >= 1
        assert after["kubeproxy_sync_full_proxy_rules_duration_seconds_count IPv4"] == 1
        daemon.stop()
        assert status(lab, "node", "127.0.0.1", 10256, "/healthz") == "ConnectionRefusedError"


def test_an_address_that_is_taken_may_be_fatal(lab: Lab, tmp_path: Path) -> None:
    station = Station(lab, tmp_path, mode="nftables", bindAddressHardFail=True)
    with netns.inside(lab.name("node")):
        other = socket.create_server(("0.0.0.0", 10256))
    with other, lab.inside("node"):
        done = subprocess.run(
            station.command(), capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT / "src", check=False
        )
    assert done.returncode == 1
    assert "health cannot be served on 0.0.0.0:10256: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


async def test_with_an_api_server(lab: Lab, tmp_path: Path) -> None:
    """The node leaves; latency is measured from the change in the cluster; watches are told."""
    node: dict[str, Any] = {
        "kind": "Node",
        "metadata": {"name": NODE_NAME},
        "status": {"addresses": [{"type": "InternalIP", "address": NODE}]},
    }

    def slice_(*addresses: str, triggered: str = "2001-01-01T00:00:00Z") -> dict[str, Any]:
        wire: dict[str, Any] = msgspec.to_builtins(web(*addresses))
        wire["kind"] = "EndpointSlice"
        wire["metadata"]["labels"] = {"kubernetes.io/service-name": "web"}
        wire["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": triggered}
        return wire

    server = FakeApiServer()
    server.store.put(node)
    server.store.put({"kind": "Service", **msgspec.to_builtins(service("web", "10.96.0.10"))})
    server.store.put(slice_(EP11))
    with netns.inside(lab.name("node")):
        await server.start()
    station = Station(lab, tmp_path, mode="nftables")
    command = [part for part in station.command() if part not in {"--manifests", str(station.folder.path)}]
    daemon = Daemon(lab, [*command, "--master", server.url], timeout=PATIENCE)
    try:
        await asyncio.to_thread(daemon.__enter__)

        async def page(path: str) -> int | str:
            return await asyncio.to_thread(status, lab, "node", "127.0.0.1", 10256, path)

        async def until_(path: str, code: int) -> None:
            async with asyncio.timeout(PATIENCE):
                while await page(path) != code:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

        assert [await page(path) for path in ("/healthz", "/livez", "/readyz")] == [200, 200, 200]
        server.store.put({**node, "spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler"}]}})
        await until_("/healthz", 503)
        assert [await page(path) for path in ("/livez", "/readyz")] == [200, 200]
        server.store.put(node)
        await until_("/healthz", 200)
        count = "kubeproxy_network_programming_duration_seconds_count IPv4"
        assert (await asyncio.to_thread(metrics, lab))[count] == 0
        server.store.put(slice_(EP12, triggered="2096-10-02T07:06:40Z"))
        async with asyncio.timeout(PATIENCE):
            while (found := await asyncio.to_thread(metrics, lab))[count] != 1:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert found["kubeproxy_watch_connected Service"] == 1
        assert found["kubeproxy_watch_objects EndpointSlice"] == 1
    finally:
        await asyncio.to_thread(daemon.__exit__, None, None, None)
        await server.stop()
