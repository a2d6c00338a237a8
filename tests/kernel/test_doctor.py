"""`doctor` on a node of the lab: nothing is found beside a daemon that works, and faults that are made are found."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest

from kubeproxy.api import types
from kubeproxy.backends.programs import Variant
from kubeproxy.insight import origin, snapshot
from kubeproxy.insight.doctor.check import NOTE, Costly
from kubeproxy.insight.doctor.examine import Examined, examine
from kubeproxy.insight.doctor.facts import Part
from kubeproxy.insight.doctor.gather import gather
from kubeproxy.linux.instance import NAME
from kubeproxy.machine.linux import LinuxMachine
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station, until
from tests.lab import netns
from tests.lab.topology import EP11, EP12, NODE_NAME, ROOT, Lab

IP = shutil.which("ip") or "ip"
MANIFESTS = ROOT / "examples/demo/manifests"
WEB, DNS = "10.96.0.80", "10.96.0.53"
NOWHERE = "10.244.1.99"  # in the bridge's network, and nobody has it


@pytest.fixture
def station(lab: Lab, tmp_path: Path) -> Station:
    """A cluster of two Services that work."""
    made = Station(lab, tmp_path, mode="nftables")
    made.folder.put(service("web", WEB))
    made.folder.put(endpoints("web", EP11, EP12, local=(EP11, EP12), node=NODE_NAME))
    made.folder.put(service("dns", DNS, ports=(types.ServicePort(53, protocol="UDP"),)))
    made.folder.put(endpoints("dns", EP11, port=5353, protocol="UDP", local=(EP11,), node=NODE_NAME))
    return made


def look(station: Station, *ids: str, daemon: bool = True, probing: bool = True) -> dict[str, Examined]:
    """The results on the node, by id; without a daemon the cluster comes from the folder."""
    machine = LinuxMachine(Path("/run/netns", station.lab.name("node")))
    flags = (
        {}
        if daemon
        else {
            "config": str(station.config),
            "manifests": (str(station.folder.path),),
            "hostname-override": NODE_NAME,
        }
    )
    found = origin.find(flags, machine, os.environ)
    taken = asyncio.run(snapshot.take(found, machine))
    costly: list[Costly] = ["connections", "rules"] if probing else ["rules"]
    results = examine(gather(machine, Part(taken), Part(found.options), costly=costly), ids)
    return {each.id: each for each in results}


def bad(results: dict[str, Examined], but: Collection[str] = ()) -> dict[str, str]:
    """What is not as it should be."""
    return {
        each.id: each.reason or "; ".join(f"{s.finding}: {s.evidence}" for s in each.found)
        for each in results.values()
        if each.status not in {"ok", NOTE} and each.id not in but
    }


def doctor(lab: Lab, *arguments: str, prefix: Collection[str] = ()) -> subprocess.CompletedProcess[str]:
    """The command, on the node."""
    return subprocess.run(
        [IP, "netns", "exec", lab.name("node"), *prefix, sys.executable, "-m", "kubeproxy", "doctor", *arguments],
        check=False, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": "src"},
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
@pytest.mark.parametrize("variant", ["nf_tables", "legacy"])
def test_nothing_is_found_beside_a_daemon_that_works(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, variant: Variant
) -> None:
    made = Station(lab, tmp_path, variant, mode=mode)
    made.folder.put(service("web", WEB))
    made.folder.put(endpoints("web", EP11, EP12, local=(EP11, EP12), node=NODE_NAME))
    with made.running():
        monkeypatch.setenv("PATH", str(tmp_path / "programs"))  # as the daemon has it
        assert bad(look(made)) == {}
        done = doctor(lab)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert all(line.startswith("ok  ") for line in done.stdout.splitlines()), done.stdout


@pytest.mark.parametrize("mode", ["iptables", "nftables", "userspace"])
def test_the_demo_has_one_service_without_endpoints(lab: Lab, tmp_path: Path, mode: str) -> None:
    made = Station(lab, tmp_path, mode=mode)
    for path in MANIFESTS.iterdir():
        (made.folder.path / f"demo-{path.name}").write_text(path.read_text())
    for path in made.folder.path.iterdir():
        if "demo" not in path.name:
            path.unlink()
    with made.running():
        results = look(made)
        assert bad(results, {"KP060", "KP075"}) == {}
        assert [each.service for each in results["KP060"].found] == ["shop/soon"]
        without_hashing = ["shop/hashed"] if mode == "iptables" else []
        assert [each.service for each in results["KP075"].found] == without_hashing


Fault = Callable[[Lab], object]


def run(role: str, *commands: str) -> Fault:
    return lambda lab: [lab.run(role, *command.split()) for command in commands]


FAULTS: dict[str, Fault] = {
    "KP015": run("node", "iptables-nft -t nat -N KUBE-SERVICES"),
    "KP021": run(
        "node",
        "nft add table inet firewalld",
        "nft add chain inet firewalld filter_FORWARD { type filter hook forward priority 10 ; }",
    ),
    "KP022": run("node", "iptables-nft -N ufw-before-forward"),
    "KP023": run("node", "iptables-nft -N DOCKER", "iptables-nft -P FORWARD DROP"),
    "KP024": run(
        "node",
        "nft add table inet mine",
        "nft add chain inet mine forward { type filter hook forward priority 10 ; policy drop ; }",
    ),
    "KP025": run("node", "iptables-nft -N MINE", "iptables-legacy -A INPUT -j ACCEPT"),
    "KP026": run(
        "node",
        "nft add table ip lb",
        "nft add chain ip lb first { type nat hook prerouting priority -150 ; }",
    ),
    "KP030": run("node", "sysctl -qw net.ipv4.ip_forward=0"),
    "KP057": run("node", "sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_close_wait=60"),
    "KP058": run("node", "sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_established=600"),
    "KP059": run("node", "sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0"),
}
"""Faults of the node beside a daemon in nftables mode."""

ALSO = {"KP058": ["KP057"]}  # the configuration asks for another value

UNDO = {
    "KP030": run("node", "sysctl -qw net.ipv4.ip_forward=1"),
    "KP057": run("node", "sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_close_wait=3600"),
    "KP058": run("node", "sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_established=86400"),
    "KP059": run("node", "sysctl -qw net.netfilter.nf_conntrack_tcp_loose=1"),
    "KP015": run("node", "iptables-nft -t nat -X KUBE-SERVICES"),
    "KP021": run("node", "nft delete table inet firewalld"),
    "KP022": run("node", "iptables-nft -X ufw-before-forward"),
    "KP023": run("node", "iptables-nft -X DOCKER", "iptables-nft -P FORWARD ACCEPT"),
    "KP024": run("node", "nft delete table inet mine"),
    "KP025": run("node", "iptables-legacy -F INPUT"),
    "KP026": run("node", "nft delete table ip lb"),
}


def test_faults_of_the_node_are_found_one_by_one(station: Station) -> None:
    with station.running():
        assert FAULTS.keys() == UNDO.keys()
        for number, fault in FAULTS.items():
            fault(station.lab)
            found = look(station, probing=False)
            assert number in bad(found), number
            others = {
                number,
                *ALSO.get(number, ()),
                *(e.id for e in found.values() if e.group == "endpoints"),
            }
            assert bad(found, others) == {}, number
            UNDO[number](station.lab)
        assert bad(look(station)) == {}


@contextlib.contextmanager
def _link(lab: Lab, *words: str) -> Iterator[None]:
    """An interface of the node."""
    lab.run("node", "ip", "link", "add", *words)
    try:
        yield
    finally:
        lab.run("node", "ip", "link", "delete", words[0])


def _kinds(lab: Lab, name: str, kind: str) -> list[str]:
    """An interface of this name, of a kind that every kernel of the tests has."""
    return (
        [name, "type", kind] if kind != "veth" else [name, "type", "veth", "peer", "name", f"{name[:10]}-p"]
    )


@pytest.mark.parametrize(
    ("number", "name"), [("KP018", "cilium_host"), ("KP019", "bpfin.cali"), ("KP020", "kube-dummy-if")]
)
def test_interfaces_of_other_proxies(station: Station, number: str, name: str) -> None:
    with station.running(), _link(station.lab, *_kinds(station.lab, name, "veth")):
        (found,) = look(station, number, probing=False).values()
        assert found.found
        assert name in found.found[0].evidence


def test_rules_in_both_kinds_of_iptables(station: Station) -> None:
    config = station.config.read_text().replace("nftables", "iptables")
    station.config.write_text(config)
    for kind in ("legacy", "nft"):
        station.lab.run("node", f"iptables-{kind}", "-t", "nat", "-N", "KUBE-SERVICES")
    (found,) = look(station, "KP017", daemon=False, probing=False).values()
    assert found.status == "error"


def test_the_table_of_another_kube_proxy(station: Station) -> None:
    station.lab.run("node", "nft", 'add table ip kube-proxy { comment "rules for kube-proxy" ; }')
    (found,) = look(station, "KP016", daemon=False, probing=False).values()
    assert "'rules for kube-proxy'" in found.found[0].evidence


def test_no_daemon(station: Station) -> None:
    results = look(station, "KP001", "KP003", "KP005", "KP090", daemon=False, probing=False)
    assert results["KP001"].status == "error"
    assert {results[each].status for each in ("KP003", "KP005", "KP090")} == {"skipped"}


def test_the_lock_of_a_user(station: Station) -> None:
    code = f"import socket; s = socket.socket(socket.AF_UNIX); s.bind({NAME!r}); s.listen(); print('here', flush=True); input()"
    with station.lab.inside("node"):
        stranger = subprocess.Popen(
            ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/env", "python3", "-c", code],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
    with stranger:
        assert stranger.stdout
        assert stranger.stdout.readline() == "here\n"
        (found,) = look(station, "KP002", daemon=False, probing=False).values()
        assert f"process {stranger.pid} of user 65534" in found.found[0].evidence
        assert stranger.stdin
        stranger.stdin.close()


def test_a_daemon_that_is_stopped_does_not_answer(station: Station) -> None:
    with station.running() as daemon:
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            results = look(station, "KP003", "KP004", "KP009", probing=False)
        finally:
            daemon.process.send_signal(signal.SIGCONT)
        assert results["KP004"].status == "error"
        assert results["KP003"].status == results["KP009"].status == "skipped"


def test_rules_that_another_program_deletes(station: Station) -> None:
    """While the daemon is stopped it cannot repair them: the ClusterIP fails, and its endpoints do not."""
    with station.running() as daemon:
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            station.lab.run("node", "nft", "flush chain ip kube-proxy find-endpoint")
            station.lab.run("node", "nft", "flush chain ip kube-proxy services")
            results = look(station, "KP080", "KP081", "KP087", "KP090")
        finally:
            daemon.process.send_signal(signal.SIGCONT)
        assert results["KP087"].found[0].service == "default/web"
        assert "IPv4: the kernel lacks" in results["KP090"].found[0].finding
        assert results["KP080"].status == results["KP081"].status == "ok"
        until(lambda: look(station, "KP009", probing=False)["KP009"].found)
        assert "repaired" in look(station, "KP009", probing=False)["KP009"].found[0].evidence
        until(lambda: not bad(look(station), {"KP009"}))


def test_a_rule_that_another_program_adds(station: Station) -> None:
    with station.running() as daemon:
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            station.lab.run("node", "nft", "add element ip kube-proxy cluster-ips { 10.96.9.9 }")
            results = look(station, "KP091", probing=False)
        finally:
            daemon.process.send_signal(signal.SIGCONT)
        assert "10.96.9.9" in results["KP091"].found[0].evidence


def test_endpoints_that_do_not_answer(station: Station) -> None:
    lab = station.lab
    station.folder.put(service("refuses", "10.96.0.1"))
    station.folder.put(endpoints("refuses", EP11, port=4444))
    station.folder.put(service("silent", "10.96.0.2"))
    station.folder.put(endpoints("silent", NOWHERE))
    station.folder.put(service("far", "10.96.0.3"))
    station.folder.put(endpoints("far", "10.250.0.1"))
    lab.run("node", "ip", "route", "add", "unreachable", "10.250.0.0/24")
    try:
        with station.running():
            results = look(station)
    finally:
        lab.run("node", "ip", "route", "delete", "unreachable", "10.250.0.0/24")
    for number, name in (("KP080", "refuses"), ("KP081", "silent"), ("KP082", "far")):
        assert [each.service for each in results[number].found] == [f"default/{name}"], number
    assert bad(results, {"KP080", "KP081", "KP082"}) == {}


def _client(lab: Lab, role: str, kind: int, address: str, port: int) -> socket.socket:
    """A client that sends its first packet and does not wait."""
    with netns.inside(lab.name(role)):
        client = socket.socket(socket.AF_INET, kind)
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        client.connect((address, port))
        if kind == socket.SOCK_DGRAM:
            client.send(b"?")
    return client


def test_clients_that_get_no_answer(station: Station) -> None:
    station.folder.put(service("silent", "10.96.0.2"))
    station.folder.put(endpoints("silent", NOWHERE))
    with station.running(), contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(_client(station.lab, "client", socket.SOCK_STREAM, "10.96.0.2", 80))
        (found,) = look(station, "KP083", probing=False).values()
    assert found.found[0].service == "default/silent"
    assert f"{NOWHERE}:8080" in found.found[0].finding
    assert "5 connections are in state SYN_SENT, 0 were answered" in found.found[0].evidence


def test_flows_to_endpoints_that_are_gone(station: Station) -> None:
    """The daemon ends before the endpoints do, so it does not delete their flows."""
    lab = station.lab
    station.folder.put(endpoints("web", EP11, port=4000))
    with contextlib.ExitStack() as stack:
        with lab.inside("ep11"):
            server = stack.enter_context(socket.create_server(("", 4000)))
        with station.running():
            udp = stack.enter_context(_client(lab, "client", socket.SOCK_DGRAM, DNS, 53))
            udp.setblocking(True)
            udp.settimeout(30)
            assert udp.recv(100)
            stack.enter_context(_client(lab, "client", socket.SOCK_STREAM, WEB, 80))
            server.settimeout(30)
            stack.enter_context(server.accept()[0])
        assert bad(look(station, "KP084", "KP085", daemon=False, probing=False)) == {}
        station.folder.put(endpoints("web", "10.244.2.21"))
        station.folder.put(endpoints("dns", "10.244.2.21", port=5353, protocol="UDP"))
        results = look(station, "KP084", "KP085", daemon=False, probing=False)
    for number, name, place in (("KP084", "dns", f"{EP11}:5353"), ("KP085", "web", f"{EP11}:4000")):
        (found,) = results[number].found
        assert found.service == f"default/{name}"
        assert f"lead to {place}, which is no endpoint any more" in found.finding


def test_packets_that_are_not_translated(station: Station) -> None:
    station.lab.run(
        "node", *["iptables-nft", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"]
    )  # so flows are tracked
    with _client(station.lab, "client", socket.SOCK_DGRAM, DNS, 53):
        (found,) = look(station, "KP086", daemon=False, probing=False).values()
    assert found.found[0].service == "default/dns"


def test_ports_of_this_host(station: Station) -> None:
    ports = (types.ServicePort(6443, node_port=30080),)
    station.folder.put(service("web", WEB, ports=ports, external_ips=("192.0.2.1",), type="NodePort"))
    with contextlib.ExitStack() as stack:
        for address, port in (("0.0.0.0", 6443), ("192.0.2.1", 30080)):
            with station.lab.inside("node"):
                server = stack.enter_context(socket.socket())
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):  # the lab's server has it
                server.bind((address, port))
                server.listen()
        results = look(station, "KP073", "KP074", daemon=False, probing=False)
    assert [each.service for each in results["KP073"].found] == ["default/web"]
    assert [each.service for each in results["KP074"].found] == ["default/web"]
    station.lab.run("node", "sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 60999")
    try:
        (found,) = look(station, "KP033", daemon=False, probing=False).values()
    finally:
        station.lab.run("node", "sysctl", "-qw", "net.ipv4.ip_local_port_range=32768 60999")
    assert "30080" in found.found[0].evidence


def test_no_route_to_cluster_ips(station: Station) -> None:
    lab = station.lab
    assert look(station, "KP040", daemon=False, probing=False)["KP040"].status == "ok"
    lab.run("node", "ip", "route", "delete", "default")
    try:
        (found,) = look(station, "KP040", daemon=False, probing=False).values()
    finally:
        lab.run("node", "ip", "route", "add", "default", "via", "192.0.2.2")
    assert WEB in found.found[0].evidence


def test_without_rights_it_says_what_it_could_not_look_at(station: Station) -> None:
    with station.running():
        done = doctor(station.lab, "--json", prefix=["setpriv", "--bounding-set=-all", "--inh-caps=-all"])
        answer = json.loads(done.stdout)
        assert done.stderr == ""
        skipped = {each["id"]: each["reason"] for each in answer["checks"] if each["status"] == "skipped"}
        wrong = {each["id"]: each for each in answer["checks"] if each["status"] in {"error", "warning"}}
        assert {"KP050", "KP024", "KP083"} <= skipped.keys()
        assert "no permission: run this command as root" in skipped["KP050"]
        assert wrong == {}
        assert done.returncode == 0
        assert answer["skipped"] == len(skipped)
