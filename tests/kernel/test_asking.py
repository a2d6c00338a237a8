"""A running daemon answers `explain` from what it knows, and lists connections; only root and its own user may ask."""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubeproxy.api import types
from kubeproxy.insight import daemon as asked
from kubeproxy.machine.linux import LinuxMachine
from tests.fakes.cluster import endpoints, service
from tests.fakes.store import KINDS, Kind
from tests.kernel.daemons import Station, until
from tests.kernel.test_drills import ApiServer, node, served
from tests.kernel.test_explain import explain, sources
from tests.lab import netns
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab

WEB = "10.96.0.10"
POD = "10.244.1.100"
GONE = "10.244.1.250"  # an address of no Pod


@pytest.fixture
def station(lab: Lab, tmp_path: Path) -> Iterator[Station]:
    made = Station(lab, tmp_path, mode="nftables")
    made.folder.put(
        service("web", WEB),
        endpoints("web", EP11, EP12, local=(EP11, EP12), node=NODE_NAME),
        service("gone", "10.96.0.12"),
    )
    with made.running():
        yield made


def command(station: Station, *arguments: str) -> tuple[int, str, str]:
    """Exit status, output and complaints of a command in the namespace of this thread."""
    done = subprocess.run(
        [sys.executable, "-m", "kubeproxy", *arguments, *sources(station)],
        check=False, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def question(station: Station, source: str, destination: str) -> Any:
    with station.lab.inside("node"):
        return asked.ask(LinuxMachine(), source, destination, "")


def test_the_daemon_says_what_the_command_says(station: Station) -> None:
    for destination in (f"{WEB}:80", "web.default", "gone.default:80", f"{WEB}:81", "10.96.0.99:80/udp"):
        told = question(station, POD, destination)
        assert told is not None
        assert told.kernel == "agrees", told.differences
        _, read, said = explain(station, "--from", POD, "--to", destination, *sources(station))
        _, found, _ = explain(station, "--from", POD, "--to", destination)
        assert found == read, said
        assert (told.verdict, told.service) == (read["verdict"], read["service"])


def test_it_knows_of_changes(station: Station) -> None:
    station.folder.put(endpoints("web", EP11, local=(EP11,), node=NODE_NAME))
    until(lambda: [each.address for each in question(station, POD, f"{WEB}:80").endpoints] == [EP11])


def test_it_has_observed_how_long_changes_took(station: Station) -> None:
    def counts() -> dict[str, int]:
        with station.lab.inside("node"):
            found = asked.observed(LinuxMachine())
        assert found is not None
        return {each.kind: each.count for each in found.convergence if each.since == "received"}

    before = counts()
    station.folder.put(endpoints("web", EP11, local=(EP11,), node=NODE_NAME), service("new", "10.96.0.13"))
    until(lambda: counts() == {**before, "endpoint_removed": 1, "service_added": 1})
    with station.lab.inside("node"):
        code, out, said = command(station, "top", "--once", "--interval", "0.2")
    assert code == 0, said
    assert "an endpoint that goes gets no new connection after" in out
    assert "(p99.9 of 1 change, " in out


@pytest.mark.parametrize(
    ("source", "destination", "message"),
    [
        (POD, "wep.default", "did you mean default/web?"),
        ("nobody", f"{WEB}:80", "a source is an address"),
        (POD, f"{WEB}:80/tpc", "'tpc' is not a protocol"),
        (POD, "", "a destination is ADDRESS:PORT"),
        (POD, ":http", "a node port is written as :PORT"),
    ],
)
def test_a_wrong_question_is_refused(station: Station, source: str, destination: str, message: str) -> None:
    code, _, said = explain(station, "--from", source, "--to", destination)
    assert code == 1
    assert message in said
    assert len(said.splitlines()) == 1


def test_a_pod_is_looked_up_for_the_daemon(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "Pod", Kind("Pod", "v1", "pods"))
    pod = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "cart-0"},
        "status": {"podIP": POD, "podIPs": [{"ip": POD}, {"ip": "fd00:10:244:1::64"}]},
    }  # fmt: skip
    with ApiServer(lab) as api:
        api.put(node(), service("web", WEB), endpoints("web", EP11, local=(EP11,), node=NODE_NAME))

        async def put() -> None:
            api.server.store.put(pod)

        api.do(put)
        with served(lab, tmp_path, "nftables", api):
            asked = Station(lab, tmp_path, mode="nftables")
            lists = len(api.server.asked("Service", "list"))
            code, found, said = explain(asked, "--from", "pod/shop/cart-0", "--to", "web.default:80")
            assert (code, found["from"], found["kernel"]) == (0, POD, "agrees"), said
            assert len(api.server.asked("Service", "list")) == lists
            code, _, said = explain(asked, "--from", "pod/shop/cart-1", "--to", "web.default:80")
            assert code == 1
            assert "pods/cart-1 cannot be read" in said
            assert len(said.splitlines()) == 1


def test_other_users_get_no_answer(station: Station) -> None:
    code = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('\\0kube-proxy/answers');"
        f"s.sendall(b'GET /explain?from={POD}&to={WEB}:80 HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n');"
        "print(s.makefile('rb').read()[:15])"
    )
    said = []
    for user in ("0", "65534"):
        with station.lab.inside("node"):
            done = subprocess.run(
                ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", sys.executable, "-I", "-c", code],
                check=False, capture_output=True, text=True, timeout=120,
            )  # fmt: skip
        said.append((done.stdout.strip(), (done.stderr.splitlines() or [""])[-1]))
    assert said[0][0] == "b'HTTP/1.1 200 OK'", said
    assert said[1][0] == "b''" or "Error" in said[1][1], said


def test_a_socket_of_another_user_is_not_believed(lab: Lab) -> None:
    code = "import socket; s = socket.socket(socket.AF_UNIX); s.bind('\\0kube-proxy/answers'); s.listen(); print('up', flush=True); s.accept()[0].recv(9)"
    with lab.inside("node"):
        other = subprocess.Popen(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", code],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"up\n"
            assert asked.ask(LinuxMachine(), POD, f"{WEB}:80", "") is None
        finally:
            other.kill()
            other.communicate()


def test_open_connections_and_where_they_go(station: Station) -> None:
    with netns.inside(station.lab.name("client")):
        connections = [socket.socket() for _ in range(4)]
    try:
        for connection in connections:
            connection.settimeout(30)
            connection.connect((WEB, 80))
        clients = {f"{POD}:{connection.getsockname()[1]}" for connection in connections}
        _, found, _ = explain(station, "--from", POD, "--to", f"{WEB}:80", "--follow")
        flows = {flow["client"]: flow for flow in found["flows"]["flows"]}
        assert clients & flows.keys()
        for flow in flows.values():
            assert flow["endpoint"] in {f"{EP11}:8080", f"{EP12}:8080"}
            assert flow["expected"]
        assert sum(found["flows"]["endpoints"].values()) == len(flows)
        _, other, _ = explain(station, "--from", EP11, "--to", f"{WEB}:80", "--follow")
        assert other["flows"]["flows"] == []
        busy = next(iter(flows.values()))["endpoint"].partition(":")[0]
        left = EP12 if busy == EP11 else EP11
        station.folder.put(endpoints("web", left, local=(left,), node=NODE_NAME))
        until(lambda: [each.address for each in question(station, POD, f"{WEB}:80").endpoints] == [left])
        _, found, _ = explain(station, "--from", POD, "--to", f"{WEB}:80", "--follow")
        assert {flow["endpoint"]: flow["expected"] for flow in found["flows"]["flows"]}.get(
            f"{busy}:8080", False
        ) is False
    finally:
        for connection in connections:
            connection.close()


def test_in_userspace_mode_the_daemon_knows_its_sockets(lab: Lab, tmp_path: Path) -> None:
    station = Station(lab, tmp_path, mode="userspace")
    station.folder.put(service("web", WEB), endpoints("web", EP11, EP12, local=(EP11, EP12), node=NODE_NAME))
    with station.running():
        for destination in (f"{WEB}:80", f"{WEB}:81", "10.96.0.99:80"):
            found = question(station, POD, destination)
            assert (found.kernel, found.differences) == ("agrees", ()), destination
        found = question(station, POD, f"{WEB}:80")
        assert any(f"{WEB} . tcp . 80" in rule.text for rule in found.rules)
        _, read, _ = explain(station, "--from", POD, "--to", f"{WEB}:80", "--node", NODE_NAME)
        assert (read["kernel"], read["verdict"], read["differences"]) == ("agrees", "forward", [])
        _, seen, _ = explain(station, "--from", POD, "--to", f"{WEB}:80", "--live", "1", "--timeout", "1")
        assert "packets of clients end at its sockets" in seen["live"]["cannot"]


def test_in_userspace_mode_open_connections_are_those_of_the_relay(lab: Lab, tmp_path: Path) -> None:
    """Of one client and one front, with the endpoint that each has."""
    station = Station(lab, tmp_path, mode="userspace")
    ports = [types.ServicePort(80, "tcp", node_port=30080), types.ServicePort(53, "udp", "UDP")]
    station.folder.put(
        service("web", WEB, ports=ports, type="NodePort"),
        endpoints("web", EP11, EP12, local=(EP11, EP12), node=NODE_NAME, port_name="tcp"),
        endpoints("web", EP11, name="web-2", port_name="udp", port=5353, protocol="UDP"),
    )
    question_ = ("--from", POD, "--to", f"{WEB}:80", "--follow")
    with station.running(), contextlib.ExitStack() as stack:
        with netns.inside(lab.name("client")):
            clients = [stack.enter_context(socket.create_connection((WEB, 80), 30)) for _ in range(4)]
            talker = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        for client in clients:
            assert client.recv(10)
        with netns.inside(lab.name("out")):
            other = stack.enter_context(socket.create_connection(("192.0.2.1", 30080), 30))
        assert other.recv(10)
        _, found, _ = explain(station, *question_)
        flows = {flow["client"]: flow for flow in found["flows"]["flows"]}
        assert flows.keys() == {f"{POD}:{client.getsockname()[1]}" for client in clients}
        assert found["flows"]["endpoints"] == {f"{EP11}:8080": 2, f"{EP12}:8080": 2}
        assert all(flow["expected"] and flow["state"] == "ESTABLISHED" for flow in flows.values())
        station.folder.put(endpoints("web", GONE, port_name="tcp"))
        until(lambda: [each.address for each in question(station, POD, f"{WEB}:80").endpoints] == [GONE])
        _, found, _ = explain(station, *question_)
        assert {flow["client"] for flow in found["flows"]["flows"] if not flow["expected"]} == flows.keys()
        talker.connect((WEB, 53))
        talker.settimeout(30)
        talker.send(b"?")
        assert talker.recv(100)
        _, found, _ = explain(station, "--from", POD, "--to", f"{WEB}:53/udp", "--follow")
        assert [flow["endpoint"] for flow in found["flows"]["flows"]] == [f"{EP11}:5353"]
        _, found, _ = explain(station, "--from", EP11, "--to", f"{WEB}:80", "--follow")
        assert found["flows"]["flows"] == []
    _, found, _ = explain(station, *question_, *sources(station))
    assert "does not answer" in found["flows"]["cannot"]
