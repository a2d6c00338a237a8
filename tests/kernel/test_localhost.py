"""Node ports on localhost in nftables mode: words, gate and policy as in v1.38, and UDP, too."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeproxy.api.types import ServicePort
from kubeproxy.linux.bpf import syscall
from kubeproxy.linux.bpf.programs import ATTACH
from kubeproxy.machine.linux import LinuxMachine
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import NET_ADMIN_ALONE, Station, ask, until
from tests.kernel.test_steering import sockets_at
from tests.lab import netns
from tests.lab.topology import EP11, EP11_6, NODE_NAME, REMOTE, Lab

GATE = "KubeProxyNFTablesLocalhostNodePorts"
WEB, FAR, DNS = 30080, 30081, 30053


def running(lab: Lab, path: Path, *addresses: str, **gates: bool) -> Iterator[None]:
    """A daemon that serves node ports at some addresses."""
    with station(lab, path, *addresses, **gates).running():
        yield


def station(lab: Lab, path: Path, *addresses: str, **gates: bool) -> Station:
    """Its place."""
    made = Station(lab, path, mode="nftables", nodePortAddresses=list(addresses), featureGates=gates)
    made.folder.put(
        service("web", "10.96.0.10", "fd00:10:96::a", type="NodePort", ports=[ServicePort(80, node_port=WEB)]),
        endpoints("web", EP11, local=(EP11,), node=NODE_NAME),
        endpoints("web", EP11_6, name="web-6", local=(EP11_6,), node=NODE_NAME),
        service(
            "far", "10.96.0.11", type="NodePort", ports=[ServicePort(80, node_port=FAR)],
            external_traffic_policy="Local",
        ),
        endpoints("far", REMOTE),
        service("dns", "10.96.0.12", type="NodePort", ports=[ServicePort(53, protocol="UDP", node_port=DNS)]),
        endpoints("dns", EP11, port=5353, protocol="UDP", local=(EP11,), node=NODE_NAME),
    )  # fmt: skip
    return made


def asked_by_udp(lab: Lab, address: str) -> str:
    """Which endpoint of the Service of UDP answers a process of the node, or why none does."""
    with netns.inside(lab.name("node")), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        try:
            client.connect((address, DNS))
            client.send(b"?")
            return client.recv(256).decode().split(" ")[0]
        except OSError as e:
            return type(e).__name__


def answers(lab: Lab) -> list[str]:
    """Who answers at each of the node ports on localhost."""
    tcp = [ask(lab, "node", *at, 20) for at in (("127.0.0.1", WEB), ("::1", WEB), ("127.0.0.1", FAR))]
    return [*tcp, asked_by_udp(lab, "127.0.0.1")]


@pytest.mark.parametrize("gates", [{}, {GATE: True}])
def test_the_word_localhost_starts_the_relay(lab: Lab, tmp_path: Path, gates: dict[str, bool]) -> None:
    """If the gate is set, the policy is that of v1.38: without a local endpoint nothing listens."""
    for _ in running(lab, tmp_path, "primary", "localhost", **gates):
        far = "ConnectionRefusedError" if gates else REMOTE
        assert answers(lab) == [EP11, EP11_6, far, EP11]
        assert ask(lab, "out", "192.0.2.1", WEB) == EP11


@pytest.mark.parametrize(
    ("addresses", "gates"),
    [(("primary",), {}), (("all",), {}), (("all", "localhost"), {GATE: False})],
)
def test_nothing_listens_otherwise(
    lab: Lab, tmp_path: Path, addresses: tuple[str, ...], gates: dict[str, bool]
) -> None:
    for _ in running(lab, tmp_path, *addresses, **gates):
        assert set(answers(lab)) == {"ConnectionRefusedError"}
        assert ask(lab, "node", "192.0.2.1", WEB) == EP11


def test_all_addresses_and_localhost(lab: Lab, tmp_path: Path) -> None:
    for _ in running(lab, tmp_path, "0.0.0.0/0", "::/0", "127.0.0.1/32"):
        assert answers(lab) == [EP11, "ConnectionRefusedError", REMOTE, EP11]
        assert ask(lab, "node", "10.244.1.1", WEB) == EP11


def programs(lab: Lab) -> int:
    """How many programs steer packets in the node's namespace."""
    namespace = LinuxMachine(Path("/run/netns", lab.name("node"))).bpf().open_namespace()
    try:
        return len(syscall.attached(namespace, ATTACH["sk_lookup"], effective=False))
    finally:
        os.close(namespace)


def test_ports_are_steered_to_one_socket_until_the_daemon_ends(lab: Lab, tmp_path: Path) -> None:
    """However it ends: nothing that steers is left behind, and the next one serves."""
    made = station(lab, tmp_path, "primary", "localhost")
    for _ in range(2):
        with made.running() as daemon:
            assert answers(lab) == [EP11, EP11_6, REMOTE, EP11]
            with netns.inside(lab.name("node")):
                assert sockets_at((WEB, FAR)) == 0
            assert programs(lab) == 2, "one for each family"
            daemon.kill()
        until(lambda: programs(lab) == 0)
        until(lambda: set(answers(lab)) == {"ConnectionRefusedError"})  # its relay ends a moment later


def test_without_the_right_to_load_programs_each_port_has_a_socket(lab: Lab, tmp_path: Path) -> None:
    made = station(lab, tmp_path, "primary", "localhost")
    with made.running(prefix=NET_ADMIN_ALONE):
        assert answers(lab) == [EP11, EP11_6, REMOTE, EP11]
        with netns.inside(lab.name("node")):
            assert sockets_at((WEB, FAR)) == 3
        assert programs(lab) == 0
