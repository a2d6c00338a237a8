"""An endpoint that does not answer gets no connections but for trials, and is used again when it answers."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.machine.linux import LinuxMachine
from kubeproxy.model.flows import place
from kubeproxy.netlink.conntrack import TCP
from kubeproxy.netlink.conntrack_events import UNANSWERED, FlowEvents, to_endpoint
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station, ask, asked, until
from tests.kernel.test_explain import explain, sources
from tests.kernel.test_serve import metrics
from tests.lab import kernel, netns
from tests.lab.topology import EP11, EP11_6, EP12, EP12_6, NODE_NAME, REMOTE, Lab

WEB, WEB6, PLAIN = "10.96.0.10", "fd00:10:96::a", "10.96.0.11"
SKIP = types.Annotations(silent_endpoints="skip")


@pytest.fixture(params=["nftables", "iptables", pytest.param("ipvs", marks=pytest.mark.vm)])
def station(request: pytest.FixtureRequest, lab: Lab, tmp_path: Path) -> Iterator[Station]:
    made = Station(lab, tmp_path, mode=request.param)
    web = service("web", WEB, WEB6)
    made.folder.put(
        replace(web, metadata=replace(web.metadata, annotations=SKIP)),
        service("plain", PLAIN),
        endpoints("web", EP11, EP12, REMOTE, local=(EP11, EP12), node=NODE_NAME),
        endpoints("web", EP11_6, EP12_6, name="web-6", local=(EP11_6, EP12_6), node=NODE_NAME),
        endpoints("plain", EP11, EP12, local=(EP11, EP12), node=NODE_NAME),
    )
    yield made
    with contextlib.suppress(RuntimeError):
        light(lab)


def dark(lab: Lab) -> None:
    """An endpoint gets packets and answers none."""
    lab.run("ep11", "ip", "route", "replace", "blackhole", "default")
    lab.run("ep11", "ip", "route", "replace", "blackhole", "::/0", "metric", "1")


def light(lab: Lab) -> None:
    """It answers again."""
    lab.run("ep11", "ip", "route", "replace", "default", "via", "10.244.1.1", "dev", "eth0", "onlink")
    lab.run("ep11", "ip", "route", "del", "blackhole", "::/0", "metric", "1")


@contextlib.contextmanager
def clients(lab: Lab, *addresses: str) -> Iterator[None]:
    """Many connections to some addresses, one after the other, whatever becomes of them."""
    stop = threading.Event()

    def connect(address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        opened: list[socket.socket] = []
        with netns.inside(lab.name("client")):
            while not stop.wait(0.02):
                client = socket.socket(family, socket.SOCK_STREAM)
                client.setblocking(False)
                client.connect_ex((address, 80))
                opened.append(client)
                if len(opened) > 100:
                    opened.pop(0).close()
        for client in opened:
            client.close()

    threads = [threading.Thread(target=connect, args=(address,)) for address in addresses]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_an_endpoint_that_goes_dark(station: Station) -> None:
    lab = station.lab
    with station.running() as daemon:
        assert EP11 in asked(lab, "client", WEB, times=60)
        dark(lab)
        with clients(lab, WEB, WEB6, PLAIN):
            daemon.says(f"Service default/web: endpoint {EP11}:8080 does not answer")
            daemon.says(f"Service default/web: endpoint [{EP11_6}]:8080 does not answer")
            daemon.says("has not answered the trial connection")
        assert "default/plain" not in daemon.log()
        until(lambda: metrics(lab)["kubeproxy_silent_endpoints IPv4"] == 1)
        assert metrics(lab)["kubeproxy_endpoint_silences_total IPv4"] == 1
        _, found, _ = explain(station, "--from", "10.244.1.100", "--to", f"{WEB}:80")
        why = [each["reason"] for each in found["excluded"] if each["address"] == EP11]
        assert why in ([], ["does not answer"])  # it may be on trial
        with lab.inside("node"):
            command = [
                sys.executable,
                "-m",
                "kubeproxy",
                "top",
                "default/web",
                "--once",
                "--interval",
                "0.2",
                "--json",
            ]
            done = subprocess.run(
                [*command, *sources(station)], capture_output=True, text=True, check=True, timeout=240
            )
        top = json.loads(done.stdout)
        (port,) = (each for each in top["services"][0]["ports"] if each["family"] == "IPv4")
        assert [each["address"] for each in port["endpoints"] if each["silent"]] == [EP11]
        # One connection at most is its trial; a retransmission of that one reaches another endpoint.
        answers = asked(lab, "client", WEB, times=40)
        assert EP11 not in answers
        assert set(answers) - {"TimeoutError"} == {EP12, REMOTE}
        assert answers["TimeoutError"] <= 8
        light(lab)
        with clients(lab, WEB, WEB6):
            daemon.says(f"endpoint {EP11}:8080 answers again")
            daemon.says(f"endpoint [{EP11_6}]:8080 answers again")
        until(lambda: ask(lab, "client", WEB) == EP11)
        assert metrics(lab)["kubeproxy_endpoint_trials_total IPv4 answered"] == 1


@pytest.mark.parametrize("station", ["nftables", "iptables"], indirect=True)
def test_the_only_endpoint_stays(station: Station) -> None:
    """If all are silent, none is left out: two of three must not be."""
    lab = station.lab
    station.folder.put(endpoints("web", EP11, local=(EP11,), node=NODE_NAME))
    with station.running() as daemon:
        dark(lab)
        with clients(lab, WEB, WEB6):
            daemon.says(f"endpoint [{EP11_6}]:8080 does not answer")
        assert f"endpoint {EP11}:8080" not in daemon.log()


def test_only_refused_connections_and_those_to_one_endpoint_are_reported(lab: Lab, tmp_path: Path) -> None:
    """By the filters in the kernel: nothing else is received."""
    made = Station(lab, tmp_path, mode="nftables")
    made.folder.put(
        service("web", WEB, WEB6),
        endpoints("web", EP11, EP12, local=(EP11, EP12), node=NODE_NAME),
        endpoints("web", EP11_6, EP12_6, name="web-6", local=(EP11_6, EP12_6), node=NODE_NAME),
        service("shut", PLAIN, "fd00:10:96::b"),
        endpoints("shut", EP11, port=7, local=(EP11,), node=NODE_NAME),
        endpoints("shut", EP11_6, port=7, name="shut-6", local=(EP11_6,), node=NODE_NAME),
    )
    with made.running(), contextlib.ExitStack() as stack, lab.inside("node"):
        machine = LinuxMachine()
        refused, *to = (
            stack.enter_context(FlowEvents(machine, new=not ended, ended=ended, program=program))
            for ended, program in (
                (True, UNANSWERED),
                (False, to_endpoint(place(EP11, 8080))),
                (False, to_endpoint(place(EP12_6, 8080))),
            )
        )
        answers = [asked(lab, "client", address) for address in (WEB, WEB6)]
        for address in (PLAIN, "fd00:10:96::b"):
            assert ask(lab, "client", address) == "ConnectionRefusedError"
        kernel.flush_conntrack(lab.name("node"))  # all connections end
        found = [event for event in refused.read() if event.protocol == TCP]
        assert {event.source for event in found} == {place(EP11, 7), place(EP11_6, 7)}
        assert all(event.unanswered for event in found)
        begun = [[event.source for event in each.read()] for each in to]
        assert begun[0] == [place(EP11, 8080)] * answers[0][EP11]
        assert begun[1] == [place(EP12_6, 8080)] * answers[1][EP12_6]
