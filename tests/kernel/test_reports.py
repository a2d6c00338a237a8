"""What is wrong and does not stop the daemon: it says so once, and counts it."""

import re
from pathlib import Path

import pytest

from kubeproxy.api import types
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station, ask, until
from tests.kernel.test_serve import metrics
from tests.lab import netns
from tests.lab.topology import EP11, NODE_NAME, Lab

WEB = "10.96.0.10"
FORWARD = "net/ipv4/ip_forward"


def said(log: str, words: str) -> int:
    return len(re.findall(re.escape(words), log))


def test_a_service_that_serves_nobody_is_said_once(lab: Lab, tmp_path: Path) -> None:
    station = Station(lab, tmp_path, mode="nftables", clusterCidr="10.0.0.0/8")
    station.folder.put(
        service("none", "10.96.0.11"),
        service("names", "10.96.0.12", ports=[types.ServicePort(80, "http")]),
        endpoints("names", EP11, port_name="web"),
        endpoints("nobody", EP11),
        service("web", WEB),
        endpoints("web", EP11, local=[EP11], node=NODE_NAME),
    )
    lines = [
        'ignored unknown field "clusterCidr"; did you mean "clusterCIDR"?',
        "Service default/none: it has no endpoints, connections to it are rejected",
        "Service default/names: port http/TCP is in none of its EndpointSlices",
        "Service default/names: its EndpointSlices have port web/TCP, which the Service does not have",
        "Service default/nobody: there is no such Service, EndpointSlice default/nobody-1 is ignored",
    ]
    with station.running() as daemon:
        for line in lines:
            daemon.says(line)
        found = "kubeproxy_service_findings "
        until(lambda: metrics(lab)[f"{found}NoEndpoints"] == 1)
        before = metrics(lab)
        assert before[f"{found}PortWithoutEndpoints"] == before[f"{found}NoService"] == 1
        assert before["kubeproxy_config_unknown_fields"] == 1
        station.folder.put(service("new", "10.96.0.13"), endpoints("new", EP11), endpoints("web"))
        daemon.says("Service default/web: it has no endpoints, connections to it are rejected")
        assert metrics(lab)[f"{found}NoEndpoints"] == 2
        station.folder.put(endpoints("web", EP11))
        daemon.says("Service default/web: it has endpoints now")
        for line in lines:
            assert said(daemon.log(), line) == 1, line
        assert "default/new" not in daemon.log()


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_forwarding_that_is_off_is_said_when_it_goes_off(lab: Lab, tmp_path: Path, mode: str) -> None:
    station = Station(lab, tmp_path, mode=mode)
    station.folder.put(service("web", WEB), endpoints("web", EP11))
    off, on = "IPv4 forwarding is off (net.ipv4.ip_forward is 0)", "IPv4 forwarding is on now"
    gauge = "kubeproxy_forwarding_enabled IPv4"
    netns.write_sysctls(lab.name("node"), {FORWARD: "0"})
    try:
        with station.running() as daemon:
            daemon.says(off)
            assert metrics(lab)[gauge] == 0
            assert "IPv6 forwarding" not in daemon.log(), "it has no Services"
            netns.write_sysctls(lab.name("node"), {FORWARD: "1"})
            daemon.says(on)
            assert metrics(lab)[gauge] == 1
            assert ask(lab, "client", WEB) == EP11
            netns.write_sysctls(lab.name("node"), {FORWARD: "0"})
            until(lambda: said(daemon.log(), off) == 2)
    finally:
        netns.write_sysctls(lab.name("node"), {FORWARD: "1"})


def test_how_full_the_connection_table_is(lab: Lab, tmp_path: Path) -> None:
    station = Station(lab, tmp_path, mode="nftables", conntrack={"maxPerCore": 0})
    station.folder.put(service("web", WEB), endpoints("web", EP11))
    with station.running():
        for _ in range(3):
            assert ask(lab, "client", WEB) == EP11
        found = metrics(lab)
        with lab.inside("node"):
            most = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
        assert found["kubeproxy_conntrack_entries_limit"] == most
        assert found["kubeproxy_conntrack_entries"] >= 3
