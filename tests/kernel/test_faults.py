"""Made-up faults on a node with traffic: one command of an operator, or two, name the cause, in every mode.

Faults that one command finds alone are in `test_doctor` and `test_live`; here a node has many at once.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubeproxy.backends.programs import Variant
from tests.kernel.daemons import PATIENCE, Station, ask, until
from tests.lab import netns
from tests.lab.daemon import Daemon
from tests.lab.topology import EP11, EP12, EP13, EP14, NODE_NAME, REMOTE, Lab

POD, OUT = "10.244.1.100", "198.51.100.7"
WEB, DNS, SILENT, CLOSED = "10.96.1.1", "10.96.1.2", "10.96.1.3", "10.96.1.4"
MODES: dict[str, tuple[str, Variant]] = {
    "nftables": ("nftables", "nf_tables"),
    "iptables": ("iptables", "nf_tables"),
    "legacy": ("iptables", "legacy"),
    "userspace": ("userspace", "nf_tables"),
}
LOCAL: dict[str, Any] = {
    "internalTrafficPolicy": "Local",
    "externalTrafficPolicy": "Local",
    "type": "NodePort",
}
DRAINING: dict[str, Any] = {"ready": False, "serving": True, "terminating": True}
BALANCER: dict[str, Any] = {"type": "LoadBalancer", "loadBalancerSourceRanges": ["192.168.0.0/16"]}


def endpoint(address: str, node: str = NODE_NAME, **more: Any) -> dict[str, Any]:
    return {"addresses": [address], "nodeName": node, "zone": "z1", **more}


def cluster(name: str, ip: str, *endpoints: dict[str, Any], port: dict[str, Any] | None = None, status: Any = None, **spec: Any) -> list[dict[str, Any]]:  # fmt: skip
    """A Service, and an EndpointSlice of it if it has endpoints."""
    target = {"name": "http", "port": 8080, "protocol": "TCP", **(port or {})}
    given: dict[str, Any] = {"name": "http", "port": 80, "protocol": "TCP"}
    if target["protocol"] == "UDP":
        given |= {"port": 53, "protocol": "UDP"}
    if spec.get("type") == "NodePort":
        given["nodePort"] = 30080
    found = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"clusterIP": ip, "ports": [given], **spec},
            "status": status or {},
        }
    ]
    if endpoints:
        found.append(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "addressType": "IPv4",
                "metadata": {
                    "name": f"{name}-1",
                    "namespace": "shop",
                    "labels": {"kubernetes.io/service-name": name},
                },
                "ports": [target],
                "endpoints": list(endpoints),
            }
        )
    return found


ADDRESS = {"loadBalancer": {"ingress": [{"ip": "203.0.113.50"}]}}
HINT: dict[str, Any] = {"hints": {"forZones": [{"name": "z1"}]}}
NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": NODE_NAME, "labels": {"topology.kubernetes.io/zone": "z1"}},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
}
OBJECTS = [
    NODE,
    *cluster("web", WEB, endpoint(EP11), endpoint(EP13)),
    *cluster("dns", DNS, endpoint(EP14), port={"port": 5353, "protocol": "UDP"}),
    *cluster("silent", SILENT, endpoint(EP12)),
    *cluster("closed", CLOSED, endpoint(EP11), port={"port": 4444}),
    *cluster("none", "10.96.1.10"),
    *cluster("unready", "10.96.1.11", endpoint(EP11, conditions={"ready": False})),
    *cluster("name", "10.96.1.12", endpoint(EP11), port={"name": "web"}),
    *cluster("local", "10.96.1.13", endpoint(REMOTE, "there"), **LOCAL),
    *cluster("ranges", "10.96.1.14", endpoint(EP11), status=ADDRESS, **BALANCER),
    *cluster("first", "10.96.1.15", endpoint(EP11), externalIPs=["203.0.113.9"]),
    *cluster("second", "10.96.1.16", endpoint(EP13), externalIPs=["203.0.113.9"]),
    *cluster("draining", "10.96.1.17", endpoint(EP11, conditions=DRAINING)),
    *cluster("hints", "10.96.1.18", endpoint(EP11, **HINT), endpoint(EP13)),
]

EXPLAINED = (
    (POD, "none.shop", 4, "no EndpointSlice of Service shop/none has an endpoint"),
    (POD, "unready.shop", 4, "not ready (EndpointSlice unready-1)"),
    (POD, "name.shop", 4, 'no port "http" TCP; the EndpointSlice has web TCP'),
    (POD, "local.shop", 3, "not on this node: the traffic policy is Local"),
    (OUT, "203.0.113.50:80", 3, f"loadBalancerSourceRanges: 192.168.0.0/16; {OUT} is in none of them"),
    (OUT, "203.0.113.9:80", 0, "Service shop/first, port http, external IP; shop/second names it, too"),
    (POD, "draining.shop", 0, "no endpoint is ready; those that are terminating still serve"),
    (POD, "hints.shop", 0, "hints are ignored: 1 of 2 ready endpoints have none"),
    (POD, f"{WEB}:81", None, "near: Service shop/web has this ClusterIP, with port 80 TCP (http)"),
    ("10.99.0.1", "web.shop", 0, "does not count as a local Pod: it is not of the range 10.244.0.0/16"),
)
"""Faults of the cluster: client, destination, exit status, and what `explain` says."""

FOUND = {
    "KP014": "Kubernetes' kube-proxy runs here, too",
    "KP033": "node ports may be taken by clients of this host",
    "KP060": "shop/none has no endpoints",
    "KP061": "shop/unready has endpoints and none is ready",
    "KP062": "shop/name has a port without endpoints",
    "KP064": "shop/local: connections from this node are dropped",
    "KP067": "shop/second is not served at external IP 203.0.113.9:80 TCP",
    "KP068": "shop/hints: topology hints are ignored",
    "KP070": "shop/draining is served by terminating endpoints only",
    "KP080": f"shop/closed: endpoint {EP11}:4444 refuses connections",
    "KP081": f"shop/silent: endpoint {EP12}:8080 does not answer",
}
"""What `doctor` finds, all at once."""


class Operator:
    """Someone at the node, who knows nothing but the commands."""

    def __init__(self, lab: Lab, station: Station, daemon: Daemon) -> None:
        self.lab, self.station, self.daemon = lab, station, daemon

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit status and output of a command."""
        path = f"{self.station.config.parent / 'programs'}:{os.environ['PATH']}"
        with self.lab.inside("node"):
            done = subprocess.run(
                [sys.executable, "-m", "kubeproxy", *arguments],
                check=False, capture_output=True, text=True, timeout=300, env={**os.environ, "PATH": path},
            )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout


@contextlib.contextmanager
def operator(lab: Lab, path: Path, mode: str, variant: Variant) -> Iterator[Operator]:
    """A node with a running daemon and the faults of the cluster."""
    station = Station(lab, path, variant, mode=mode)
    for file in station.folder.path.iterdir():  # its Node has no zone
        file.unlink()
    (station.folder.path / "faults.json").write_text(json.dumps({"kind": "List", "items": OBJECTS}))
    with station.running() as daemon:
        yield Operator(lab, station, daemon)


@contextlib.contextmanager
def dropping(lab: Lab, role: str, hook: str, rule: str) -> Iterator[None]:
    """A rule of another program."""
    lab.run(role, "nft", f"add table ip guard; add chain ip guard fw {{ type filter hook {hook} priority 0; }}; add rule ip guard fw {rule} drop")  # fmt: skip
    try:
        yield
    finally:
        lab.run(role, "nft", "delete table ip guard")


@contextlib.contextmanager
def connecting(lab: Lab, address: str) -> Iterator[None]:
    """A client that connects again and again."""
    over = threading.Event()

    def connect() -> None:
        while not over.wait(0.05):
            ask(lab, "client", address, patience=0.3)

    client = threading.Thread(target=connect)
    client.start()
    try:
        yield
    finally:
        over.set()
        client.join()


def faults_of_the_cluster(at: Operator, *, falls_back: bool = False) -> None:
    """`explain` names each; ipvs mode sends packets that policy Local excludes to other nodes."""
    for source, destination, status, words in EXPLAINED:
        if not (falls_back and destination == "local.shop"):
            code, said = at.run("explain", "--from", source, "--to", destination)
            assert words in said, (destination, said)
            assert status in {None, code}, (destination, code, said)


def faults_of_the_node(at: Operator, folder: Path) -> None:
    """`doctor` lists all of them, those of the cluster, too."""
    lab = at.lab
    other = folder / "kube-proxy"
    shutil.copy(shutil.which("sleep") or "sleep", other)
    with lab.inside("node"):
        proxy = subprocess.Popen([str(other), "600"])
    lab.run("node", "sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 60999")
    try:
        with dropping(lab, "ep12", "input", "tcp dport 8080"):
            code, said = at.run("doctor", "--json")
    finally:
        lab.run("node", "sysctl", "-qw", "net.ipv4.ip_local_port_range=32768 60999")
        proxy.kill()
        proxy.wait()
    assert code == 2
    checks = {
        each["id"]: [symptom["finding"] for symptom in each["found"]] for each in json.loads(said)["checks"]
    }
    for number, words in FOUND.items():
        assert any(words in finding for finding in checks[number]), (number, checks[number])


def a_drop_by_another_program(at: Operator, *, relayed: bool, hook: str = "forward") -> None:
    """The rule is named: of the packets of a client, or where a relay connects to endpoints, of those of the node."""
    if relayed:
        with dropping(at.lab, "node", "output", f"ip daddr {EP12}"):
            code, said = at.run("doctor", "shop/silent")
            question = f"explain --from node --to {EP12}:8080 --live --connect"
            assert (code, f"do: kube-proxy {question} names the rule" in said) == (2, True), said
            code, said = at.run(*question.split())
    else:
        with dropping(at.lab, "node", hook, f"ip daddr {EP12}"), connecting(at.lab, SILENT):
            code, said = at.run(
                "explain", "--from", POD, "--to", "silent.shop", "--live", "2", "--timeout", "120"
            )
    assert code == 5
    assert "dropped in table ip guard, chain fw, rule with handle " in said, said
    assert f"ip daddr {EP12} drop" in said


def flows_to_an_endpoint_that_is_gone(at: Operator) -> None:
    """While the daemon is stopped an endpoint is replaced: the flow and the missing rules are listed."""
    with netns.inside(at.lab.name("client")):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    file = at.station.folder.path / "faults.json"
    with client:
        client.settimeout(PATIENCE)
        client.connect((DNS, 53))
        client.send(b"?")
        assert client.recv(100)
        at.daemon.process.send_signal(signal.SIGSTOP)
        try:
            before = file.read_text()
            file.write_text(before.replace(EP14, EP13))
            code, said = at.run("verify")
        finally:
            file.write_text(before)
            at.daemon.process.send_signal(signal.SIGCONT)
    assert code == 2
    assert f"{DNS}:53, sent to {EP14}:5353" in said, said
    if "was not compared" not in said:
        assert "Service shop/dns" in said
        assert "missing" in said
    until(lambda: at.run("explain", "--from", POD, "--to", "dns.shop")[0] == 0)


@pytest.mark.parametrize("name", MODES)
def test_commands_lead_to_the_cause(lab: Lab, tmp_path: Path, name: str) -> None:
    mode, variant = MODES[name]
    with operator(lab, tmp_path, mode, variant) as at:
        faults_of_the_cluster(at)
        faults_of_the_node(at, tmp_path)
        a_drop_by_another_program(at, relayed=mode == "userspace")
        if mode != "userspace":
            flows_to_an_endpoint_that_is_gone(at)


@pytest.mark.vm
def test_commands_lead_to_the_cause_in_ipvs_mode(lab: Lab, tmp_path: Path) -> None:
    with operator(lab, tmp_path, "ipvs", "nf_tables") as at:
        faults_of_the_cluster(at, falls_back=True)
        a_drop_by_another_program(
            at, relayed=False, hook="output"
        )  # packets that IPVS sends do not pass forward
        flows_to_an_endpoint_that_is_gone(at)


@pytest.mark.vm
def test_a_full_connection_table(lab: Lab, tmp_path: Path) -> None:
    """Its limit is that of the initial network namespace, which only a virtual machine has for us."""
    limit = Path("/proc/sys/net/netfilter/nf_conntrack_max")
    before = limit.read_text()
    with operator(lab, tmp_path, "nftables", "nf_tables") as at:
        limit.write_text("20")
        try:
            for _ in range(30):
                ask(lab, "client", WEB, patience=0.5)
            code, said = at.run("doctor", "--no-connect")
        finally:
            limit.write_text(before)
    assert code == 2
    assert "KP050  the connection table is " in said, said
    assert "KP051  the connection table was full: " in said
