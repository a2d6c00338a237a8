"""`explain` in ipvs mode: virtual servers, sets, addresses and rules are compared with what a packet needs."""

from pathlib import Path

import pytest

from kubeproxy.api import types
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station
from tests.kernel.test_explain import explain, sources
from tests.kernel.test_live import POD, Node
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab

pytestmark = pytest.mark.vm
WEB, EMPTY = "10.96.0.10", "10.96.0.11"


def test_the_kernel_agrees_and_changes_are_named(lab: Lab, tmp_path: Path) -> None:
    station = Station(lab, tmp_path, mode="ipvs")
    station.folder.put(
        service("web", WEB, ports=[types.ServicePort(80, node_port=30080)], type="NodePort"),
        endpoints("web", EP11, EP12, local=(EP11, EP12), node=NODE_NAME),
        service("empty", EMPTY),
    )
    with station.running():
        pass  # its rules stay, and it repairs nothing
    flags = sources(station)
    for source, destination in (
        (EP11, f"{WEB}:80"),
        ("node", f"{WEB}:80"),
        ("198.51.100.7", ":30080"),
        (EP11, f"{WEB}:81"),
        (EP11, f"{EMPTY}:80"),
        (EP11, "10.96.0.99:80"),
    ):
        _, found, said = explain(station, "--from", source, "--to", destination, *flags)
        assert (found["kernel"], found["differences"]) == ("agrees", []), (destination, said)
    _, found, _ = explain(station, "--from", EP11, "--to", f"{WEB}:80", *flags)
    rules = [rule["text"] for rule in found["rules"]]
    assert f"-A -t {WEB}:80 -s rr" in rules
    assert f"-a -t {WEB}:80 -r {EP12}:8080 -m -w 1" in rules
    assert f"add KUBE-CLUSTER-IP {WEB},tcp:80" in rules
    lab.run("node", "ipvsadm", "-d", "-t", f"{WEB}:80", "-r", f"{EP12}:8080")
    lab.run("node", "ipset", "del", "KUBE-CLUSTER-IP", f"{WEB},tcp:80")
    code, found, _ = explain(station, "--from", EP11, "--to", f"{WEB}:80", *flags)
    assert (code, found["kernel"]) == (5, "differs")
    assert f"the kernel lacks: -a -t {WEB}:80 -r {EP12}:8080 -m -w 1" in found["differences"]
    assert f"the kernel lacks: add KUBE-CLUSTER-IP {WEB},tcp:80" in found["differences"]


@pytest.mark.parametrize(
    ("role", "source", "address", "port"),
    [("client", POD, WEB, 80), ("node", "node", WEB, 80), ("out", "198.51.100.7", "192.0.2.1", 30080)],
)
def test_packets_do_what_was_predicted(
    lab: Lab, tmp_path: Path, role: str, source: str, address: str, port: int
) -> None:
    station = Station(lab, tmp_path, mode="ipvs")
    station.folder.put(
        service("web", WEB, ports=[types.ServicePort(80, node_port=30080)], type="NodePort"),
        endpoints("web", EP11, EP12, local=(EP11, EP12), node=NODE_NAME),
    )
    with station.running() as daemon:
        code, found = Node(lab, station, daemon).live(role, source, address, port)
        live = found["live"]
        assert (code, live["matches"], live["differs"], live["cannot"]) == (0, 4, 0, ""), live
        assert {packet["answer"] for packet in live["packets"]} == {"came"}
