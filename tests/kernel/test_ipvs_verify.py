"""`verify` and `plan` in ipvs mode: what another program took from the kernel is named."""

from pathlib import Path

import pytest

from kubeproxy.api import types
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station
from tests.kernel.test_plan import plan
from tests.kernel.test_verify import found, verify
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab

pytestmark = pytest.mark.vm
WEB = "10.96.0.10"


def test_virtual_servers_elements_and_addresses(lab: Lab, tmp_path: Path) -> None:
    station = Station(lab, tmp_path, mode="ipvs")
    station.folder.put(
        service("web", WEB, ports=[types.ServicePort(80, node_port=30080)], type="NodePort"),
        endpoints("web", EP11, EP12, local=(EP11, EP12), node=NODE_NAME),
    )
    with station.running():
        pass  # its rules stay, and it repairs nothing
    status, answer = verify(station)
    assert [family["pieces"] for family in answer["families"]] == [[], []]
    assert (status, plan(station)[0]) == (0, 0)
    status, answer = plan(station, "--mode", "nftables")
    assert status == 2
    assert {each["what"] for each in answer["removed"]} >= {"ipvs mode"}
    lab.run("node", "ipvsadm", "-d", "-t", f"{WEB}:80", "-r", f"{EP12}:8080")
    lab.run("node", "ipset", "del", "KUBE-CLUSTER-IP", f"{WEB},tcp:80")
    lab.run("node", "ip", "address", "del", f"{WEB}/32", "dev", "kube-ipvs0")
    pieces = found(station)
    assert {(piece["kind"], piece["service"]) for piece in pieces} == {("missing", "default/web")}
    holders = {piece["holder"] for piece in pieces}
    assert {f"virtual server {WEB}:80/TCP", "set KUBE-CLUSTER-IP", "interface kube-ipvs0"} <= holders
