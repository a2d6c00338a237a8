"""`verify` and `plan` in ipvs mode: what another program took from the kernel is named."""

import json
from pathlib import Path

import pytest

from kubeproxy.api import types
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station
from tests.kernel.test_plan import plan
from tests.kernel.test_verify import found, run, verify
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab

pytestmark = pytest.mark.vm
WEB = "10.96.0.10"


def station_of(lab: Lab, path: Path) -> Station:
    station = Station(lab, path, mode="ipvs")
    station.folder.put(
        service("web", WEB, ports=[types.ServicePort(80, node_port=30080)], type="NodePort"),
        endpoints("web", EP11, EP12, local=(EP11, EP12), node=NODE_NAME),
    )
    return station


def test_virtual_servers_elements_and_addresses(lab: Lab, tmp_path: Path) -> None:
    station = station_of(lab, tmp_path)
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


def test_rules_of_ipvs_mode_do_what_the_plans_say(lab: Lab, tmp_path: Path) -> None:
    station = station_of(lab, tmp_path)
    with station.running():
        pass
    question = ("verify", "--against", "reference", "--json")
    done = run(station, *question)
    assert done.stdout, done.stderr
    (answer,) = [each for each in json.loads(done.stdout)["families"] if each["family"] == "IPv4"]
    assert answer["rules"].startswith("ipvs (")
    assert (answer["comparison"]["differences"], answer["comparison"]["unknown"]) == ([], [])
    assert (done.returncode, answer["comparison"]["kinds"] > 5) == (0, True)
    lab.run("node", "ipvsadm", "-d", "-t", f"{WEB}:80", "-r", f"{EP12}:8080")
    done = run(station, *question)
    differences = [
        d for each in json.loads(done.stdout)["families"] for d in each["comparison"]["differences"]
    ]
    assert done.returncode == 2
    assert {d["service"] for d in differences} == {"default/web"}
    assert all(EP12 in d["plan"] and EP12 not in d["rules"] for d in differences)
