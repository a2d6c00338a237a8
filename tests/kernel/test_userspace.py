"""Userspace mode on the lab's node: what the oracle cannot show, for it knows neither failures nor changes."""

import contextlib
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubeproxy.api import types
from kubeproxy.netlink.nft import kernel
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import PATIENCE, Station, answers, ask, asked, until
from tests.kernel.traffic import TALK_PORT, Talk, talkers
from tests.lab.daemon import Daemon
from tests.lab.topology import EP11, EP11_6, EP12, NODE_NAME, REMOTE, Lab
from tests.machines import MACHINE

WEB, OTHER = "10.96.0.10", "10.96.0.11"
WEB6 = "fd00:10:96::a"
NODE, NODE6 = "192.0.2.1", "2001:db8:2::1"
CLOSED, SILENT = 9, "10.244.3.1"  # a port nobody listens on; an address beyond the router that nobody has
NODE_PORT = 30080


def station(lab: Lab, path: Path, mode: str = "userspace", **config: Any) -> Station:
    return Station(lab, path, mode=mode, **config)


def web(*addresses: str, port: int = 8080, **spec: Any) -> tuple[types.Service, types.EndpointSlice]:
    return service("web", WEB, **spec), endpoints("web", *addresses, port=port)


def node_port(protocol: str = "TCP") -> dict[str, Any]:
    return {"type": "NodePort", "ports": [types.ServicePort(80, protocol=protocol, node_port=NODE_PORT)]}


def relays(daemon: Daemon) -> list[int]:
    """The numbers of a daemon's relay processes."""
    children = Path(f"/proc/{daemon.process.pid}/task").glob("*/children")
    return [int(number) for file in children for number in file.read_text().split()]


def lives(process: int) -> bool:
    """Whether a process runs; one that ended and that nobody has asked about does not."""
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_bytes())
    except OSError:
        return False


def relay_port(lab: Lab) -> int:
    """The port traffic to the only Service is led to."""
    listed = lab.run("node", "nft", "list", "map", "ip", "kube-proxy", "endpoints-1")
    found = re.search(rf": {NODE} \. (\d+)", listed)
    assert found, listed
    return int(found[1])


def test_endpoints_that_refuse_or_are_silent_are_masked(lab: Lab, tmp_path: Path) -> None:
    here = station(lab, tmp_path)
    dead = endpoints("web", EP12, port=CLOSED, name="web-refuses")
    silent = endpoints("web", SILENT, name="web-silent")
    here.folder.put(*web(EP11), dead, silent)
    with here.running() as daemon:
        assert asked(lab, "client", WEB, times=9) == {EP11: 9}
        daemon.says(f"{EP12} port {CLOSED} cannot be connected: Connection refused")
        daemon.says(f"{SILENT} port 8080 cannot be connected: no answer within 0.25 s")


def test_without_a_living_endpoint_clients_are_reset(lab: Lab, tmp_path: Path) -> None:
    here = station(lab, tmp_path)
    here.folder.put(*web(EP11, EP12, port=CLOSED))
    with here.running() as daemon:
        assert ask(lab, "client", WEB) == "ConnectionResetError"
        daemon.says("no endpoint can be connected, clients are reset")


def test_endpoints_change_without_a_word_to_the_kernel(lab: Lab, tmp_path: Path) -> None:
    here = station(lab, tmp_path)
    here.folder.put(*web(EP11))
    with here.running():
        with lab.inside("node"):
            before = kernel.generation(MACHINE)
        here.folder.put(endpoints("web", EP12, port=8080))
        until(lambda: answers(lab, "out", WEB, EP12))
        with lab.inside("node"):
            assert kernel.generation(MACHINE) == before


def test_old_connections_outlive_their_endpoint_and_their_service(lab: Lab, tmp_path: Path) -> None:
    here = station(lab, tmp_path)
    here.folder.put(*web(EP11, port=TALK_PORT), service("stays", OTHER), endpoints("stays", EP12, port=8080))
    with talkers(lab, "ep11", "ep12"), here.running():
        talk = Talk(lab, [("client", WEB, 80), ("out", WEB, 80)])
        with contextlib.closing(talk):
            talk.say()
            here.folder.put(endpoints("web", EP12, port=8080))
            until(lambda: answers(lab, "client", WEB, EP12))
            talk.say()
            here.folder.path.joinpath("Service.default.web.json").unlink()
            until(lambda: ask(lab, "client", WEB, patience=0.2) not in {EP11, EP12})
            talk.say()
        assert ask(lab, "client", OTHER) == EP12


def test_a_relay_that_dies_has_a_successor(lab: Lab, tmp_path: Path) -> None:
    here = station(lab, tmp_path, bindAddress=NODE)
    here.folder.put(*web(EP11, port=TALK_PORT))
    with talkers(lab, "ep11"), here.running() as daemon:
        talk = Talk(lab, [("client", WEB, 80)])
        with contextlib.closing(talk):
            talk.say()
            (relay,) = relays(daemon)
            os.kill(relay, signal.SIGKILL)
            with pytest.raises((ConnectionError, AssertionError)):
                talk.say()
        again = Talk(lab, [("client", WEB, 80)])  # waits in the socket, which the daemon keeps
        with contextlib.closing(again):
            again.say()
        daemon.says("the relay process is replaced, it ended; its connections are lost (exit status -9)")
        until(lambda: len(relays(daemon)) == 1)


def test_the_relay_ends_with_the_daemon_however_that_ends(lab: Lab, tmp_path: Path) -> None:
    here = station(lab, tmp_path)
    here.folder.put(*web(EP11, port=TALK_PORT))
    with talkers(lab, "ep11"), here.running() as daemon:
        talk = Talk(lab, [("client", WEB, 80)])
        children = relays(daemon)
        daemon.kill()
        with contextlib.closing(talk), pytest.raises(ConnectionResetError):
            until(talk.say)
        assert children
        until(lambda: not any(map(lives, children)))


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_only_who_came_by_a_front_is_served(lab: Lab, tmp_path: Path, protocol: str) -> None:
    here = station(lab, tmp_path)
    here.folder.put(
        service("web", WEB, ports=[types.ServicePort(80, protocol=protocol)]),
        endpoints("web", EP11, port=8080, protocol=protocol),
    )
    with here.running():
        port = relay_port(lab)
        for role in ("client", "node", "out"):
            if protocol == "TCP":
                assert ask(lab, role, WEB) == EP11
                assert ask(lab, role, NODE, port) == "ConnectionResetError"
            else:
                assert asked_udp(lab, role, NODE, port, patience=0.2) == "TimeoutError"
                assert asked_udp(lab, role, WEB, 80) == EP11


def asked_udp(lab: Lab, role: str, address: str, port: int, patience: float = 5.0) -> str:
    """Which backend answers a packet, or why none does. Only an answer from where it was sent to is one."""
    with lab.inside(role):
        client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    with client:
        client.settimeout(patience)
        try:
            client.connect((address, port))
            client.send(b"?")
            return client.recv(256).decode().split(" ")[0]
        except OSError as e:
            return type(e).__name__


def test_a_port_range_holds(lab: Lab, tmp_path: Path) -> None:
    here = station(lab, tmp_path, portRange="41000-41001", iptables={"syncPeriod": "500ms"})
    here.folder.put(*web(EP11), service("two", OTHER), endpoints("two", EP12))
    with here.running() as daemon:
        assert relay_port(lab) in {41000, 41001}
        assert ask(lab, "client", OTHER) == EP12
        here.folder.put(service("three", "10.96.0.12"), endpoints("three", EP12))
        daemon.says("no port of 41000-41001 is free")
        daemon.says("Service default/three")
        assert ask(lab, "client", WEB) == EP11
        here.folder.path.joinpath("Service.default.two.json").unlink()
        until(lambda: answers(lab, "client", "10.96.0.12", EP12))


def test_an_endpoint_may_have_the_address_of_a_front(lab: Lab, tmp_path: Path) -> None:
    """The relay's own connections are led nowhere, else they would come back to it without end."""
    here = station(lab, tmp_path)
    here.folder.put(
        service("api", WEB, ports=[types.ServicePort(6443)], external_ips=(NODE,)),
        endpoints("api", NODE, port=6443, local=[NODE]),
    )
    with here.running():
        for role in ("client", "node", "out"):
            assert ask(lab, role, WEB, 6443) == NODE
            assert ask(lab, role, NODE, 6443) == NODE


@pytest.mark.parametrize("mode", ["userspace", "nftables"])
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_node_ports_on_localhost(lab: Lab, tmp_path: Path, mode: str, protocol: str) -> None:
    here = station(
        lab, tmp_path, mode, nodePortAddresses=["192.0.2.0/24", "127.0.0.0/8", "::1/128", f"{NODE6}/128"]
    )
    here.folder.put(
        service("web", WEB, WEB6, external_traffic_policy="Local", **node_port(protocol)),
        endpoints("web", EP11, port=8080, protocol=protocol),
        endpoints("web", EP11_6, port=8080, protocol=protocol, name="web-6"),
    )
    reach = ask if protocol == "TCP" else asked_udp
    with here.running():
        for address, backend in (("127.0.0.1", EP11), ("::1", EP11_6), (NODE, EP11), (NODE6, EP11_6)):
            until(lambda: reach(lab, "node", address, NODE_PORT) == backend, f"{address} does not answer")  # noqa: B023
        here.folder.path.joinpath("Service.default.web.json").unlink()
        until(lambda: ask(lab, "node", "127.0.0.1", NODE_PORT) == "ConnectionRefusedError")


@pytest.mark.parametrize("mode", ["userspace", "nftables"])
def test_it_is_ready_when_the_relay_accepts_connections(lab: Lab, tmp_path: Path, mode: str) -> None:
    count = 40
    here = station(lab, tmp_path, mode, nodePortAddresses=["192.0.2.0/24", "127.0.0.0/8"])
    for i in range(count):
        port = types.ServicePort(80, node_port=NODE_PORT + i)
        here.folder.put(
            service(f"web-{i}", f"10.96.1.{i}", ports=(port,), type="NodePort"),
            endpoints(f"web-{i}", EP11, port=8080),
        )
    with here.running() as daemon:
        fds = [
            {str(file.readlink()) for file in Path(f"/proc/{relay}/fd").iterdir()} for relay in relays(daemon)
        ]
        held = max(sum(name.startswith("socket:") for name in names) for names in fds)
        # Those of ClusterIPs each; node ports on localhost have one together, where the kernel steers clients to it.
        assert held > (count if mode == "userspace" else 1), "the relay has the listening sockets"
        assert {ask(lab, "node", "127.0.0.1", NODE_PORT + i) for i in range(count)} == {EP11}


def test_localhost_is_not_served_where_nobody_asked(lab: Lab, tmp_path: Path) -> None:
    here = station(lab, tmp_path, "nftables", nodePortAddresses=["192.0.2.0/24"])
    here.folder.put(*web(EP11, **node_port()))
    with here.running() as daemon:
        assert ask(lab, "node", NODE, NODE_PORT) == EP11
        assert ask(lab, "node", "127.0.0.1", NODE_PORT) == "ConnectionRefusedError"
        assert relays(daemon) == []


def test_a_port_that_somebody_has_is_told_and_served_when_free(lab: Lab, tmp_path: Path) -> None:
    here = station(
        lab, tmp_path, "nftables", nodePortAddresses=["127.0.0.1/32"], nftables={"syncPeriod": "200ms"}
    )
    here.folder.put(*web(EP11, **node_port()))
    with lab.inside("node"):
        other = socket.create_server(("127.0.0.1", NODE_PORT))
    with here.running() as daemon:
        assert ask(lab, "client", WEB) == EP11
        told = f"Service default/web: node port 127.0.0.1:{NODE_PORT} TCP is not served on localhost: Address already in use"
        daemon.says(told)
        other.close()
        until(lambda: ask(lab, "node", "127.0.0.1", NODE_PORT, patience=0.5) == EP11)
        assert daemon.log().count(told) == 1


@contextlib.contextmanager
def listening(lab: Lab, role: str, address: str, port: int) -> Iterator[socket.socket]:
    """A server in a namespace."""
    with lab.inside(role):
        server = socket.create_server(
            (address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET
        )
    with server:
        server.settimeout(PATIENCE)
        yield server


def test_proxy_protocol_names_the_client_and_the_front(lab: Lab, tmp_path: Path) -> None:
    here = station(lab, tmp_path)
    plain = service("web", WEB)
    annotated = types.Service(
        types.ObjectMeta("web", "default", annotations=types.Annotations(proxy_protocol="v2")), plain.spec
    )
    here.folder.put(annotated, endpoints("web", EP11, port=9999))
    with listening(lab, "ep11", EP11, 9999) as server, here.running():
        with lab.inside("out"):
            client = socket.create_connection((WEB, 80), PATIENCE)
        with client:
            client.send(b"hello")
            connection, _ = server.accept()
            with connection:
                said = connection.recv(28 + 5, socket.MSG_WAITALL)
            source, port = client.getsockname()
    assert said[:16] == b"\r\n\r\n\x00\r\nQUIT\n" + b"\x21\x11\x00\x0c"
    assert said[16:24] == socket.inet_aton(source) + socket.inet_aton(WEB)
    assert said[24:28] == port.to_bytes(2) + (80).to_bytes(2)
    assert said[28:] == b"hello"


def test_without_any_right(lab: Lab, tmp_path: Path) -> None:
    """--userspace-listen: node ports, and ClusterIPs that the host has."""
    here = station(lab, tmp_path, clusterCIDR="10.244.0.0/16")
    here.folder.put(
        service("web", WEB, ports=[types.ServicePort(8080, node_port=NODE_PORT)], type="NodePort"),
        endpoints("web", EP11, port=8080),
        service("local", OTHER, ports=[types.ServicePort(8081)]),
        endpoints("local", EP12, port=8081),
        service(
            "near", "10.96.0.12", type="NodePort", external_traffic_policy="Local",
            ports=[types.ServicePort(80, node_port=NODE_PORT + 1)],
        ),
        endpoints("near", EP11, REMOTE, port=8080, local=[EP11], node=NODE_NAME),
    )  # fmt: skip
    lab.run("node", "ip", "address", "add", f"{OTHER}/32", "dev", "lo")
    command = [
        "setpriv",
        "--bounding-set=-all",
        "--inh-caps=-all",
        *here.command("--userspace-listen", "-v=2"),
    ]
    assert command[3] == sys.executable
    rules = lab.run("node", "nft", "list", "ruleset")
    try:
        with Daemon(lab, command, timeout=PATIENCE) as daemon:
            for role in ("client", "node", "out"):
                assert ask(lab, role, NODE, NODE_PORT) == EP11
            assert ask(lab, "node", "127.0.0.1", NODE_PORT) == EP11
            assert ask(lab, "node", OTHER, 8081) == EP12
            assert set(asked(lab, "out", NODE, NODE_PORT + 1)) == {EP11}
            assert set(asked(lab, "node", NODE, NODE_PORT + 1)) == {EP11, REMOTE}
            daemon.says(f"Service default/web: {WEB}:8080 is not served, the address is not this host's")
            assert lab.run("node", "nft", "list", "ruleset") == rules
            here.folder.put(endpoints("local", EP11, port=8081))
            until(lambda: ask(lab, "node", OTHER, 8081) == EP11)
            here.folder.path.joinpath("Service.default.local.json").unlink()
            until(lambda: ask(lab, "node", OTHER, 8081) == "ConnectionRefusedError")
    finally:
        lab.run("node", "ip", "address", "del", f"{OTHER}/32", "dev", "lo")


def test_one_right_is_enough(lab: Lab, tmp_path: Path) -> None:
    here = station(lab, tmp_path)
    here.folder.put(
        *web(EP11, **node_port()),
        service("dns", OTHER, ports=[types.ServicePort(53, protocol="UDP")]),
        endpoints("dns", EP12, port=5353, protocol="UDP"),
    )
    command = ["setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all", *here.command()]
    with Daemon(lab, command, timeout=PATIENCE):
        for role in ("client", "node", "out"):
            assert ask(lab, role, WEB) == EP11
            assert asked_udp(lab, role, OTHER, 53) == EP12
        assert ask(lab, "node", "127.0.0.1", NODE_PORT) == EP11


def test_userspace_mode_without_rights_says_what_does_without(lab: Lab, tmp_path: Path) -> None:
    here = station(lab, tmp_path)
    here.folder.put(*web(EP11))
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *here.command()]
    with (
        pytest.raises(AssertionError, match=r"--userspace-listen does without.*CAP_NET_ADMIN"),
        Daemon(lab, command),
    ):
        pass


@pytest.mark.parametrize("other", ["nftables", "iptables"])
def test_switching_modes_and_back(lab: Lab, tmp_path: Path, other: str) -> None:
    """What another mode left is taken over, or removed when the new one works."""
    for name in ("direct", "relayed"):
        (tmp_path / name).mkdir()
    direct, relayed = station(lab, tmp_path / "direct", other), station(lab, tmp_path / "relayed")
    for here in (direct, relayed):
        here.folder.put(*web(EP11))
    for here in (direct, relayed, direct):
        with here.running():
            # Rules of a relay that has ended lead nowhere until they are removed.
            until(lambda: answers(lab, "client", WEB, EP11))
            if here is relayed:
                until(lambda: "KUBE-SERVICES" not in lab.run("node", "nft", "list", "ruleset"))
                assert relay_port(lab)
    if other == "iptables":
        assert "kube-proxy" not in lab.run("node", "nft", "list", "tables")


def test_udp_clients_are_served_on_after_a_restart(lab: Lab, tmp_path: Path) -> None:
    """The relay listens elsewhere then: what connection tracking knows of the old place is deleted."""
    here = station(lab, tmp_path)
    here.folder.put(
        service("dns", WEB, ports=[types.ServicePort(53, protocol="UDP")]),
        endpoints("dns", EP11, port=5353, protocol="UDP"),
    )
    with lab.inside("out"):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with client:
        client.connect((WEB, 53))
        client.settimeout(0.2)

        def served() -> bool:
            try:
                client.send(b"?")
                return client.recv(100).startswith(EP11.encode())
            except OSError:
                return False

        for _ in range(2):
            with here.running():
                until(served)


def test_a_relay_that_hangs_delays_neither_the_daemon_nor_its_end(lab: Lab, tmp_path: Path) -> None:
    """Its process is stopped before each of them; the daemon's answers and changes go on, and it is replaced."""
    here = station(lab, tmp_path, bindAddress=NODE)
    here.folder.put(*web(EP11, port=TALK_PORT))
    with talkers(lab, "ep11"), here.running() as daemon:
        with contextlib.closing(Talk(lab, [("client", WEB, 80)])) as talk:
            talk.say()
            (relay,) = relays(daemon)
            os.kill(relay, signal.SIGSTOP)
            here.folder.put(service("other", OTHER), endpoints("other", EP12))
            daemon.says("the relay process is replaced, it did not respond for")
        with contextlib.closing(Talk(lab, [("client", WEB, 80)])) as again:
            again.say()
        until(lambda: len(relays(daemon)) == 1)
        (relay,) = relays(daemon)
        os.kill(relay, signal.SIGSTOP)
        daemon.stop()
        assert not Path(f"/proc/{relay}").exists()
