"""UDP clients that never change their port, and SCTP associations, while the backends behind their Service change.

The daemon runs on the lab's node. Only a client whose flow is forgotten reaches another backend, so who answers says it all.
"""

import contextlib
import itertools
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from kubeproxy.api import types
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import PATIENCE, Station, until
from tests.kernel.traffic import TALK_PORT, Talk, talkers
from tests.lab import flows, netns
from tests.lab.daemon import Daemon
from tests.lab.flows import Entry
from tests.lab.topology import EP11, EP11_6, EP12, EP12_6, NODE_NAME, PODS, REMOTE, Lab

VIP, VIP6, EXTERNAL, BALANCER = "10.96.0.10", "fd00:10:96::a", "203.0.113.10", "203.0.113.20"
NODE_PORT = 30053
LOCAL = (EP11, EP12, EP11_6, EP12_6)


@pytest.fixture(params=["iptables", "nftables"])
def station(lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> Station:
    return Station(lab, tmp_path, mode=request.param)


def dns(*ips: str, node_port: int = NODE_PORT, **spec: Any) -> types.Service:
    """A Service with every kind of front."""
    ports = [types.ServicePort(53, "dns", "UDP", node_port=node_port)]
    return service(
        "dns",
        *(ips or (VIP,)),
        type="LoadBalancer",
        ports=ports,
        balancer=[BALANCER],
        external_ips=(EXTERNAL,),
        **spec,
    )


def behind(*addresses: str, port: int = 5353, name: str = "", protocol: str = "UDP") -> types.EndpointSlice:
    return endpoints(
        "dns",
        *addresses,
        port=port,
        port_name="dns",
        protocol=protocol,
        name=name,
        local=LOCAL,
        node=NODE_NAME,
    )


class Client:
    """A UDP socket that asks again and again; a flow that leads nowhere is kept alive by that."""

    def __init__(self, lab: Lab, role: str, address: str, port: int = 53) -> None:
        self._front = address, port
        with lab.inside(role):
            self._socket = socket.socket(
                socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM
            )
        self._socket.settimeout(0.1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self) -> str:
        """Who answers; nobody is "nobody"."""
        try:
            self._socket.sendto(b"?", self._front)
            return self._socket.recv(256).decode().split(" ")[0]
        except OSError:
            return "nobody"

    def reaches(self, backend: str) -> None:
        """Until that backend answers."""
        until(lambda: self.ask() == backend, f"{self._front} never led to {backend}")

    def stays(self, backend: str, times: int = 20) -> None:
        """No other answers."""
        for _ in range(times):
            assert self.ask() == backend
            time.sleep(0.01)


def tracked(lab: Lab, *arguments: str) -> set[str]:
    """The ids of tracked flows, and what each is."""
    out = lab.run("node", "conntrack", "-L", "-o", "id", *arguments)
    return {
        " ".join(word for word in line.split() if "=" in word and "use=" not in word)
        for line in out.splitlines()
    }


FRONTS = [
    ("client", VIP, 53),
    ("node", VIP, 53),
    ("rpod", EXTERNAL, 53),
    ("out", BALANCER, 53),
    ("out", "192.0.2.1", NODE_PORT),
]


@contextlib.contextmanager
def everywhere(lab: Lab) -> Iterator[list[Client]]:
    """A client of each front."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Client(lab, *front)) for front in FRONTS]


def test_an_endpoint_that_goes_takes_its_flows_along_at_every_front(station: Station) -> None:
    station.folder.put(dns(), behind(EP11))
    with everywhere(station.lab) as clients, station.running():
        for client in clients:
            client.reaches(EP11)
        station.folder.put(behind(EP11, EP12))
        for client in clients:
            client.stays(EP11, 3)
        station.folder.put(behind(EP12))
        for client in clients:
            client.reaches(EP12)


def test_ipv6(station: Station) -> None:
    station.folder.put(dns(VIP6), behind(EP11_6))
    with (
        station.running(),
        Client(station.lab, "client", VIP6) as pod,
        Client(station.lab, "out", "2001:db8:2::1", NODE_PORT) as outside,
    ):
        pod.reaches(EP11_6)
        outside.reaches(EP11_6)
        station.folder.put(behind(EP12_6))
        pod.reaches(EP12_6)
        outside.reaches(EP12_6)


def test_who_spoke_before_there_was_anybody_is_heard_in_the_end(station: Station) -> None:
    """To an address nobody had, and to a port of the node where nobody listened."""
    with (
        station.running(),
        Client(station.lab, "client", VIP) as pod,
        Client(station.lab, "out", "192.0.2.1", NODE_PORT) as outside,
    ):
        assert {pod.ask(), outside.ask()} == {"nobody"}
        before = tracked(station.lab, "-p", "udp")
        assert len(before) == 2
        station.folder.put(dns(), behind(EP11))
        pod.reaches(EP11)
        outside.reaches(EP11)
        assert tracked(station.lab, "-p", "udp").isdisjoint(before)


def test_the_last_endpoint_goes_and_another_comes(station: Station) -> None:
    station.folder.put(dns(), behind(EP11))
    with station.running(), Client(station.lab, "client", VIP) as client:
        client.reaches(EP11)
        station.folder.put(behind())
        until(lambda: not tracked(station.lab, "-p", "udp", "--orig-dst", VIP))
        client.reaches("nobody")
        station.folder.put(behind(EP12))
        client.reaches(EP12)


def test_a_deleted_service_is_not_served_on(station: Station) -> None:
    station.folder.put(dns(), behind(EP11))
    with everywhere(station.lab) as clients, station.running():
        for client in clients:
            client.reaches(EP11)
        station.folder.remove("Service", "dns")
        for client in clients:
            client.reaches("nobody")


def test_a_node_port_that_moves(station: Station) -> None:
    station.folder.put(dns(), behind(EP11))
    with (
        station.running(),
        Client(station.lab, "out", "192.0.2.1", NODE_PORT) as old,
        Client(station.lab, "out", "192.0.2.1", NODE_PORT + 1) as new,
    ):
        old.reaches(EP11)
        assert new.ask() == "nobody"
        station.folder.put(dns(node_port=NODE_PORT + 1))
        new.reaches(EP11)
        old.reaches("nobody")


def test_an_endpoint_that_still_serves_keeps_its_clients_until_it_is_gone(station: Station) -> None:
    def leaving(*, serving: bool) -> types.EndpointSlice:
        conditions = types.EndpointConditions(ready=False, serving=serving, terminating=True)
        return types.EndpointSlice(
            types.ObjectMeta(name="dns-leaving", namespace="default", labels=types.Labels(service="dns")),
            address_type="IPv4",
            endpoints=(types.SliceEndpoint((EP11,), node_name=NODE_NAME, conditions=conditions),),
            ports=(types.EndpointPort("dns", 5353, "UDP"),),
        )

    def tell(*slices: types.EndpointSlice) -> None:
        """In one file, so that the endpoint is never gone from one slice and not yet in the other."""
        station.folder.write("dns.json", [dns(), *slices])

    tell(behind(EP11))

    def newcomer() -> str:
        with Client(station.lab, "rpod", VIP) as client:
            return client.ask()

    with station.running(), Client(station.lab, "client", VIP) as client:
        client.reaches(EP11)
        tell(leaving(serving=True), behind(EP12))
        until(lambda: newcomer() == EP12)
        client.stays(EP11)
        tell(leaving(serving=False), behind(EP12))
        client.reaches(EP12)


def test_what_changed_while_nobody_looked_is_found_at_the_start(station: Station) -> None:
    station.folder.put(dns(), behind(EP11))
    with Client(station.lab, "client", VIP) as client, Client(station.lab, "out", BALANCER) as other:
        with station.running() as daemon:
            client.reaches(EP11)
            other.reaches(EP11)
            daemon.kill()
        station.folder.put(behind(EP12))
        client.stays(EP11, 3)
        with station.running():
            client.reaches(EP12)
            other.reaches(EP12)


def test_others_and_tcp_are_left_alone(station: Station) -> None:
    """Through two changes, a start and the deletion of the Service."""
    lab = station.lab
    others = f"""
        table ip others {{
            chain c {{
                type nat hook prerouting priority -150
                ip daddr 192.0.2.1 udp dport 5300 dnat to {EP11}:5353
            }}
        }}"""
    lab.run("node", "nft", "-f", "-", given=others)
    both = [types.ServicePort(53, "dns", "UDP"), types.ServicePort(81, "talk")]
    station.folder.put(
        service("dns", VIP, ports=both),
        behind(EP11),
        endpoints(
            "dns", EP11, port=TALK_PORT, port_name="talk", name="dns-talk", local=LOCAL, node=NODE_NAME
        ),
    )
    theirs = [
        Entry(("198.51.100.7", 1), (VIP, 54), (EP11, 5353)),
        Entry(("198.51.100.7", 2), ("192.0.2.99", 53), (EP11, 5353)),
        Entry(("198.51.100.7", 3), (VIP, 53), (EP11, 5353), flows.TCP),
        Entry(("198.51.100.7", 4), (VIP, 53), (EP11, 5353), flows.SCTP),
        Entry(("198.51.100.7", 5), (VIP, 53), zone=7),
        Entry(("198.51.100.7", 6), ("198.51.100.8", NODE_PORT), (EP11, 5353)),
    ]
    flows.add(lab.name("node"), theirs)
    before = tracked(lab)
    with (
        talkers(lab, "ep11"),
        Client(lab, "out", "192.0.2.1", 5300) as redirected,
        Client(lab, "client", EP11, 5353) as direct,
        Client(lab, "client", VIP) as served,
        station.running(),
    ):
        served.reaches(EP11)
        redirected.reaches(EP11)
        direct.reaches(EP11)
        talk = Talk(lab, [("client", VIP, 81)])
        talk.say()
        kept = tracked(lab) - tracked(lab, "-p", "udp", "--orig-dst", VIP, "--dport", "53") | before
        station.folder.put(behind(EP12))
        served.reaches(EP12)
        station.folder.put(behind(REMOTE))
        served.reaches(REMOTE)
        assert kept <= tracked(lab)
        redirected.stays(EP11, 3)
        direct.stays(EP11, 3)
        talk.say()
        station.folder.remove("Service", "dns")
        served.reaches("nobody")
        assert kept <= tracked(lab)
        talk.close()


SCTP_PORT = 9999
INIT, INIT_ACK = 1, 2


def _crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def _packet(source: int, destination: int, tag: int, kind: int, said: int) -> bytes:
    """An SCTP packet with one INIT or INIT ACK chunk (RFC 9260, section 3.3.2), whose initial TSN says something."""
    chunk = struct.pack(">BBHIIHHI", kind, 0, 20, 0x1234, 65536, 1, 1, said)
    head = struct.pack(">HHI", source, destination, tag)
    return head + struct.pack("<I", _crc32c(head + bytes(4) + chunk)) + chunk


class Associations:
    """Pods that answer to SCTP, and a client that opens the same association again and again.

    There may be no SCTP in the kernel; its connection tracking and translation know it in any case.
    """

    def __init__(self, lab: Lab, *roles: str) -> None:
        self._stop = threading.Event()
        self._threads = []
        for role in roles:
            thread = threading.Thread(target=self._serve, args=(self._open(lab, role), PODS[role][0]))
            thread.start()
            self._threads.append(thread)
        self._client = self._open(lab, "client")

    @staticmethod
    def _open(lab: Lab, role: str) -> socket.socket:
        with lab.inside(role):
            sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP)
        sock.settimeout(0.1)
        return sock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._client.close()

    def _serve(self, sock: socket.socket, address: str) -> None:
        with sock:
            while not self._stop.is_set():
                try:
                    data, (peer, _) = sock.recvfrom(256)
                except TimeoutError:
                    continue
                source, destination = struct.unpack_from(">HH", data, 20)
                if destination == SCTP_PORT and data[32] == INIT:
                    last = int(address.rpartition(".")[2])
                    sock.sendto(_packet(destination, source, 0x1234, INIT_ACK, last), (peer, 0))

    def ask(self, front: str, port: int, source: int = 4444) -> str:
        """Which pod answers."""
        self._client.sendto(_packet(source, port, 0, INIT, 0), (front, 0))
        try:
            while True:
                data, (peer, _) = self._client.recvfrom(256)
                if peer == front and data[32] == INIT_ACK and data[22:24] == source.to_bytes(2):
                    return f"10.244.1.{data[51]}"
        except TimeoutError:
            return "nobody"


@pytest.fixture
def patient(lab: Lab) -> Iterator[None]:
    """Half-open associations are remembered for long, so that nothing is forgotten by itself."""
    key = "net/netfilter/nf_conntrack_sctp_timeout_cookie_wait"
    before = netns.read_sysctls(lab.name("node"), [key])
    netns.write_sysctls(lab.name("node"), {key: "300"})
    yield
    netns.write_sysctls(lab.name("node"), before)


def test_sctp(station: Station, patient: None) -> None:
    def backend(*addresses: str) -> types.EndpointSlice:
        return behind(*addresses, port=SCTP_PORT, protocol="SCTP")

    station.folder.put(service("dns", VIP, ports=[types.ServicePort(99, "dns", "SCTP")]), backend(EP11))
    with Associations(station.lab, "ep11", "ep12") as clients, station.running():
        until(lambda: clients.ask(VIP, 99) == EP11)
        (flow,) = tracked(station.lab, "-p", "sctp")
        station.folder.put(backend(EP11, EP12))
        newcomers = itertools.count(5000)
        until(lambda: clients.ask(VIP, 99, next(newcomers)) == EP12)
        assert clients.ask(VIP, 99) == EP11
        assert flow in tracked(station.lab, "-p", "sctp")
        station.folder.put(backend(EP12))
        until(lambda: clients.ask(VIP, 99) == EP12)
        station.folder.remove("Service", "dns")
        until(lambda: not tracked(station.lab, "-p", "sctp", "--orig-dst", VIP))


def test_kernel_settings_are_those_of_the_configuration(lab: Lab, tmp_path: Path) -> None:
    settings = {
        "tcpEstablishedTimeout": "1h",
        "tcpCloseWaitTimeout": "2m",
        "udpTimeout": "45s",
        "udpStreamTimeout": "3m",
        "tcpBeLiberal": True,
        "maxPerCore": 1,
        "min": 1000,
    }
    station = Station(lab, tmp_path, conntrack=settings)
    with station.running() as daemon:
        assert "Kernel settings stay" not in daemon.log()
        assert "INVALID" not in str(station.rules()["filter"]["KUBE-FORWARD"]), "tcpBeLiberal is set first"
    keys = [
        f"net/netfilter/nf_conntrack_{name}"
        for name in (
            "tcp_timeout_established",
            "tcp_timeout_close_wait",
            "udp_timeout",
            "udp_timeout_stream",
            "tcp_be_liberal",
        )
    ]
    found = netns.read_sysctls(lab.name("node"), keys)
    assert list(found.values()) == ["3600", "120", "45", "180", "1"]


def test_settings_that_cannot_be_written_keep_nobody_from_being_served(lab: Lab, tmp_path: Path) -> None:
    station = Station(lab, tmp_path, mode="nftables", conntrack={"udpTimeout": "45s", "maxPerCore": 0})
    station.folder.put(dns(), behind(EP11))
    read_only = 'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", read_only, "sh", *station.command()]
    with Daemon(lab, command, timeout=PATIENCE) as daemon, Client(lab, "client", VIP) as client:
        (said,) = [line for line in daemon.log().splitlines() if "Kernel settings stay as they are" in line]
        assert "net/netfilter/nf_conntrack_udp_timeout is 30, not 45 (Read-only file system)" in said
        client.reaches(EP11)
        station.folder.put(behind(EP12))
        client.reaches(EP12)
