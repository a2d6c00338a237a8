"""One socket for many ports: who answers at each, whatever happens to processes, relays and ports."""

import contextlib
import errno
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeproxy.linux.bpf import steer, syscall
from kubeproxy.linux.bpf.disassembly import listing
from kubeproxy.machine.linux import LinuxMachine
from kubeproxy.relay.control import Relay
from kubeproxy.relay.doors import Doors
from kubeproxy.relay.steering import SteeredPorts
from kubeproxy.relay.values import Choice, Listener, Target
from tests.kernel.daemons import PATIENCE, until
from tests.lab import netns

Door = tuple[str, int, bool]
"""Address, port, whether it is UDP."""

HOSTS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
REFUSED = "refused"


@dataclass
class Place:
    """A namespace with servers that say who they are."""

    space: str
    servers: dict[str, dict[bool, int]]

    def listener(self, host: str, server: int, *, udp: bool) -> Listener:
        """Leads to one of the servers."""
        target: Target = (host, self.servers[host][udp] + server)
        return Listener("Service test", f"test{udp}", udp=udp, choices=(Choice((target,)),), kept=())

    def ask(self, door: Door) -> str:
        """Which server answers at a port."""
        host, port, udp = door
        domain = socket.AF_INET6 if ":" in host else socket.AF_INET
        kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
        with socket.socket(domain, kind) as sock:
            sock.settimeout(PATIENCE)
            try:
                sock.connect((host, port))
                if udp:
                    sock.send(b"?")
                answer = sock.recv(64).decode()
            except ConnectionRefusedError:
                return REFUSED
            assert sock.getpeername()[:2] == (host, port)
            return answer or "closed"


@pytest.fixture
def place(space: str) -> Iterator[Place]:
    """Three servers for each protocol and family, on ports in a row."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(netns.inside(space))
        servers: dict[str, dict[bool, int]] = {}
        for domain, host in HOSTS.items():
            for number in range(3):
                for udp, first in ((False, 7000), (True, 7100)):
                    servers.setdefault(host, {})[udp] = first
                    stack.enter_context(_server(domain, (host, first + number), udp=udp))
        yield Place(space, servers)


@contextlib.contextmanager
def _server(domain: int, at: Target, *, udp: bool) -> Iterator[None]:
    sock = socket.socket(domain, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(at)
    name = str(at[1] % 100).encode()

    def serve() -> None:
        while True:
            try:
                if udp:
                    _, client = sock.recvfrom(64)
                    if client is None:  # shut down
                        return
                    sock.sendto(name, client)
                else:
                    accepted, _ = sock.accept()
                    with accepted:
                        accepted.send(name)
            except OSError:
                return

    if not udp:
        sock.listen(512)
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)  # wakes the thread; a UDP socket that is not connected, too
        thread.join()
        sock.close()


class Steered:
    """A relay with steered ports."""

    def __init__(self, machine: LinuxMachine | None = None) -> None:
        self.machine = machine or LinuxMachine()
        self.relay = Relay(self.machine, "relay for localhost")
        self.ports = SteeredPorts(self.relay)
        self.doors: Doors[Door] = Doors(self.relay, self.ports)

    def put(self, door: Door, listener: Listener) -> None:
        self.doors.put(door, listener, door[0], (door[1], door[1]))

    def settle(self) -> None:
        assert self.relay.settle(PATIENCE)

    def stop(self) -> None:
        self.relay.stop()
        self.relay.join()
        self.ports.close()


@pytest.fixture
def steered(place: Place) -> Iterator[Steered]:
    made = Steered()
    try:
        yield made
    finally:
        made.stop()


def sockets_at(ports: Sequence[int]) -> int:
    """How many sockets of the namespace listen or receive at some ports."""
    found = 0
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            listens = fields[3] in {"0A", "07"}
            found += listens and int(fields[1].rpartition(":")[2], 16) in ports
    return found


@pytest.mark.parametrize("host", HOSTS.values())
def test_many_ports_need_one_socket_for_each_protocol(place: Place, steered: Steered, host: str) -> None:
    _many(place, steered, host, range(30000, 30200))


@pytest.mark.vm
def test_another_kernel_steers_too(place: Place, steered: Steered) -> None:
    _many(place, steered, "127.0.0.1", range(30000, 30010))


def _many(place: Place, steered: Steered, host: str, ports: range) -> None:
    doors = [(host, port, udp) for port in ports for udp in (False, True)]
    for door in doors:
        steered.put(door, place.listener(host, door[1] % 3, udp=door[2]))
    steered.settle()
    assert steered.ports.gates == 2
    assert sockets_at(ports) == 0
    for door in doors[::7]:
        assert place.ask(door) == str(door[1] % 3), door
    steered.doors.close(doors[:7])
    until(lambda: place.ask(doors[0]) == REFUSED)
    assert place.ask(doors[7]) == str(doors[7][1] % 3)


def test_clients_wait_while_the_process_is_replaced(place: Place, steered: Steered) -> None:
    door = ("127.0.0.1", 30080, False)
    for port in range(30000, 30300):
        steered.put(("127.0.0.1", port, False), place.listener("127.0.0.1", port % 3, udp=False))
    steered.settle()
    pid = steered.relay.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert place.ask(door) == str(door[1] % 3)
    assert steered.relay.pid != pid


@pytest.mark.parametrize("steers", [True, False])
def test_another_relay_takes_over_without_a_lost_client(place: Place, *, steers: bool) -> None:
    """Whether both steer, or each port has a socket."""
    door = ("127.0.0.1", 30080, False)
    machine = _Unable() if not steers else LinuxMachine()
    first, second = Steered(machine), Steered(machine)
    asked: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        with netns.inside(place.space):
            while not stop.is_set():
                asked.append(place.ask(door))

    try:
        first.put(door, place.listener(door[0], 0, udp=False))
        first.settle()
        thread = threading.Thread(target=ask)
        thread.start()
        try:
            until(lambda: len(asked) > 20)
            second.put(door, place.listener(door[0], 1, udp=False))
            second.settle()
            first.doors.close([door])
            seen = len(asked)
            until(lambda: len(asked) > seen + 50)
        finally:
            stop.set()
            thread.join()
        assert set(asked) == {"0", "1"}
        assert asked[-1] == "1"
    finally:
        first.stop()
        second.stop()


class _Unable(LinuxMachine):
    """A host on which nothing can be steered."""

    def bpf(self, places: object = None) -> object:  # type: ignore[override]
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_without_rights_each_port_has_a_socket(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    made = Steered(_Unable())
    try:
        with caplog.at_level("INFO"):
            for port in range(30000, 30010):
                made.put(("127.0.0.1", port, False), place.listener("127.0.0.1", port % 3, udp=False))
        made.settle()
        assert sockets_at(range(30000, 30010)) == 10
        assert place.ask(("127.0.0.1", 30001, False)) == str(30001 % 3)
        assert [r.message for r in caplog.records].count(caplog.records[0].message) == 1
    finally:
        made.stop()


@pytest.mark.parametrize("udp", [False, True])
def test_the_port_of_another_program_is_not_taken(place: Place, steered: Steered, *, udp: bool) -> None:
    door = ("127.0.0.1", 30080, udp)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as other:
        other.bind(("0.0.0.0", 30080))
        if not udp:
            other.listen()
        with pytest.raises(OSError) as refused:
            steered.put(door, place.listener(door[0], 0, udp=udp))
        assert refused.value.errno == errno.EADDRINUSE
    steered.put(door, place.listener(door[0], 0, udp=udp))
    steered.settle()
    assert place.ask(door) == "0"


def test_more_ports_than_can_be_steered_have_sockets(
    place: Place, steered: Steered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steer, "MOST", 5)
    for port in range(30000, 30010):
        steered.put(("127.0.0.1", port, False), place.listener("127.0.0.1", 0, udp=False))
    steered.settle()
    assert sockets_at(range(30000, 30010)) == 5
    assert {place.ask(("127.0.0.1", port, False)) for port in range(30000, 30010)} == {"0"}


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "close", "kill"]),
        st.sampled_from([(host, port, udp) for host in HOSTS.values() for port in (30000, 30001) for udp in (False, True)]),
        st.integers(0, 2),
    ),
    max_size=12,
)  # fmt: skip


def test_who_answers_is_what_was_put_last(place: Place) -> None:
    """After random changes and ends of the process."""

    @settings(max_examples=15)
    @given(STEPS)
    def check(steps: list[tuple[str, Door, int]]) -> None:
        relays = {host: Steered() for host in HOSTS.values()}
        wanted: dict[Door, str] = {}
        try:
            for what, door, server in steps:
                made = relays[door[0]]
                if what == "put":
                    made.put(door, place.listener(door[0], server, udp=door[2]))
                    wanted[door] = str(server)
                elif what == "close":
                    made.doors.close([door])
                    wanted.pop(door, None)
                elif made.relay.pid is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(made.relay.pid, signal.SIGKILL)
            for made in relays.values():
                made.settle()
            doors = {door for _, door, _ in steps}
            assert {door: place.ask(door) for door in doors} == {
                door: wanted.get(door, REFUSED) for door in doors
            }
        finally:
            for made in relays.values():
                made.stop()

    check()


def test_the_kernel_runs_the_program(space: str) -> None:
    """BPF_PROG_TEST_RUN: what is no destination of ours passes; the listing names the lines of C."""
    for domain in HOSTS:
        text = "\n".join(listing(steer.program(domain)))
        assert "bpf_sk_assign(ctx, sk, 0); bpf_sk_release(sk);" in text
    with netns.inside(space):
        made = steer.Steering(LinuxMachine().bpf(), socket.AF_INET)
        made.add("127.0.0.1", 30000, udp=False)
        context = bytearray(72)
        context[8:16] = int(socket.AF_INET).to_bytes(4, "little") + int(socket.IPPROTO_TCP).to_bytes(
            4, "little"
        )
        assert syscall.run_program(made.program.fd, b"", bytes(context)) == 1
        made.close()
