"""`plan` on a node: what a start changes, before it does; and that it writes nothing."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from kubeproxy.api import types
from tests.fakes.cluster import annotated, endpoints, service
from tests.kernel.daemons import Station
from tests.kernel.test_verify import DNS, WEB, WEB6, run, station_of
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab

MODES = ("nftables", "iptables-nf_tables", "iptables-legacy")


@pytest.fixture(params=MODES)
def station(request: pytest.FixtureRequest, lab: Lab, tmp_path: Path) -> Station:
    return station_of(lab, tmp_path, request.param)


def plan(station: Station, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit status and answer."""
    done = run(station, "plan", "--json", *arguments)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def changes(answer: dict[str, Any], *kinds: str) -> dict[str, dict[str, Any]]:
    return {each["service"]: each for each in answer["changes"] if each["change"] in kinds}


def test_nothing_to_do(station: Station) -> None:
    status, answer = plan(station)
    assert (answer["changes"], answer["removed"], status) == ([], [], 0)
    assert answer["untouched"] == answer["services"] == 3
    assert "nothing changes" in run(station, "plan").stdout


def test_new_gone_and_changed_services(station: Station) -> None:
    folder = station.folder
    folder.remove("Service", "dns")
    folder.remove("EndpointSlice", "dns-1")
    folder.put(
        service("new", "10.96.0.77", ports=[types.ServicePort(80, "a", node_port=30444)], type="NodePort"),
        endpoints("new", EP12, port=81, port_name="a"),
        endpoints("web", EP11, "10.244.1.13", port_name="http", local=(EP11,), node=NODE_NAME),
    )
    before = run(station, "verify", "--json").stdout
    status, answer = plan(station)
    assert status == 2
    new, changed = changes(answer, "new"), changes(answer, "changed")
    assert new.keys() == {"default/new"}
    assert set(new["default/new"]["gained"]) == {"10.96.0.77:80/TCP", "node port 30444/TCP"}
    assert "1 endpoint" in new["default/new"]["what"]
    assert changed.keys() == {"default/web"}
    assert changed["default/web"]["what"] == f"endpoint {EP12}:8080 -> 10.244.1.13:8080"
    (gone,) = [each for each in answer["changes"] if each["change"] == "gone"]
    assert gone["lost"] == [f"{DNS}:53/UDP"]
    assert gone["service"] in {"", "default/dns"}
    text = run(station, "plan", "--diff").stdout
    assert "+ IPv4 Service default/new" in text
    assert any("10.96.0.77" in line for line in text.splitlines() if line.startswith("      + "))
    assert any(DNS in line for line in text.splitlines() if line.startswith("      - "))
    assert run(station, "verify", "--json").stdout == before


def test_a_node_port_that_leaves_with_its_connections(station: Station) -> None:
    lab = station.lab
    station.folder.put(service("web", WEB, WEB6, ports=[types.ServicePort(80, "http")]))
    with lab.inside("client"):
        client = socket.create_connection(("192.0.2.1", 30080), timeout=20)
    with client:
        assert client.recv(1)
        status, answer = plan(station)
        text = run(station, "plan").stdout
    assert status == 2
    (web,) = [each for each in answer["changes"] if (each["family"], each["change"]) == ("IPv4", "changed")]
    assert (web["service"], web["flows"]) == ("default/web", 1)
    assert web["lost"] == ["203.0.113.9:80/TCP", "node port 30080/TCP"]
    assert "! IPv4" in text
    assert "node port 30080/TCP leaves" in text
    assert "1 established flow that leads there" in text


@pytest.mark.parametrize("other", ["nftables", "iptables"])
def test_another_mode(lab: Lab, tmp_path: Path, other: str) -> None:
    station = station_of(lab, tmp_path, "iptables-nf_tables" if other == "nftables" else "nftables")
    status, answer = plan(station, "--mode", other)
    assert (status, answer["mode"]) == (2, other)
    assert {"default/web", "default/dns", "default/empty"} == changes(answer, "new").keys()
    old = "iptables mode (nf_tables iptables)" if other == "nftables" else "nftables mode"
    assert {each["what"] for each in answer["removed"]} == {old}
    assert any(WEB in line for each in answer["removed"] for line in each["lines"])


def test_two_sets_of_manifests(station: Station, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for file in station.folder.path.glob("*.json"):
        (old / file.name).write_bytes(file.read_bytes())
    status, answer = plan(station, "--against", str(old))
    assert (status, answer["changes"]) == (0, [])
    station.folder.remove("Service", "dns")
    station.folder.put(
        service("new", "10.96.0.77"),
        endpoints("web", EP11, "10.244.1.13", port_name="http", local=(EP11,), node=NODE_NAME),
    )
    status, answer = plan(station, "--against", str(old))
    assert status == 2
    assert changes(answer, "new").keys() == {"default/new"}
    assert changes(answer, "gone")["default/dns"]["lost"] == [f"{DNS}:53/UDP"]
    assert changes(answer, "changed")["default/web"]["what"] == f"endpoint {EP12}:8080 -> 10.244.1.13:8080"
    assert all(each["pieces"] for each in answer["changes"])
    shutil.rmtree(old)
    shutil.copytree(station.folder.path, old)
    ports = [types.ServicePort(80, "http")]
    station.folder.put(annotated(service("new", "10.96.0.77", ports=ports), weights="*=1"))
    station.folder.put(endpoints("new", EP11, EP12, port_name="http"))
    shutil.copytree(station.folder.path, old, dirs_exist_ok=True)
    station.folder.put(annotated(service("new", "10.96.0.77", ports=ports), weights=f"address:{EP11}=3, *=1"))
    status, answer = plan(station, "--against", str(old))
    assert changes(answer, "changed")["default/new"]["what"] == "how connections are divided among endpoints"
    done = run(station, "plan", "--against", "/nowhere")
    assert (done.returncode, "--against /nowhere: there is no such file" in done.stderr) == (1, True)
    done = run(station, "plan", "--mode", "ipvs")
    assert (done.returncode, "the kernel has no IPVS" in done.stderr) == (1, True)
    done = run(station, "plan", "--mode", "magic")
    assert (done.returncode, done.stderr.count("Error: ")) == (1, 1)
