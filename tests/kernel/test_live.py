"""`explain` on a node with traffic: traced packets are as predicted, and what other programs do to them is named."""

import contextlib
import json
import os
import signal
import socket
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
from tests.kernel.daemons import Station, ask, until
from tests.lab import netns
from tests.lab.daemon import Daemon
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab

WEB, EMPTY, DNS = "10.96.0.10", "10.96.0.11", "10.96.0.53"
WEB6, SIX = "fd00:10:96::10", "fd00:10:244:1::b"
POD = "10.244.1.100"
MODES: dict[str, tuple[str, Variant]] = {
    "nftables": ("nftables", "nf_tables"),
    "iptables": ("iptables", "nf_tables"),
    "legacy": ("iptables", "legacy"),
}


class Node:
    """A node with a running daemon."""

    def __init__(self, lab: Lab, station: Station, daemon: Daemon) -> None:
        self.lab, self.station, self.daemon = lab, station, daemon
        self.legacy = station.tables.variant == "legacy"

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

    @contextlib.contextmanager
    def tracing(self, count: int) -> Iterator[subprocess.Popen[str]]:
        """`explain --live` of so many packets to `WEB`, when it has begun."""
        with self.lab.inside("node"):
            command = subprocess.Popen(
                [sys.executable, "-m", "kubeproxy", "explain", "--from", POD, "--to", f"{WEB}:80", "--live", str(count), "--json"],
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        with command:
            until(lambda: "kube-proxy-explain" in self.lab.run("node", "nft", "list", "tables"))
            yield command


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


def only(*names: str) -> pytest.MarkDecorator:
    """In these modes; in the others nothing else is shown."""
    return pytest.mark.parametrize("node", names, indirect=True)


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
        unseen = verdict == "reject" and node.legacy  # nf_tables does not trace what these rules do
        assert (packet["verdict"], bool(packet["lost"])) == ("drop" if unseen else verdict, unseen)
        assert packet["answer"] == ("came" if verdict == "forward" else "")
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


@contextlib.contextmanager
def undone(lab: Lab, *commands: tuple[str, str]) -> Iterator[None]:
    """A change of the node by commands, each beside the one that undoes it."""
    for do, _ in commands:
        lab.run("node", *do.split())
    try:
        yield
    finally:
        for _, undo in reversed(commands):
            lab.run("node", *undo.split())


def lost(node: Node, role: str, source: str, address: str, port: int = 80) -> str:
    """Where packets are lost, of which none arrives."""
    code, found = node.live(role, source, address, port)
    live = found["live"]
    assert (code, live["matches"], live["differs"]) == (5, 0, 4), live
    assert {packet["verdict"] for packet in live["packets"]} == {"drop"}
    (where,) = {packet["lost"] for packet in live["packets"]}
    return str(where)


def test_packets_that_no_rule_drops_are_missed(node: Node) -> None:
    lab, drop = node.lab, "-p tcp --dport 8080 -j DROP"
    with undone(lab, (f"iptables-legacy -A FORWARD {drop}", f"iptables-legacy -D FORWARD {drop}")):
        where = lost(node, "client", POD, WEB)
    assert where.startswith("in hook forward or postrouting, by something that nf_tables does not trace")
    off = "net.ipv4.conf.cni0.forwarding"
    with undone(lab, (f"sysctl -qw {off}=0", f"sysctl -qw {off}=1")):
        where = lost(node, "client", POD, WEB)
        assert where == f"by routing, received on cni0: forwarding is off: {off} is 0"
        code, found = node.explain("--from", POD, "--to", f"{WEB}:80")
        assert (code, found["verdict"]) == (5, "forward")
        assert found["routing"] == f"forwarding is off: {off} is 0"
        code, found = node.explain("--from", "node", "--to", f"{WEB}:80")  # is not forwarded
        assert (code, found["routing"]) == (0, "")


@only("nftables", "iptables")
def test_policy_routing_is_suspected(node: Node) -> None:
    """A rule for the mark of packets that are to be masqueraded: no route without the mark shows it."""
    rule = "fwmark 0x4000/0x4000 blackhole"
    with undone(node.lab, (f"ip rule add {rule}", f"ip rule delete {rule}")):
        where = lost(node, "out", "198.51.100.7", "192.0.2.1", 30080)
    assert where == "in hook prerouting or by routing: see ip rule, and iptables-legacy-save -c"


@only("nftables")
def test_the_reverse_path_filter_is_named(node: Node) -> None:
    lab, client = node.lab, "198.51.100.7"
    with undone(
        lab,
        ("ip link add other type veth peer name other-p", "ip link delete other"),
        ("ip address add 192.0.9.1/24 dev other", "true"),
        ("ip link set other up", "true"),
        (f"ip route add {client} via 192.0.9.2 dev other", "true"),
        ("sysctl -qw net.ipv4.conf.eth0.rp_filter=1", "sysctl -qw net.ipv4.conf.eth0.rp_filter=0"),
    ):
        where = lost(node, "out", client, "192.0.2.1", 30080)
        code, found = node.explain("--from", client, "--to", ":30080", "--interface", "eth0")
    why = f"rp_filter of eth0 is 1 (strict), and the route to {client} leaves by other: set it to 2 (loose), or correct the route"
    assert where == f"by routing, received on eth0: {why}"
    assert (code, found["routing"]) == (5, why)


@only("nftables", "iptables")
def test_what_translates_packets_instead_is_named(node: Node) -> None:
    lab = node.lab
    for hook, rule, seen in (
        ("nat hook prerouting priority -150", f"dnat to {EP11}:9999", "forward"),
        ("filter hook prerouting priority -300", "notrack", "pass"),
    ):
        lab.run("node", "nft", "add table ip other")
        lab.run("node", "nft", f"add chain ip other first {{ type {hook} ; }}")
        lab.run("node", "nft", f"add rule ip other first ip daddr {WEB} tcp dport 80 {rule}")
        try:
            code, found = node.live("client", POD, WEB)
        finally:
            lab.run("node", "nft", "delete table ip other")
        live = found["live"]
        assert (code, live["matches"], live["differs"]) == (5, 0, 4), live
        for packet in live["packets"]:
            assert packet["verdict"] == seen
            assert (packet["table"], packet["chain"]) == ("ip other", "first")
            assert packet["rule"].endswith(rule)


def answers(node: Node) -> set[str]:
    """What becomes of the answers to packets of which each leaves the node."""
    code, found = node.live("client", POD, WEB)
    live = found["live"]
    assert (code, live["matches"], live["differs"]) == (0, 4, 0), live
    return {packet["answer"] for packet in live["packets"]}


@only("nftables", "legacy")
def test_answers_that_do_not_come(node: Node) -> None:
    lab, chain = node.lab, "{ type filter hook %s priority -5; }"
    for pod in ("ep11", "ep12"):
        lab.run(
            pod,
            "nft",
            f"add table ip f; add chain ip f in {chain % 'input'}; add rule ip f in tcp dport 8080 drop",
        )
    try:
        assert answers(node) == {"none"}
        for pod in ("ep11", "ep12"):
            lab.run(pod, "nft", "flush chain ip f in; add rule ip f in tcp dport 8080 reject with tcp reset")
        assert answers(node) == {"refused"}
    finally:
        for pod in ("ep11", "ep12"):
            lab.run(pod, "nft", "delete table ip f")
    lab.run(
        "node",
        "nft",
        f"add table ip f; add chain ip f fw {chain % 'forward'}; add rule ip f fw tcp sport 8080 drop",
    )
    code, found = node.live("client", POD, WEB)
    live = found["live"]
    assert (code, live["matches"], live["differs"]) == (5, 0, 4), live
    for packet in live["packets"]:
        assert (packet["verdict"], packet["answer"], packet["table"]) == ("forward", "dropped", "ip f")
        assert packet["rule"] == "tcp sport 8080 drop"


@only("nftables")
def test_connections_may_be_made_for_it(node: Node) -> None:
    code, found = node.explain("--from", "node", "--to", f"{EP12}:8080", "--live", "3", "--connect")
    assert code == 0
    assert [(each["verdict"], each["answer"], each["match"]) for each in found["live"]["packets"]] == [
        ("pass", "came", True)
    ] * 3
    code, found = node.explain("--from", "node", "--to", f"{WEB}:80", "--live", "3", "--connect")
    assert (code, found["live"]["matches"]) == (0, 3)


@only("nftables", "legacy")
def test_each_datagram_of_a_flow(node: Node) -> None:
    """Only the first is translated by a rule, the others by connection tracking."""
    node.station.folder.put(
        service("dns", DNS, ports=[types.ServicePort(53, protocol="UDP")]),
        endpoints("dns", EP11, port=5353, protocol="UDP", local=(EP11,), node=NODE_NAME),
    )
    until(lambda: node.explain("--from", POD, "--to", f"{DNS}:53/udp")[0] == 0)
    over = threading.Event()

    def send() -> None:
        with netns.inside(node.lab.name("client")):
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with client:
            client.connect((DNS, 53))
            while not over.wait(0.1):
                client.send(b"?")

    client = threading.Thread(target=send)
    client.start()
    try:
        code, found = node.explain("--from", POD, "--to", f"{DNS}:53/udp", "--live", "4", "--timeout", "120")
    finally:
        over.set()
        client.join()
    live = found["live"]
    assert (code, live["matches"], live["differs"]) == (0, 4, 0), live
    assert {packet["answer"] for packet in live["packets"]} == {"came"}


@only("nftables")
def test_an_interrupt_shows_what_was_seen(node: Node) -> None:
    with node.tracing(1000) as command:
        for _ in range(3):
            assert ask(node.lab, "client", WEB) in {EP11, EP12}
        command.send_signal(signal.SIGINT)
        assert command.stdout is not None
        live = json.loads(command.stdout.read())["live"]
    assert (command.returncode, live["differs"]) == (0, 0)
    assert 1 <= live["matches"] <= 3


@only("nftables")
def test_a_connection_that_is_reset_later_was_answered(node: Node) -> None:
    with node.tracing(2) as command:
        for _ in range(2):
            with netns.inside(node.lab.name("client")):
                client = socket.create_connection((WEB, 80), 60)
            with client:
                while client.recv(256):
                    pass
                client.sendall(b"?")  # the endpoint has hung up, and resets who sends more
                until(lambda client=client: client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))  # type: ignore[misc]
        assert command.stdout is not None
        live = json.loads(command.stdout.read())["live"]
    assert (command.wait(), live["matches"]) == (0, 2), live
    assert {packet["answer"] for packet in live["packets"]} == {"came"}


@only("nftables")
def test_no_packets_is_no_difference(node: Node) -> None:
    code, found = node.explain("--from", POD, "--to", f"{WEB}:80", "--live", "3", "--timeout", "1")
    assert (code, found["live"]["packets"], found["live"]["differs"]) == (0, [], 0)
