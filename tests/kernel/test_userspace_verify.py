"""`verify`, `plan` and `explain` in userspace mode: the rules lead to sockets that only the daemon knows."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeproxy.api import types
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station, ask, until
from tests.kernel.test_explain import explain, sources
from tests.kernel.test_plan import changes, plan
from tests.kernel.test_verify import found, kinds, run, verify
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab

WEB, DNS = "10.96.0.10", "10.96.0.53"
POD = "10.244.1.100"


@pytest.fixture
def station(lab: Lab, tmp_path: Path) -> Station:
    made = Station(lab, tmp_path, mode="userspace")
    made.folder.put(
        service("web", WEB, ports=[types.ServicePort(80, "http", node_port=30080)], type="NodePort"),
        endpoints("web", EP11, EP12, port_name="http", local=(EP11, EP12), node=NODE_NAME),
        service("dns", DNS, ports=[types.ServicePort(53, "dns", "UDP")]),
        endpoints("dns", EP11, port=5353, port_name="dns", protocol="UDP"),
    )
    return made


@pytest.fixture
def running(station: Station) -> Iterator[Station]:
    with station.running():
        yield station


def test_the_kernel_and_the_relay_hold_the_plans(running: Station) -> None:
    assert ask(running.lab, "client", WEB)  # a connection that leads to a socket of the relay
    status, answer = verify(running)
    assert [family["pieces"] for family in answer["families"]] == [[], []]
    assert (status, answer["flows"]) == (0, [])
    assert plan(running) == (0, plan(running)[1])
    code, read, said = explain(running, "--from", POD, "--to", f"{WEB}:80", *sources(running))
    assert (code, read["kernel"]) == (0, "agrees"), said
    assert any(f"{WEB} . tcp . 80" in rule["text"] for rule in read["rules"])


def test_a_rule_that_leads_elsewhere_and_other_endpoints(running: Station, tmp_path: Path) -> None:
    lab = running.lab
    new = tmp_path / "new"
    new.mkdir()
    for file in running.folder.path.glob("*.json"):
        (new / file.name).write_bytes(file.read_bytes())
    other = Station.__new__(Station)
    other.__dict__.update(running.__dict__)
    other.folder = type(running.folder)(new)
    other.folder.put(endpoints("web", EP11, port_name="http", local=(EP11,), node=NODE_NAME))
    pieces = found(other)
    assert kinds(pieces) == {("differs", "default/web")}
    assert all(
        "tcp LISTEN" in piece["holder"] or piece["holder"].startswith("socket tcp") for piece in pieces
    )
    assert any(EP12 in piece["held"] and EP12 not in piece["wanted"] for piece in pieces)
    status, answer = plan(other)
    assert (status, set(changes(answer, "changed"))) == (2, {"default/web"})

    at = f"{WEB} . tcp . 80 . 0"
    lab.run("node", "nft", "delete", "element", "ip", "kube-proxy", "endpoints-1", f"{{ {at} }}")
    until(lambda: verify(running)[0] == 0, "the daemon restores it")


def test_without_a_daemon_nothing_serves(station: Station) -> None:
    with station.running():
        pass
    pieces = found(station)
    assert {"default/web", "default/dns"} <= {piece["service"] for piece in pieces}
    assert any(piece["kind"] == "missing" and "tcp LISTEN" in piece["wanted"] for piece in pieces)
    assert "a start corrects this" in run(station, "verify").stdout
