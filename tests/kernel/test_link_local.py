"""A node whose only IPv6 address is that of its link, as on most IPv4 networks, with dual-stack Services in every mode."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeproxy import host
from kubeproxy.api import types
from kubeproxy.api.addresses import IPV6
from kubeproxy.backends.userspace.here import Reachable
from kubeproxy.model.node import NodeConfig
from kubeproxy.netlink import route
from kubeproxy.sources.auth import Credentials
from kubeproxy.sources.client import Client
from kubeproxy.sources.kubeconfig import Cluster, ClusterAccess, User
from tests.fakes.cluster import endpoints, service
from tests.fakes.tls import Authority
from tests.kernel.daemons import Bare, Station, until
from tests.lab import netns
from tests.machines import MACHINE

WEB, WEB6, HERE = "10.96.0.10", "fd00:10:96::a", "192.0.2.9"
NODE_PORT, CHECK = 30080, 30900
BOUND = "fe80::/10"
"""Node ports on addresses of the link."""


@pytest.fixture
def linked(space: str) -> tuple[str, str]:
    """The name of a namespace with IPv4 and a link, and the address it has there."""
    forwarding = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}
    netns.write_sysctls(space, {"net/ipv6/conf/default/accept_dad": "0", **forwarding})
    netns.finish(
        netns.ip_batch(
            "link add eth0 type veth peer name cable",
            "link set cable addrgenmode none",
            "link set cable up",
            "link set eth0 up",
            f"address add {HERE}/24 dev eth0",
            "route add default via 192.0.2.254",
            namespace=space,
        )
    )
    with netns.inside(space):
        found = [
            address.packed for address in route.addresses(MACHINE) if route.is_link_local6(address.packed)
        ]
    assert len(found) == 1
    return space, socket.inet_ntop(socket.AF_INET6, found[0])


@contextlib.contextmanager
def server(space: str, address: str, kind: int) -> Iterator[int]:
    """Answers each client, or packet, with "here"; gives the port."""
    domain = socket.AF_INET6 if ":" in address else socket.AF_INET
    with netns.inside(space):
        sock = socket.socket(domain, kind)
    sock.bind((address, 0))
    if kind == socket.SOCK_STREAM:
        sock.listen()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                if kind == socket.SOCK_STREAM:
                    client, _ = sock.accept()
                    client.sendall(b"here")
                    client.close()
                else:
                    _, peer = sock.recvfrom(64)
                    if peer is None:
                        return  # it was shut down
                    sock.sendto(b"here", peer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield sock.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()
        thread.join(10)


def asks(space: str, address: str, port: int, kind: int = socket.SOCK_STREAM, *, interface: str = "") -> str:
    """What a client in the namespace is answered. At an address of a link it says by which interface it asks."""
    domain = socket.AF_INET6 if ":" in address else socket.AF_INET
    with netns.inside(space):
        client = socket.socket(domain, kind)
        number = socket.if_nametoindex(interface) if interface else 0
    where = (address, port, 0, number) if number else (address, port)
    with client:
        client.settimeout(1)
        try:
            client.connect(where)
            if kind == socket.SOCK_DGRAM:
                client.send(b"?")
            return client.recv(64).decode()
        except OSError as e:
            return type(e).__name__


@pytest.mark.parametrize("ranges", [(), ("primary",), ("0.0.0.0/0", BOUND)])
@pytest.mark.parametrize("mode", ["iptables", "nftables", "userspace", "userspace-listen"])
def test_it_becomes_ready_and_serves(
    linked: tuple[str, str], tmp_path: Path, mode: str, ranges: tuple[str, ...]
) -> None:
    space, address = linked
    station = Station(
        Bare(space), tmp_path, mode=mode.removesuffix("-listen"), nodePortAddresses=list(ranges)
    )
    for file in station.folder.path.iterdir():
        file.unlink()  # no Node object
    with server(space, HERE, socket.SOCK_STREAM) as port, server(space, "::1", socket.SOCK_STREAM) as port6:
        station.folder.put(
            service(
                "web", WEB, WEB6, type="LoadBalancer", health_check_node_port=CHECK,
                external_traffic_policy="Local", ports=[types.ServicePort(80, node_port=NODE_PORT)],
            ),
            endpoints("web", HERE, port=port, local=(HERE,), node="lab-node"),
            endpoints("web", "::1", port=port6, local=("::1",), node="lab-node", name="web-6"),
        )  # fmt: skip
        with station.running(*["--userspace-listen"] * mode.endswith("-listen")) as daemon:
            until(lambda: probed(space, HERE))
            if ranges[1:]:
                until(lambda: probed(space, address))
            assert not [line for line in daemon.log().splitlines() if line.startswith("E")]
            assert "inet_pton" not in daemon.log()
            if not mode.endswith("-listen"):  # the ClusterIP is not this host's
                assert asks(space, WEB, 80) == "here"
            if mode == "userspace":
                netns.finish(netns.ip_batch(f"route add {WEB6} dev lo", namespace=space, family="-6"))
                assert asks(space, WEB6, 80) == "here"


def probed(space: str, address: str) -> bool:
    """Whether a health-check port answers a load balancer."""
    with netns.inside(space):
        client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        where = route.socket_address(MACHINE.addresses, address, CHECK)
    with client, contextlib.suppress(OSError):
        client.settimeout(5)
        client.connect(where)
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return b"localEndpoints" in b"".join(iter(lambda: client.recv(4096), b""))
    return False


@pytest.fixture
def neighbour(linked: tuple[str, str]) -> Iterator[str]:
    """The name of a namespace at the other end of the cable."""
    name = f"{netns.unique_prefix()}far"
    netns.create([name])
    try:
        netns.write_sysctls(name, {"net/ipv6/conf/default/accept_dad": "0"})
        netns.finish(netns.ip_batch(f"link set cable netns {name}", namespace=linked[0]))
        netns.finish(netns.ip_batch("link set cable addrgenmode eui64", "link set cable up", namespace=name))
        yield name
    finally:
        netns.delete([name])


@pytest.mark.parametrize("ranges", [(), (BOUND, "::1/128")])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_relay_answers_clients_of_the_link(
    linked: tuple[str, str], neighbour: str, tmp_path: Path, kind: int, ranges: tuple[str, ...]
) -> None:
    space, address = linked
    protocol = "TCP" if kind == socket.SOCK_STREAM else "UDP"
    station = Station(Bare(space), tmp_path, mode="userspace", nodePortAddresses=list(ranges))
    with server(space, "::1", kind) as port:
        station.folder.put(
            service("web", WEB6, type="NodePort", ports=[types.ServicePort(80, "", protocol, NODE_PORT)]),
            endpoints("web", "::1", port=port, protocol=protocol),
        )
        with station.running("--userspace-listen"):
            assert asks(neighbour, address, NODE_PORT, kind, interface="cable") == "here"
            assert asks(space, address, NODE_PORT, kind, interface="eth0") == "here"
            assert asks(space, "::1", NODE_PORT, kind) == "here"


@pytest.mark.parametrize("default_route", [False, True])
def test_which_addresses_are_the_node_s(
    linked: tuple[str, str], caplog: pytest.LogCaptureFixture, default_route: bool
) -> None:
    space, address = linked
    if default_route:
        netns.finish(netns.ip_batch("route add default via fe80::1 dev eth0", namespace=space, family="-6"))
    with netns.inside(space):
        assert host.own_addresses(MACHINE) == (HERE,)
        reachable = Reachable(MACHINE)
        assert reachable(NodeConfig(family=IPV6, address=address)) == "::1"
        assert reachable(NodeConfig(family=IPV6, address="::1")) == "::1"
        assert caplog.text.count("IPv6: this host has no address that other hosts can reach") == 1
        assert reachable(NodeConfig(address="127.0.0.1")) == HERE
        netns.finish(netns.ip_batch("address add fd00::7/128 dev lo", namespace=space, family="-6"))
        assert reachable(NodeConfig(family=IPV6, address="::1")) == "fd00::7"


def test_an_api_server_on_the_link(linked: tuple[str, str]) -> None:
    """Its certificate and the request have the address without the interface."""
    space, address = linked
    authority = Authority()
    heads: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async def request() -> bytes:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        sock.bind(route.socket_address(MACHINE.addresses, address, 6443))
        cluster = Cluster(server=f"https://[{address}%25eth0]:6443", certificate_authority_data=authority.pem)
        client = Client(Credentials(lambda: ClusterAccess(cluster, User())))
        try:
            async with await asyncio.start_server(answer, sock=sock, ssl=authority.server_context(address)):
                return await client.request("GET", "/api")
        finally:
            await client.close()

    with netns.inside(space):
        assert asyncio.run(request()) == b"{}"
    assert f"\r\nHost: [{address}]:6443\r\n" in heads[0]
