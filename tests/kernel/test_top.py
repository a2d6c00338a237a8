"""`kube-proxy top` on a node with real traffic: its counts are the connections that were made."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kubeproxy.api import types
from kubeproxy.backends.programs import Variant
from kubeproxy.config.load import load
from kubeproxy.insight.origin import Origin
from kubeproxy.insight.snapshot import take
from kubeproxy.insight.top.values import TopPort
from kubeproxy.insight.top.watch import TopWatch
from kubeproxy.machine.linux import LinuxMachine
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station, ask, asked, until
from tests.lab import kernel, netns
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab

WEB, DEAD = "10.96.0.10", "10.96.0.11"
WEB6, SIX = "fd00:10:96::10", "fd00:10:244:1::b"
GONE = "10.244.1.250"  # an address of no Pod
MODES: dict[str, tuple[str, Variant]] = {
    "nftables": ("nftables", "nf_tables"),
    "iptables-nf_tables": ("iptables", "nf_tables"),
    "iptables-legacy": ("iptables", "legacy"),
}


def fill(station: Station) -> None:
    station.folder.put(
        service("web", WEB, WEB6, ports=[types.ServicePort(80, node_port=30080)], type="NodePort"),
        endpoints("web", EP11, EP12, local=(EP11, EP12), node=NODE_NAME),
        endpoints("web", SIX, name="web-6"),
        service("dead", DEAD),
        endpoints("dead", EP11, GONE, local=(EP11, GONE), node=NODE_NAME),
    )


@pytest.fixture(params=MODES)
def station(request: pytest.FixtureRequest, lab: Lab, tmp_path: Path) -> Station:
    """A station whose daemon has run; its rules are there."""
    mode, variant = MODES[request.param]
    made = Station(lab, tmp_path, variant, mode=mode)
    fill(made)
    with made.running():
        pass
    return made


@contextlib.contextmanager
def watching(station: Station) -> Iterator[TopWatch]:
    """The sources of `kube-proxy top` on the node."""
    flags = {
        "config": str(station.config),
        "manifests": (str(station.folder.path),),
        "hostname-override": NODE_NAME,
    }
    with pytest.MonkeyPatch.context() as patch, station.lab.inside("node"):
        patch.setenv(
            "PATH", f"{station.config.parent / 'programs'}:{os.environ['PATH']}"
        )  # those the daemon had
        machine = LinuxMachine()
        taken = asyncio.run(take(Origin(load(flags, "linux")), machine))
        with contextlib.closing(TopWatch(taken, machine)) as watch:
            watch.look(everything=True)
            yield watch


def port(watch: TopWatch, name: str, family: str = "IPv4") -> TopPort:
    """The one port of a Service, after everything was read again."""
    watch.look(everything=True)
    (found,) = watch.top(lambda key: key == ("default", name)).services
    return next(each for each in found.ports if each.family == family)


def test_connections_are_counted_by_endpoint(station: Station) -> None:
    with watching(station) as watch:
        for role, address, number in (("client", WEB, 80), ("out", "192.0.2.1", 30080), ("node", WEB, 80)):
            before = {each.address: each.connections or 0 for each in port(watch, "web").endpoints}
            answered = asked(station.lab, role, address, number, times=30)
            found = port(watch, "web")
            counted = {
                each.address: (each.connections or 0) - before[each.address] for each in found.endpoints
            }
            assert counted == {EP11: answered[EP11], EP12: answered[EP12]}, (role, watch.top())
        assert found.connections == 90
        assert sum(each.share or 0 for each in found.endpoints) == pytest.approx(1, abs=1e-3)
        assert found.connections_per_second
        assert (found.unanswered, found.waiting, found.uneven) == (0, 0, False)
        assert ask(station.lab, "client", WEB6) == SIX
        assert port(watch, "web", "IPv6").connections == 1
        assert port(watch, "web").connections == 90
        assert watch.top().sources.losses == 0


def test_an_endpoint_that_does_not_answer_is_shown(station: Station) -> None:
    with watching(station) as watch:
        clients = []
        try:
            with netns.inside(station.lab.name("client")):
                for _ in range(24):
                    client = socket.socket()
                    client.setblocking(False)
                    client.connect_ex((DEAD, 80))
                    clients.append(client)
            until(lambda: (port(watch, "dead").connections or 0) >= 24)
            found = {each.address: each for each in port(watch, "dead").endpoints}
            dead = found[GONE]
            assert dead.waiting
            assert dead.waiting == dead.connections
            assert found[EP11].waiting == 0
            until(
                lambda: all(
                    each.open == each.connections
                    for each in port(watch, "dead").endpoints
                    if each.address == EP11
                )
            )
        finally:
            for client in clients:
                client.close()
        kernel.flush_conntrack(station.lab.name("node"))
        until(lambda: (port(watch, "dead").unanswered or 0) > 0)
        found = {each.address: each for each in port(watch, "dead").endpoints}
        assert (found[GONE].unanswered, found[EP11].unanswered) == (dead.connections, 0)
        assert found[GONE].waiting == 0


def run(station: Station, *arguments: str, prefix: Sequence[str] = ()) -> tuple[int, str, str]:
    """Exit status, output, and what is said beside it."""
    environment = {**os.environ, "PATH": f"{station.config.parent / 'programs'}:{os.environ['PATH']}"}
    flags = ("--config", str(station.config), "--manifests", str(station.folder.path))
    command = [*prefix, sys.executable, "-m", "kubeproxy", "top", *arguments, *flags]
    done = subprocess.run(
        ["ip", "netns", "exec", station.lab.name("node"), *command, "--hostname-override", NODE_NAME],
        check=False, capture_output=True, text=True, env=environment, timeout=240,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def test_the_command_answers_once(station: Station) -> None:
    code, out, said = run(station, "--once", "--interval", "0.2", "--json")
    found = json.loads(out)
    assert code == 0, said
    assert {service["name"] for service in found["services"]} == {"web", "dead"}
    (web,) = (service for service in found["services"] if service["name"] == "web")
    assert [(each["family"], each["port"], len(each["endpoints"])) for each in web["ports"]] == [
        ("IPv4", 80, 2),
        ("IPv6", 80, 1),
    ]
    assert found["sources"]["losses"] == 0
    code, out, said = run(station, "--once", "--interval", "0.2", "default/web")
    assert code == 0, said
    assert f"{EP11}:8080" in out
    assert f"[{SIX}]:8080" in out
    assert GONE not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("default/wep",), "there is no Service default/wep"),
        (("web", "--interval", "0"), "--interval 0: seconds, at least 0.2"),
        (("--node", "n2"), "n2"),
        (("shop/web",), "did you mean default/web?"),
    ],
)
def test_a_wrong_question_is_refused(
    lab: Lab, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    made = Station(lab, tmp_path, mode="nftables")
    fill(made)
    code, out, said = run(made, "--once", *arguments)
    assert (code, out) == (1, "")
    assert message in said
    assert len(said.splitlines()) == 1


def test_without_the_right_it_says_what_is_missing(station: Station) -> None:
    bare = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    code, out, _ = run(station, "--once", "--interval", "0.2", "--json", prefix=bare)
    found = json.loads(out)
    assert code == 0
    assert len(found["services"]) == 2
    assert sum("CAP_NET_ADMIN" in trouble for trouble in found["troubles"]) >= 2
    web = found["services"][1]["ports"][0]
    assert (web["connections"], web["open"], web["unanswered"]) == (None, None, None)


def test_bytes_are_counted_while_it_is_asked_for(station: Station) -> None:
    name = "net.netfilter.nf_conntrack_acct"
    before = station.lab.run("node", "sysctl", "-n", name)
    code, out, said = run(station, "--once", "--interval", "0.2", "--json", "--accounting")
    assert code == 0, said
    assert json.loads(out)["sources"]["bytes"]
    assert station.lab.run("node", "sysctl", "-n", name) == before
    station.lab.run("node", "sysctl", "-w", f"{name}=1")
    try:
        with watching(station) as watch:
            for _ in range(3):
                ask(station.lab, "client", WEB)
            kernel.flush_conntrack(station.lab.name("node"))
            found = port(watch, "web")
            assert found.sent_per_second
            assert found.received_per_second
    finally:
        station.lab.run("node", "sysctl", "-w", f"{name}={before.strip()}")
