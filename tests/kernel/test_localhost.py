"""Node ports on localhost in nftables mode: words, gate and policy as in v1.38, and UDP, too."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeproxy.api.types import ServicePort
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station, ask
from tests.lab import netns
from tests.lab.topology import EP11, EP11_6, NODE_NAME, REMOTE, Lab

GATE = "KubeProxyNFTablesLocalhostNodePorts"
WEB, FAR, DNS = 30080, 30081, 30053


def running(lab: Lab, path: Path, *addresses: str, **gates: bool) -> Iterator[None]:
    """A daemon that serves node ports at some addresses."""
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
    with made.running():
        yield


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
