"""Sockets that ebpf mode connected to an endpoint that goes are destroyed, and no others."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.linux.bpf.host import BpfPlaces
from tests.fakes.cluster import endpoints, service
from tests.kernel import bpffs
from tests.kernel.daemons import NET_ADMIN_ALONE, Station, until
from tests.kernel.test_endings import ENDS
from tests.kernel.traffic import TALK_PORT, talkers
from tests.lab import netns
from tests.lab.topology import EP11, EP11_6, EP12, EP12_6, EP13, NODE_NAME, Lab

DNS, DNS6, OTHER, NODE_PORT = "10.96.0.12", "fd00:10:96::c", "10.96.0.13", 30053
TALK, PLAIN = "10.96.0.14", "10.96.0.15"
LOCAL = (EP11, EP12, EP13, EP11_6, EP12_6)


@pytest.fixture
def places() -> Iterator[BpfPlaces]:
    with bpffs.places() as found:
        yield found


def station(lab: Lab, path: Path, places: BpfPlaces, scope: str = "all") -> Station:
    """A daemon's place, with two Services of UDP and two of TCP."""
    path.mkdir(exist_ok=True)
    made = Station(lab, path, mode="ebpf", nodePortAddresses=["192.0.2.0/24", "127.0.0.0/8"])
    bpffs.configure(made.config, places, scope=scope, strict=True)
    talk = service("talk", TALK)
    made.folder.put(
        service("dns", DNS, DNS6, type="NodePort", ports=[types.ServicePort(53, protocol="UDP", node_port=NODE_PORT)]),
        service("other", OTHER, ports=[types.ServicePort(53, protocol="UDP")]),
        replace(talk, metadata=replace(talk.metadata, annotations=ENDS)),
        service("plain", PLAIN),
    )  # fmt: skip
    serve(made, "dns", EP11, EP12)
    serve(made, "other", EP11, EP12)
    serve6(made, EP11_6, EP12_6)
    for name in ("talk", "plain"):
        talks(made, name, EP11, EP12)
    return made


def serve(made: Station, name: str, *addresses: str) -> None:
    made.folder.put(endpoints(name, *addresses, port=5353, protocol="UDP", local=LOCAL, node=NODE_NAME))


def serve6(made: Station, *addresses: str) -> None:
    made.folder.put(
        endpoints("dns", *addresses, name="dns-6", port=5353, protocol="UDP", local=LOCAL, node=NODE_NAME)
    )


def talks(made: Station, name: str, *addresses: str) -> None:
    made.folder.put(endpoints(name, *addresses, port=TALK_PORT, local=LOCAL, node=NODE_NAME))


class Clients:
    """Sockets of programs in the cgroup, each with the endpoint that it is connected to."""

    def __init__(self, lab: Lab, places: BpfPlaces) -> None:
        self._lab = lab
        self._places = places
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def connect(
        self, role: str, address: str, port: int, *, domain: int = 0, stream: bool = False
    ) -> tuple[socket.socket, str]:
        """A connected socket, and who answers it."""
        domain = domain or (socket.AF_INET6 if ":" in address else socket.AF_INET)
        with bpffs.inside(self._places), netns.inside(self._lab.name(role)):
            sock = socket.socket(domain, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
            self._stack.enter_context(sock)
            sock.settimeout(30)
            sock.connect((address, port))
            sock.send(b"?")
            answer = sock.recv(256).decode().split(" ")[0]
        return sock, answer.removeprefix("::ffff:")

    def connect_until(self, wanted: str, *arguments: object, **others: object) -> socket.socket:
        """One that is connected to an endpoint of choice."""
        while True:
            sock, answer = self.connect(*arguments, **others)  # type: ignore[arg-type]
            if answer == wanted:
                return sock

    def sending(self, role: str, address: str, port: int) -> socket.socket:
        """One that is not connected, and was answered."""
        with bpffs.inside(self._places), netns.inside(self._lab.name(role)):
            sock = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.settimeout(30)
            sock.sendto(b"?", (address, port))
            assert sock.recvfrom(256)[1] == (address, port)
        return sock


def is_over(sock: socket.socket) -> bool:
    """Whether a socket is not connected any more."""
    with contextlib.suppress(OSError):
        return not sock.getpeername()
    return True


def test_clients_of_a_removed_endpoint_connect_again(lab: Lab, tmp_path: Path, places: BpfPlaces) -> None:
    """In Pods and on the node, however the front was written; everybody else keeps the socket."""
    made = station(lab, tmp_path / "a", places)
    with made.running(), Clients(lab, places) as clients:
        mapped = {"domain": socket.AF_INET6}
        gone = [
            clients.connect_until(EP11, "client", DNS, 53),
            clients.connect_until(EP11, "node", DNS, 53),
            clients.connect_until(EP11, "client", f"::ffff:{DNS}", 53, **mapped),
            clients.connect_until(EP11, "node", "127.0.0.1", NODE_PORT),
            clients.connect_until(EP11, "client", "192.0.2.1", NODE_PORT),
        ]
        kept = [
            clients.connect_until(EP12, "client", DNS, 53),
            clients.connect_until(EP11, "client", OTHER, 53),
            clients.connect_until(EP11, "client", EP11, 5353),
            clients.connect_until(EP11, "node", EP11, 5353),
            clients.connect_until(EP11, "client", f"::ffff:{EP11}", 5353, **mapped),
            clients.connect_until(EP11_6, "client", DNS6, 53),
        ]
        sending = clients.sending("client", DNS, 53)
        serve(made, "dns", EP12)
        until(lambda: all(map(is_over, gone)))
        with pytest.raises(ConnectionAbortedError):
            gone[0].recv(1)
        with bpffs.inside(places):
            gone[0].connect((DNS, 53))
        gone[0].send(b"?")
        assert gone[0].recv(256).decode().split(" ")[0] == EP12
        six = clients.connect_until(EP12_6, "client", DNS6, 53)
        serve6(made, EP11_6)
        until(lambda: is_over(six))
        assert not any(map(is_over, kept))
        for sock in kept:
            sock.send(b"?")
            assert sock.recv(256)
        with bpffs.inside(places):
            sending.sendto(b"?", (DNS, 53))
            assert sending.recvfrom(256)[1] == (DNS, 53)


def test_those_of_an_endpoint_that_went_while_no_daemon_ran(
    lab: Lab, tmp_path: Path, places: BpfPlaces
) -> None:
    made = station(lab, tmp_path / "a", places, "host")
    with Clients(lab, places) as clients:
        with made.running():
            gone = clients.connect_until(EP11, "node", DNS, 53)
            kept = clients.connect_until(EP12, "node", DNS, 53)
            bystander = clients.connect_until(EP11, "node", EP11, 5353)
        serve(made, "dns", EP12)
        assert not is_over(gone)
        with made.running():
            until(lambda: is_over(gone))
        assert not is_over(kept)
        assert not is_over(bystander)


def test_cap_net_admin_is_enough_for_sockets_of_the_node(lab: Lab, tmp_path: Path, places: BpfPlaces) -> None:
    made = station(lab, tmp_path / "a", places, "host")
    lab.run("node", *made.command("--init-only"))
    with made.running(prefix=NET_ADMIN_ALONE), Clients(lab, places) as clients:
        gone = clients.connect_until(EP11, "node", DNS, 53)
        serve(made, "dns", EP12)
        until(lambda: is_over(gone))


def test_tcp_as_the_annotation_says(lab: Lab, tmp_path: Path, places: BpfPlaces) -> None:
    """Also clients that only wait; those of a Service without the annotation and of the endpoint itself stay."""
    made = station(lab, tmp_path / "a", places)
    with talkers(lab, "ep11", "ep12"), made.running(), Clients(lab, places) as clients:

        def opened(role: str, address: str, port: int = 80) -> list[tuple[socket.socket, str]]:
            found = []
            for _ in range(8):
                with bpffs.inside(places), netns.inside(lab.name(role)):
                    sock = clients._stack.enter_context(socket.socket())
                    sock.connect((address, port))
                with netns.inside(lab.name(role)):
                    found.append((sock, _endpoint(sock)))
            return found

        mine = [each for role in ("client", "node") for each in opened(role, TALK)]
        others = [*opened("client", PLAIN), *opened("node", EP11, TALK_PORT)]
        assert {endpoint for _, endpoint in mine} == {EP11, EP12}
        for name in ("talk", "plain"):
            talks(made, name, EP12)
        until(lambda: all(is_over(sock) for sock, endpoint in mine if endpoint == EP11))
        assert not any(is_over(sock) for sock, endpoint in mine if endpoint == EP12)
        assert not any(is_over(sock) for sock, _ in others)


def _endpoint(sock: socket.socket) -> str:
    """Where a socket of TCP is connected to, as the kernel lists it."""
    port = f":{sock.getsockname()[1]:04X}"
    for line in Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]:
        _, own, peer, *_ = line.split()
        if own.endswith(port):
            return socket.inet_ntoa(bytes.fromhex(peer.partition(":")[0])[::-1])
    raise AssertionError(sock)


KINDS = st.sampled_from(["pod", "node", "other", "direct"])
SETS = st.sets(st.sampled_from([EP11, EP12, EP13]), min_size=1)


def test_never_a_bystander(lab: Lab, tmp_path: Path, places: BpfPlaces) -> None:
    """After random changes exactly those sockets are over whose endpoint left the Service that they asked."""
    made = station(lab, tmp_path / "a", places)
    survivors: list[socket.socket] = []
    with made.running(), Clients(lab, places) as clients:
        opening: dict[str, Callable[[], tuple[socket.socket, str]]] = {
            "pod": lambda: clients.connect("client", DNS, 53),
            "node": lambda: clients.connect("node", DNS, 53),
            "other": lambda: clients.connect("client", OTHER, 53),
            "direct": lambda: clients.connect("client", EP11, 5353),
        }

        def settled(name: str, address: str, wanted: set[str]) -> None:
            serve(made, name, *sorted(wanted))
            until(lambda: {clients.connect("client", address, 53)[1] for _ in range(12)} <= wanted)

        @settings(max_examples=12)
        @given(SETS, SETS, st.lists(KINDS, max_size=8))
        def check(before: set[str], after: set[str], kinds: list[str]) -> None:
            settled("other", OTHER, {EP11, EP12})
            settled("dns", DNS, before)
            opened = [(kind, *opening[kind]()) for kind in kinds]
            settled("dns", DNS, after)
            over = [
                sock for kind, sock, endpoint in opened if kind in {"pod", "node"} and endpoint not in after
            ]
            until(lambda: all(map(is_over, over)))
            survivors.extend(sock for kind, sock, endpoint in opened if kind in {"other", "direct"})
            assert not any(is_over(sock) for kind, sock, _ in opened if sock not in over)

        check()
        assert not any(map(is_over, survivors))
