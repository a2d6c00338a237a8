"""`explain` on a node with traffic: traced packets are as predicted, and what other programs do to them is named."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubeproxy.api import types
from kubeproxy.backends.programs import Variant
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station, ask
from tests.lab.daemon import Daemon
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab

WEB, EMPTY = "10.96.0.10", "10.96.0.11"
WEB6, SIX = "fd00:10:96::10", "fd00:10:244:1::b"
POD = "10.244.1.100"
MODES: dict[str, tuple[str, Variant]] = {
    "nftables": ("nftables", "nf_tables"),
    "iptables": ("iptables", "nf_tables"),
}


class Node:
    """A node with a running daemon."""

    def __init__(self, lab: Lab, station: Station, daemon: Daemon) -> None:
        self.lab, self.station, self.daemon = lab, station, daemon

    def explain(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Exit status and answer of `explain`, with the programs the daemon has."""
        path = f"{self.station.config.parent / 'programs'}:{os.environ['PATH']}"
        with self.lab.inside("node"):
            done = subprocess.run(
                [sys.executable, "-m", "kubeproxy", "explain", "--json", *arguments],
                check=False, capture_output=True, text=True, timeout=300, env={**os.environ, "PATH": path},
            )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, json.loads(done.stdout)

    def live(
        self, role: str, source: str, address: str, port: int = 80, count: int = 4
    ) -> tuple[int, dict[str, Any]]:
        """`explain --live` while a client connects again and again."""
        over = threading.Event()

        def connect() -> None:
            while not over.is_set():
                ask(self.lab, role, address, port, patience=0.3)
                time.sleep(0.05)

        client = threading.Thread(target=connect)
        client.start()
        try:
            at = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            return self.explain("--from", source, "--to", at, "--live", str(count), "--timeout", "120")
        finally:
            over.set()
            client.join()


@pytest.fixture(params=MODES)
def node(request: pytest.FixtureRequest, lab: Lab, tmp_path: Path) -> Iterator[Node]:
    mode, variant = MODES[request.param]
    station = Station(lab, tmp_path, variant, mode=mode)
    station.folder.put(
        service("web", WEB, WEB6, ports=[types.ServicePort(80, node_port=30080)], type="NodePort"),
        endpoints("web", EP11, EP12, local=(EP11, EP12), node=NODE_NAME),
        endpoints("web", SIX, name="web-6"),
        service("empty", EMPTY),
    )
    with station.running() as daemon:
        yield Node(lab, station, daemon)


@pytest.mark.parametrize(
    ("role", "source", "address", "port", "verdict"),
    [
        ("client", POD, WEB, 80, "forward"),
        ("node", "node", WEB, 80, "forward"),
        ("out", "198.51.100.7", "192.0.2.1", 30080, "forward"),
        ("client", "fd00:10:244:1::64", WEB6, 80, "forward"),
        ("client", POD, EMPTY, 80, "reject"),
    ],
)
def test_packets_do_what_was_predicted(
    node: Node, role: str, source: str, address: str, port: int, verdict: str
) -> None:
    code, found = node.live(role, source, address, port)
    live = found["live"]
    assert found["verdict"] == verdict
    assert (live["matches"], live["differs"], live["cannot"]) == (4, 0, ""), live
    assert code == {"forward": 0, "reject": 4}[verdict]
    reached = {f"{each['address']}:{each['port']}" for each in found["endpoints"]}
    for packet in live["packets"]:
        assert packet["verdict"] == verdict
        if verdict == "forward" and ":10:96" not in address:
            assert packet["destination"] in reached
    assert "changed table" not in node.daemon.log()
    assert "kube-proxy-explain" not in node.lab.run("node", "nft", "list", "tables")


def test_a_drop_of_another_program_is_named(node: Node) -> None:
    lab = node.lab
    lab.run("node", "nft", "add table inet guard")
    lab.run("node", "nft", "add chain inet guard fw { type filter hook forward priority -5; }")
    lab.run("node", "nft", f"add rule inet guard fw ip daddr {{ {EP11}, {EP12} }} tcp dport 8080 drop")
    code, found = node.live("client", POD, WEB)
    live = found["live"]
    assert (code, live["matches"], live["differs"]) == (5, 0, 4), live
    for packet in live["packets"]:
        assert (packet["verdict"], packet["table"], packet["chain"]) == ("drop", "inet guard", "fw")
        assert packet["rule"].endswith("tcp dport 8080 drop")
        assert packet["handle"]
        assert packet["why"] == "predicted was forward"


def test_no_packets_is_no_difference(node: Node) -> None:
    code, found = node.explain("--from", POD, "--to", f"{WEB}:80", "--live", "3", "--timeout", "1")
    assert (code, found["live"]["packets"], found["live"]["differs"]) == (0, [], 0)
