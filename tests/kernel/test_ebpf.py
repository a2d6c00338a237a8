"""ebpf mode on the lab's node: what a socket sees, restarts, other modes, and rights."""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kubeproxy.api import types
from kubeproxy.api.addresses import IPV4
from kubeproxy.backends.ebpf import held, layout
from kubeproxy.backends.ebpf.counts import open_counter
from kubeproxy.backends.ebpf.install import Installation
from kubeproxy.backends.ebpf.programs.context import Options
from kubeproxy.linux.bpf import pins, programs
from kubeproxy.linux.bpf.assembler import Assembler
from kubeproxy.linux.bpf.host import BpfHost, BpfPlaces
from kubeproxy.linux.bpf.maps import BpfObject, HashMap
from kubeproxy.machine.linux import LinuxMachine
from tests.fakes.cluster import endpoints, service
from tests.kernel import bpffs
from tests.kernel.daemons import NET_ADMIN_ALONE, Station, ask, asked, until
from tests.kernel.test_daemon import run
from tests.kernel.test_modes import tables
from tests.kernel.traffic import Talk, Traffic, talkers
from tests.lab import netns
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab
from tests.machines import MACHINE
from tests.scenarios.world import World

WEB, EMPTY, DNS = "10.96.0.10", "10.96.0.11", "10.96.0.12"
FRONTS = [("client", WEB, 80), ("node", WEB, 80), ("out", "192.0.2.1", 30080)]


@pytest.fixture
def places() -> Iterator[BpfPlaces]:
    with bpffs.places() as found:
        yield found


def station(
    lab: Lab,
    path: Path,
    places: BpfPlaces,
    mode: str = "ebpf",
    *,
    config: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Station:
    """A daemon's place, with a few Services."""
    path.mkdir(exist_ok=True)
    found = Station(lab, path, mode=mode, nodePortAddresses=["192.0.2.0/24", "127.0.0.0/8"], **(config or {}))
    bpffs.configure(found.config, places, **{"scope": "all", "strict": True, **settings})
    found.folder.put(
        service("web", WEB, "fd00:10:96::10", ports=[types.ServicePort(80, node_port=30080)]),
        endpoints("web", EP11, EP12, local=(EP11, EP12), node=NODE_NAME),
        endpoints("web", "fd00:10:244:1::b", name="web-6"),
        service("empty", EMPTY),
        service("dns", DNS, ports=[types.ServicePort(53, protocol="UDP")]),
        endpoints("dns", EP11, port=5353, protocol="UDP", local=(EP11,), node=NODE_NAME),
    )
    return found


def pinned(places: BpfPlaces) -> list[str]:
    return BpfHost(MACHINE, places).folder("v1").names()


def test_what_a_socket_sees(lab: Lab, tmp_path: Path, places: BpfPlaces) -> None:
    """The front is its peer, in every kind of socket; the source is the client itself."""
    with station(lab, tmp_path / "a", places).running(), bpffs.inside(places):
        with netns.inside(lab.name("client")):
            with socket.create_connection((WEB, 80), 5) as sock:
                assert sock.getpeername() == (WEB, 80)
                assert sock.recv(99).decode().split()[1] == "10.244.1.100"
            with socket.socket(socket.AF_INET6) as sock:  # as Java connects to IPv4
                sock.settimeout(5)
                sock.connect((f"::ffff:{WEB}", 80))
                assert sock.getpeername()[:2] == (f"::ffff:{WEB}", 80)
                assert sock.recv(99)
            with socket.create_connection(("fd00:10:96::10", 80), 5) as sock:
                assert sock.getpeername()[:2] == ("fd00:10:96::10", 80)
            for connects in (True, False):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.settimeout(5)
                    if connects:
                        sock.connect((DNS, 53))
                        assert sock.getpeername() == (DNS, 53)
                        sock.send(b"?")
                    else:
                        sock.sendto(b"?", (DNS, 53))
                    assert sock.recvfrom(99)[1] == (DNS, 53)
            with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
                sock.connect((EMPTY, 80))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                assert sock.connect_ex((DNS, 54)) == 0, "no front: not ours"
        with netns.inside(lab.name("node")), socket.create_connection(("127.0.0.1", 30080), 5) as sock:
            assert sock.getpeername() == ("127.0.0.1", 30080)


def test_outside_of_the_cgroup_and_of_the_scope_rules_serve(
    lab: Lab, tmp_path: Path, places: BpfPlaces
) -> None:
    """A connection that was translated by rules has the front as its peer without any program."""
    node = station(lab, tmp_path / "a", places, scope="host", peerNames=False)
    with node.running():
        assert set(asked(lab, "client", WEB)) == {EP11, EP12}
        with bpffs.inside(places):
            for role, peers in (("client", {WEB}), ("node", {EP11, EP12})):
                with netns.inside(lab.name(role)), socket.create_connection((WEB, 80), 5) as sock:
                    assert sock.getpeername()[0] in peers


def test_the_annotation_leaves_a_service_to_rules(lab: Lab, tmp_path: Path, places: BpfPlaces) -> None:
    node = station(lab, tmp_path / "a", places, peerNames=False)
    plain = service("web", WEB)
    meta = types.ObjectMeta("web", "default", annotations=types.Annotations(at_connect="off"))
    node.folder.put(types.Service(meta, plain.spec))
    with (
        node.running(),
        bpffs.inside(places),
        netns.inside(lab.name("client")),
        socket.create_connection((WEB, 80), 5) as sock,
    ):
        assert sock.getpeername()[0] == WEB


def test_no_connection_is_lost_when_the_daemon_is_killed_and_starts_again(
    lab: Lab, tmp_path: Path, places: BpfPlaces
) -> None:
    node = station(lab, tmp_path / "a", places)
    with node.running() as daemon, bpffs.inside(places):
        programs = [name for name in pinned(places) if name.startswith("prog_")]
        with Traffic(lab, FRONTS) as traffic:
            for number in range(2):
                daemon.kill()
                traffic.wait()
                with node.running() as daemon:  # noqa: PLW2901 the next one
                    node.folder.put(
                        endpoints("web", (EP11, EP12)[number], local=(EP11, EP12), node=NODE_NAME)
                    )
                    wanted = {(EP11, EP12)[number]}
                    until(lambda wanted=wanted: set(asked(lab, "client", WEB, times=8)) == wanted)  # type: ignore[misc]
                    daemon.kill()
                traffic.wait()
        assert [name for name in pinned(places) if name.startswith("prog_")] == programs, "adopted"


@pytest.mark.parametrize("other", ["nftables", "iptables"])
def test_to_another_mode_and_back_under_traffic(
    lab: Lab, tmp_path: Path, places: BpfPlaces, other: str
) -> None:
    stations = {mode: station(lab, tmp_path / mode, places, mode) for mode in ("ebpf", other)}
    with talkers(lab, "ep11", "ep12"), bpffs.inside(places), stations[other].running():
        pass
    with bpffs.inside(places), Traffic(lab, FRONTS) as traffic:
        for mode in ("ebpf", other):
            with stations[mode].running():
                table = "iptables" if mode == "iptables" else "nftables"
                until(lambda table=table: tables(lab) == {table})  # type: ignore[misc]
                until(lambda mode=mode: bool(pinned(places)) == (mode == "ebpf"))  # type: ignore[misc]
                traffic.wait()


def test_open_connections_stay_open(lab: Lab, tmp_path: Path, places: BpfPlaces) -> None:
    node = station(lab, tmp_path / "a", places)
    node.folder.put(
        service("web", WEB, ports=[types.ServicePort(7777)]),
        endpoints("web", EP11, EP12, port=7777, local=(EP11, EP12), node=NODE_NAME),
    )
    with talkers(lab, "ep11", "ep12"), bpffs.inside(places):
        with node.running():
            talk = Talk(lab, [("client", WEB, 7777), ("node", WEB, 7777)] * 4)
            talk.say()
        talk.say()
        assert run(node, flags=("--cleanup",)).returncode == 0
        talk.say()
        talk.close()


def test_cleanup_removes_everything(lab: Lab, tmp_path: Path, places: BpfPlaces) -> None:
    node = station(lab, tmp_path / "a", places)
    with node.running():
        assert pinned(places)
    lab.run("node", *node.command("--cleanup"))
    assert pinned(places) == []
    assert not Path(places.pins).exists()
    assert tables(lab) == set()


def test_session_affinity(lab: Lab, tmp_path: Path, places: BpfPlaces) -> None:
    """A client keeps its endpoint when others come and go, and gets another one when it is gone."""
    node = station(lab, tmp_path / "a", places)
    node.folder.put(service("web", WEB, session_affinity="ClientIP"))
    with node.running(), bpffs.inside(places):
        (mine,) = asked(lab, "client", WEB)
        other = EP12 if mine == EP11 else EP11
        for addresses in ((mine,), (EP11, EP12)):
            node.folder.put(endpoints("web", *addresses, local=(EP11, EP12), node=NODE_NAME))
            count = len(addresses)
            until(lambda count=count: _endpoints(lab, places, WEB) == count)  # type: ignore[misc]
            assert set(asked(lab, "client", WEB)) == {mine}
        node.folder.put(endpoints("web", other, local=(EP11, EP12), node=NODE_NAME))
        until(lambda: set(asked(lab, "client", WEB, times=4)) == {other})


def _endpoints(lab: Lab, places: BpfPlaces, address: str) -> int:
    """How many endpoints a ClusterIP has in the maps."""
    host = LinuxMachine(Path("/run/netns", lab.name("node"))).bpf(places)
    installation = Installation(host, "IPv4", Options(host.cookie()))
    assert installation.adopt(writable=False)
    assert installation.maps is not None
    found = {front.address: front for front in held.read(installation.maps).fronts}
    installation.close()
    return len(found[address].endpoints)


def test_maps_grow_under_traffic(lab: Lab, tmp_path: Path, places: BpfPlaces) -> None:
    node = station(lab, tmp_path / "a", places)
    with node.running(), bpffs.inside(places), Traffic(lab, FRONTS) as traffic:
        before = pinned(places)
        node.folder.put(
            *(service(f"many-{i}", f"10.97.{i >> 8}.{i & 255}") for i in range(1, 2200)),
            *(endpoints(f"many-{i}", EP11, local=(EP11,), node=NODE_NAME) for i in range(1, 2200)),
        )
        until(lambda: ask(lab, "node", "10.97.8.150") == EP11)
        traffic.wait()
        assert pinned(places) == before


def test_after_init_only_the_daemon_needs_only_cap_net_admin(
    lab: Lab, tmp_path: Path, places: BpfPlaces
) -> None:
    node = station(lab, tmp_path / "a", places)
    done = lab.run("node", *node.command("--init-only"))
    assert done == ""
    with (
        node.running(prefix=NET_ADMIN_ALONE),
        bpffs.inside(places),
        netns.inside(lab.name("client")),
        socket.create_connection((WEB, 80), 5) as sock,
    ):
        assert sock.recv(99).decode().split()[1] == "10.244.1.100"


def test_without_rights_rules_serve_alone_or_the_daemon_ends(
    lab: Lab, tmp_path: Path, places: BpfPlaces
) -> None:
    node = station(lab, tmp_path / "a", places, strict=False)
    with node.running(prefix=NET_ADMIN_ALONE) as daemon:
        assert "nftables rules serve alone" in daemon.log()
        assert set(asked(lab, "client", WEB)) == {EP11, EP12}
    strict = station(lab, tmp_path / "b", places)
    done = run(strict, *NET_ADMIN_ALONE)
    assert done.returncode == 1
    assert "ebpf mode cannot run its programs" in done.stderr


def test_beside_programs_of_a_network_plugin_the_daemon_ends_and_doctor_says_why(
    lab: Lab, tmp_path: Path, places: BpfPlaces
) -> None:
    """Also the preparation that has all rights; programs whose names are not known are a note."""
    node = station(lab, tmp_path / "a", places, strict=False)
    host = BpfHost(MACHINE, places)
    with node.running():
        assert doctor(node) == ("ok", [])
    for name, refused in (("cil_sock4_conne", True), ("harmless", False)):
        program = programs.load(Assembler(name).exit(1).assemble(), "connect4", {}, "test")
        cgroup = host.open_cgroup()
        link = pins.attach(BpfObject(program), cgroup, "connect4")
        os.close(cgroup)
        for flags in ((), ("--init-only",)) if refused else ():
            done = run(node, flags=flags)
            assert done.returncode == 1
            assert (
                f"cannot run beside other programs that connect sockets to endpoints of Services: {name}"
                in done.stderr
            )
            assert "turn off the socket load balancer" in done.stderr
        status, evidence = doctor(node)
        assert status == ("error" if refused else "note")
        assert evidence == [f"programs {name}"]
        if not refused:
            with node.running():
                assert set(asked(lab, "client", WEB)) == {EP11, EP12}
        link.close()


def doctor(node: Station) -> tuple[str, list[str]]:
    """What is found of programs where sockets connect: the status, and the evidence."""
    (found,) = json.loads(command(node, "doctor", "--json", "--check", "KP027"))["checks"]
    return found["status"], [each["evidence"] for each in found["found"]]


def test_commands_know_the_maps(lab: Lab, tmp_path: Path, places: BpfPlaces) -> None:
    """What is missing in the maps is named by verify; explain prints what they hold."""
    node = station(lab, tmp_path / "a", places)
    with node.running():
        pass
    assert "the kernel holds what is planned" in command(node, "verify")
    explained = command(node, "explain", "--from", "node", "--to", f"{WEB}:80")
    assert "decided when the socket is connected" in explained
    assert f"front {WEB}:80 TCP -> {EP11}:8080, {EP12}:8080" in explained
    pin = BpfHost(MACHINE, places).folder("v1").get("fronts4")
    assert pin is not None
    HashMap(pin.release()).delete([layout.front(WEB, "TCP", 80, IPV4)])
    verified = command(node, "verify")
    assert f"front {WEB}:80 TCP -> {EP11}:8080, {EP12}:8080" in verified
    with node.running():
        pass
    assert "the kernel holds what is planned" in command(node, "verify")


def test_plan_of_another_mode_names_the_programs(lab: Lab, tmp_path: Path, places: BpfPlaces) -> None:
    """What a start removes: the maps where the table stays, the table, too, where it does not."""
    node = station(lab, tmp_path / "a", places)
    with node.running():
        pass
    for other, old in (("nftables", {"ebpf mode"}), ("iptables", {"ebpf mode", "nftables mode"})):
        answer = json.loads(command(node, "plan", "--json", "--mode", other))
        assert {each["what"] for each in answer["removed"]} == old
        lines = [line for each in answer["removed"] if each["what"] == "ebpf mode" for line in each["lines"]]
        assert f"front {WEB}:80 TCP -> {EP11}:8080, {EP12}:8080" in lines
        assert not any("nft " in line for line in lines)
    assert run(node, flags=("--cleanup",)).returncode == 0
    for other in ("nftables", "iptables"):
        assert json.loads(command(node, "plan", "--json", "--mode", other))["removed"] == []


def test_connections_of_sockets_are_counted(lab: Lab, tmp_path: Path, places: BpfPlaces) -> None:
    """By endpoint, also those of clients that stay with one."""
    node = station(lab, tmp_path / "a", places)
    node.folder.put(
        service("sticky", "10.96.0.20", session_affinity="ClientIP"),
        endpoints("sticky", EP11, EP12, local=(EP11, EP12), node=NODE_NAME),
    )
    with node.running(), bpffs.inside(places):
        seen = asked(lab, "client", WEB, times=20)
        (stuck,) = asked(lab, "client", "10.96.0.20", times=10)
        machine = LinuxMachine(Path("/run/netns", lab.name("node")), bpf=places)
        world = World(node.config, node.folder.path)
        counter = open_counter(machine, world.nodes[IPV4])
        for plan in world.plans(IPV4):
            counter.set(plan.key, plan)
        counts = counter.read()
        assert counts is not None
        assert counts["default/web", "TCP"] == {(address, 8080): count for address, count in seen.items()}
        assert counts["default/sticky", "TCP"][stuck, 8080] == 10
        counter.close()


def command(node: Station, *words: str) -> str:
    """What a command prints."""
    line = node.command()
    at = line.index("kubeproxy") + 1
    return node.lab.run("node", *line[:at], words[0], *line[at:], *words[1:], check=False)
