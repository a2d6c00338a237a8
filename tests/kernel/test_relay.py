"""The relay and its process in a namespace of their own: load, limits, failures."""

import contextlib
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kubeproxy.relay import sockets, tcp
from kubeproxy.relay.connection import Connection, will_reset
from kubeproxy.relay.control import Relay
from kubeproxy.relay.loop import PollLoop
from kubeproxy.relay.shared import Shared
from kubeproxy.relay.values import CarriedFlow, Choice, Listener, Tally, Target
from tests.kernel.daemons import PATIENCE, until
from tests.lab import netns
from tests.lab.topology import ROOT
from tests.machines import MACHINE

HOST = "127.0.0.1"
PATTERN = random.Random(6).randbytes(1 << 16) * 5
BYTES = 1 << 18
CONNECTIONS = 1998  # as many for each of six backends


@pytest.fixture
def relay(space: str) -> Iterator[Relay]:
    """A relay in the namespace, where the test is, too."""
    with netns.inside(space):
        relay = Relay(MACHINE, "relay")
        try:
            yield relay
        finally:
            ended(relay)


def ended(relay: Relay) -> None:
    relay.stop()
    relay.join()


def process_of(relay: Relay) -> int:
    """Its number, as soon as there is one."""
    until(lambda: relay.pid is not None)
    assert relay.pid is not None
    return relay.pid


@contextlib.contextmanager
def echo(port: int) -> Iterator[subprocess.Popen[str]]:
    """A backend."""
    command = [sys.executable, "-m", "tests.kernel.echoes", HOST, str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def opened(relay: Relay, *targets: Target, udp: bool = False, affinity: int = 0) -> tuple[Target, int]:
    """A listener: where it is, and its number."""
    sock = sockets.bind(MACHINE, HOST, (0, 0), udp=udp)
    address, port = sock.getsockname()
    return (address, port), relay.open(sock, serving(*targets, udp=udp, affinity=affinity))


def serving(*targets: Target, udp: bool = False, affinity: int = 0) -> Listener:
    return Listener("Service test", "test", udp=udp, choices=(Choice(targets),), affinity=affinity)


class Speaker:
    """A connection that says a part of the pattern, and checks what comes back byte for byte."""

    def __init__(self, front: Target, start: int) -> None:
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.connect_ex(front)
        self._said = memoryview(PATTERN)[start : start + BYTES]
        self._sent = self.heard = 0
        self.ended = ""

    def write(self) -> bool:
        """Sends some; returns whether there is more to send."""
        self._sent += self.sock.send(self._said[self._sent : self._sent + 40_000])
        if self._sent == BYTES:
            self.sock.shutdown(socket.SHUT_WR)
        return self._sent < BYTES

    def read(self) -> None:
        """Takes what came."""
        data = self.sock.recv(1 << 16)
        assert data == self._said[self.heard : self.heard + len(data)]
        self.heard += len(data)
        if not data:
            self.ended = "closed"


def converse(speakers: Sequence[Speaker], kill: Sequence[subprocess.Popen[str]]) -> None:
    """Lets all speak, and kills the backends one after the other while they do."""
    poll = select.epoll()
    of = {speaker.sock.fileno(): speaker for speaker in speakers}
    for descriptor in of:
        poll.register(descriptor, select.EPOLLIN | select.EPOLLOUT)
    doomed = list(kill)
    wanted = len(speakers) * BYTES
    steps = [wanted * (i + 1) // (len(doomed) + 2) for i in range(len(doomed))]
    heard = 0
    deadline = time.monotonic() + PATIENCE
    while of:
        assert time.monotonic() < deadline, f"{len(of)} connections hang"
        for descriptor, events in poll.poll(1):
            speaker = of[descriptor]
            before = speaker.heard
            try:
                if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                    speaker.read()
                if events & select.EPOLLOUT and not speaker.write():
                    poll.modify(descriptor, select.EPOLLIN)
            except BlockingIOError:
                pass
            except OSError as e:
                speaker.ended = type(e).__name__
            heard += speaker.heard - before
            if speaker.ended:
                del of[descriptor]
                speaker.sock.close()
        if doomed and heard > steps[-len(doomed)]:
            doomed.pop(0).kill()


def test_under_load_every_byte_arrives_in_order_or_the_connection_ends(relay: Relay) -> None:
    """Thousands of connections, backends killed in the middle: what arrives is what was said, whole or visibly cut off."""
    sockets.raise_limit()
    with contextlib.ExitStack() as stack:
        backends = [stack.enter_context(echo(port)) for port in range(7001, 7007)]
        front, _ = opened(relay, *((HOST, port) for port in range(7001, 7007)))
        speakers = [Speaker(front, 17 * i % 65536) for i in range(CONNECTIONS)]
        converse(speakers, backends[:3])
        whole = [speaker for speaker in speakers if speaker.heard == BYTES and speaker.ended == "closed"]
        # Those whose backend lived got everything; half of the backends lived.
        assert len(whole) >= CONNECTIONS // 2
        assert all(speaker.ended for speaker in speakers)
        # Who comes now is served by the living.
        later = [Speaker(front, i) for i in range(100)]
        converse(later, ())
        assert Counter((s.heard, s.ended) for s in later) == {(BYTES, "closed"): 100}


def test_a_reset_is_passed_on_both_ways(relay: Relay) -> None:
    server = socket.create_server((HOST, 0))
    front, _ = opened(relay, server.getsockname())
    with server:
        for resets_first in (True, False):
            client = socket.create_connection(front, PATIENCE)
            backend, _ = server.accept()
            first, second = (client, backend) if resets_first else (backend, client)
            first.send(b"x")
            second.settimeout(PATIENCE)
            assert second.recv(1) == b"x"
            will_reset(first)
            first.close()
            with second, pytest.raises(ConnectionResetError):
                second.recv(1)


def test_one_side_may_end_before_the_other(relay: Relay) -> None:
    server = socket.create_server((HOST, 0))
    front, _ = opened(relay, server.getsockname())
    with server, socket.create_connection(front, PATIENCE) as client:
        backend, _ = server.accept()
        with backend:
            client.sendall(b"all I have to say")
            client.shutdown(socket.SHUT_WR)
            assert b"".join(iter(lambda: backend.recv(100), b"")) == b"all I have to say"
            backend.sendall(b"so much the better")
            backend.shutdown(socket.SHUT_WR)
            assert b"".join(iter(lambda: client.recv(100), b"")) == b"so much the better"


def resident(process: int) -> int:
    """KB a process has in memory."""
    return int(Path(f"/proc/{process}/status").read_text().split("VmRSS:")[1].split()[0])


def processor(process: int) -> float:
    """Processor seconds of a process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def descriptors_of(process: int) -> int:
    """How many descriptors a process has."""
    return sum(1 for _ in Path(f"/proc/{process}/fd").iterdir())


def test_a_slow_reader_grows_nothing_and_costs_nothing(relay: Relay) -> None:
    server = socket.create_server((HOST, 0))
    front, _ = opened(relay, server.getsockname())
    with contextlib.ExitStack() as stack:
        stack.enter_context(server)
        clients = []
        for _ in range(20):
            client = stack.enter_context(socket.create_connection(front, PATIENCE))
            stack.enter_context(server.accept()[0])  # and reads nothing
            client.setblocking(False)
            clients.append(client)
        before = resident(process_of(relay))
        stuck = 0
        while stuck < 20:  # until for a second nothing is taken any more
            stuck += 1
            for client in clients:
                with contextlib.suppress(BlockingIOError):
                    client.send(PATTERN)
                    stuck = 0
            time.sleep(0.05)
        assert resident(process_of(relay)) - before < 2000
        spent = processor(process_of(relay))
        time.sleep(1)
        assert processor(process_of(relay)) - spent < 0.1


def test_many_idle_connections_cost_little(relay: Relay) -> None:
    """A kilobyte or two each, and no pipe."""
    count = min(3000, sockets.raise_limit() // 3)
    with echo(7001), contextlib.ExitStack() as stack:
        front, _ = opened(relay, (HOST, 7001))
        with socket.create_connection(front, PATIENCE) as first:
            first.send(b"?")
            assert first.recv(1) == b"?"
        before, descriptors = resident(process_of(relay)), descriptors_of(process_of(relay))
        for _ in range(count):
            client = stack.enter_context(socket.create_connection(front, PATIENCE))
            client.send(b"?")
            assert client.recv(1) == b"?"
        assert (resident(process_of(relay)) - before) / count < 2.5
        assert descriptors_of(process_of(relay)) - descriptors < 2 * count + 150


def heard(sock: socket.socket, count: int) -> bytes:
    """So many bytes, or as many as come."""
    data = b""
    while len(data) < count and (more := sock.recv(count - len(data))):
        data += more
    return data


def test_at_the_limit_new_connections_wait(space: str, caplog: pytest.LogCaptureFixture) -> None:
    with netns.inside(space), echo(7001), contextlib.ExitStack() as stack:
        relay = Relay(MACHINE, "relay", limit=21)  # a listener, and ten connections
        stack.callback(ended, relay)
        front, _ = opened(relay, (HOST, 7001))
        clients = [stack.enter_context(socket.create_connection(front, PATIENCE)) for _ in range(15)]
        for client in clients:
            client.sendall(PATTERN[:100_000])
        for client in clients[:10]:
            assert heard(client, 100_000) == PATTERN[:100_000]
        clients[10].settimeout(0.3)
        with pytest.raises(TimeoutError):
            clients[10].recv(1)
        clients[10].settimeout(PATIENCE)
        for client in clients[:10]:
            client.close()
        for client in clients[10:]:
            assert heard(client, 100_000) == PATTERN[:100_000]
        told = [message for message in caplog.messages if "new connections wait until others end" in message]
        assert len(told) == 1


def test_what_is_opened_while_a_process_is_replaced_is_served_by_the_one_successor(relay: Relay) -> None:
    with echo(7001):
        opened(relay, (HOST, 7001))
        first = process_of(relay)
        os.kill(first, signal.SIGKILL)
        fronts = [opened(relay, (HOST, 7001))[0] for _ in range(20)]
        for front in fronts:
            with socket.create_connection(front, PATIENCE) as client:
                client.send(b"?")
                assert client.recv(1) == b"?"
        time.sleep(1.2)  # longer than one is waited for
        assert len(relay_processes()) == 1


def relay_processes() -> list[int]:
    """The relay processes this process has."""
    children = [
        int(number)
        for file in Path("/proc/self/task").glob("*/children")
        for number in file.read_text().split()
    ]
    return [
        child
        for child in children
        if b"kubeproxy.relay" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
    ]


def test_a_target_whose_answer_waits_to_be_heard_is_not_taken_for_silent(
    space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "PATIENCE", (0.0,) * 4)  # the time is over before anything can be heard
    with netns.inside(space), socket.create_server((HOST, 0)) as server, contextlib.ExitStack() as stack:
        loop = PollLoop()
        shared = Shared(loop, lambda *_: None, limit=100)
        front = sockets.bind(MACHINE, HOST, (0, 0), udp=False)
        listening = tcp.TCPServer(front, serving(server.getsockname()), shared)
        for _ in range(5):
            stack.enter_context(socket.create_connection(front.getsockname(), PATIENCE))
        while shared.counts.connections + shared.counts.failures < 5:
            loop.turn(PATIENCE)
        assert (shared.counts.connections, shared.counts.failures) == (5, 0)
        listening.close()
        for handler in loop.handlers:
            assert isinstance(handler, Connection)
            handler.reset()
        loop.turn(0)


@contextlib.contextmanager
def udp_server() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((HOST, 0))
        server.settimeout(PATIENCE)
        yield server


def arrives(client: socket.socket, said: bytes, server: socket.socket) -> bool:
    """Whether a server hears soon what a client says."""
    client.send(said)
    server.settimeout(0.05)
    with contextlib.suppress(TimeoutError):
        return server.recv(10) == said
    return False


def test_udp_flows_keep_their_target_until_it_is_gone(relay: Relay) -> None:
    with udp_server() as one, udp_server() as two, udp_server() as client:
        front, number = opened(relay, one.getsockname(), udp=True)
        client.connect(front)
        client.send(b"a")
        assert one.recv(10) == b"a"
        both = serving(one.getsockname(), two.getsockname(), udp=True)
        relay.change(number, both)
        for _ in range(4):
            client.send(b"b")
            assert one.recv(10) == b"b"
        relay.change(number, serving(two.getsockname(), udp=True))

        until(lambda: arrives(client, b"c", two))


def test_udp_answers_of_many_clients_are_not_mixed_up(relay: Relay) -> None:
    with udp_server() as server, contextlib.ExitStack() as stack:
        front, _ = opened(relay, server.getsockname(), udp=True)
        clients = [stack.enter_context(udp_server()) for _ in range(50)]
        for number, client in enumerate(clients):
            client.connect(front)
            client.send(str(number).encode())
        for _ in clients:
            said, peer = server.recvfrom(100)
            server.sendto(b"to " + said, peer)
        for number, client in enumerate(clients):
            assert client.recv(100) == f"to {number}".encode()


def test_a_udp_target_that_refuses_is_passed_over(relay: Relay) -> None:
    with udp_server() as server, udp_server() as client:
        front, _ = opened(relay, (HOST, 9), server.getsockname(), udp=True)
        client.connect(front)

        until(lambda: arrives(client, b"?", server))


def test_affinity_survives_a_change_of_targets(relay: Relay) -> None:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(4)]
        addresses = [server.getsockname() for server in servers]
        front, number = opened(relay, *addresses[:3], affinity=100)

        def reached() -> Target:
            with socket.create_connection(front, PATIENCE) as client, contextlib.ExitStack() as accepted:
                ready, _, _ = select.select(servers, [], [], PATIENCE)
                accepted.enter_context(ready[0].accept()[0])
                del client
                host, port = ready[0].getsockname()
                return host, port

        kept = reached()
        assert {reached() for _ in range(5)} == {kept}
        relay.change(number, serving(*addresses, affinity=100))
        assert {reached() for _ in range(8)} == {kept}
        relay.change(number, serving(*(a for a in addresses if a != kept), affinity=100))
        assert kept not in {reached() for _ in range(5)}


def test_it_tells_what_it_did_also_in_processes_that_are_gone(relay: Relay) -> None:
    def told() -> dict[str, float]:
        return {
            "".join([f.name.removeprefix("kubeproxy_relay_"), *f.labels.values()]): float(str(f.value))
            for f in relay.figures()
        }

    with socket.create_server((HOST, 0)) as one, udp_server() as two, contextlib.ExitStack() as stack:
        front, _ = opened(relay, (HOST, 9), one.getsockname())
        nobody, _ = opened(relay, (HOST, 9))
        datagrams, _ = opened(relay, two.getsockname(), udp=True)
        for _ in range(4):
            client = stack.enter_context(socket.create_connection(front, PATIENCE))
            server = stack.enter_context(one.accept()[0])
        with pytest.raises(ConnectionResetError):
            stack.enter_context(socket.create_connection(nobody, PATIENCE)).recv(1)
        with udp_server() as asker:
            asker.sendto(b"?", datagrams)
            assert two.recv(1) == b"?"
        client.close()
        server.close()
        until(lambda: told()["connectionsTCP"] == 3)
        assert told() == {
            "connections_totalTCP": 4,
            "connections_totalUDP": 1,
            "connectionsTCP": 3,
            "connectionsUDP": 1,
            "refused_clients_total": 1,
            "endpoint_failures_total": told()["endpoint_failures_total"],
            "ended_connections_total": 0,
            "listeners": 3,
            "lost_processes_total": 0,
        }
        assert told()["endpoint_failures_total"] >= 2
        os.kill(process_of(relay), signal.SIGKILL)
        until(lambda: told()["lost_processes_total"] == 1)
        assert told()["connections_totalTCP"] == 4
        assert told()["connectionsTCP"] == told()["connectionsUDP"] == 0
        stack.enter_context(socket.create_connection(front, PATIENCE))
        until(lambda: told()["connections_totalTCP"] == 5)


def counted(relay: Relay) -> dict[Target, Tally]:
    """What it has counted, by target."""
    return {each.tally.target: each.tally for each in relay.traffic("", PATIENCE).totals}


def test_it_counts_by_target_what_becomes_of_connections(relay: Relay) -> None:
    """And no process that ended had them for nothing."""
    refuses = (HOST, 9)
    with socket.create_server((HOST, 0)) as server, contextlib.ExitStack() as stack:
        target = server.getsockname()
        front, _ = opened(relay, refuses, target)
        clients = [stack.enter_context(socket.create_connection(front, PATIENCE)) for _ in range(6)]
        accepted = [stack.enter_context(server.accept()[0]) for _ in clients]
        until(lambda: counted(relay)[target].open == 6)
        found = counted(relay)
        assert found[target] == Tally("test", target, 6, 6)
        assert found[refuses] == Tally("test", refuses, resets=3), "every second one tries it first"
        clients[0].send(b"12345")
        peer = next(each for each in accepted if select.select([each], [], [], 0.5)[0])
        assert peer.recv(10) == b"12345"
        peer.send(b"123")
        assert clients[0].recv(10) == b"123"
        assert counted(relay)[target] == Tally("test", target, 6, 6, sent=5, received=3)
        will_reset(clients[1])
        clients[1].close()
        until(lambda: counted(relay)[target].open == 5)
        assert counted(relay)[target].resets == 1
        clients[2].close()
        for each in accepted:
            if each is not peer:
                each.close()
        until(lambda: counted(relay)[target].open == 4)
        assert counted(relay)[target].resets == 1, "an end is no reset"
        token = relay.traffic("", PATIENCE).token
        assert relay.traffic(token, PATIENCE).totals == ()
        os.kill(process_of(relay), signal.SIGKILL)
        until(lambda: counted(relay)[target].open == 0)
        clients.append(stack.enter_context(socket.create_connection(front, PATIENCE)))
        accepted.append(stack.enter_context(server.accept()[0]))
        until(lambda: counted(relay)[target].connections == 7)
        again = relay.traffic(token, PATIENCE)
        assert not again.full
        assert {each.tally.target for each in again.totals} >= {target}


def test_it_counts_flows_and_attempts_without_an_answer(relay: Relay) -> None:
    with udp_server() as server, udp_server() as client, contextlib.ExitStack() as stack:
        front, number = opened(relay, (HOST, 9), udp=True)
        client.connect(front)
        client.send(b"?")
        until(lambda: counted(relay).get((HOST, 9), Tally("", front)).resets)
        relay.change(number, serving(server.getsockname(), udp=True))
        until(lambda: arrives(client, b"?", server))
        found = counted(relay)
        assert (found[server.getsockname()].connections, found[server.getsockname()].open) == (1, 1)
        assert found[server.getsockname()].sent >= 1
        assert found[HOST, 9].open == 0
        full = stack.enter_context(socket.create_server((HOST, 0), backlog=0))
        for _ in range(2):  # fill its queue: the kernel drops further SYNs
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        waiting, _ = opened(relay, full.getsockname())
        caller = stack.enter_context(socket.create_connection(waiting, PATIENCE))
        dialing = CarriedFlow(caller.getsockname(), full.getsockname(), connected=False)
        until(lambda: relay.flows("test", waiting, (HOST,), 10, PATIENCE) == [dialing])
        until(lambda: full.getsockname() in counted(relay))
        until(lambda: counted(relay)[full.getsockname()].unanswered == 4)
        tally = counted(relay)[full.getsockname()]
        assert (tally.connections, tally.open, tally.waiting) == (0, 0, 0)


def test_it_lists_the_clients_of_a_front(relay: Relay) -> None:
    """However many there are, in parts; and not those of another front or another address."""
    with socket.create_server((HOST, 0), backlog=1000) as server, contextlib.ExitStack() as stack:
        target = server.getsockname()
        front, _ = opened(relay, target)
        other, _ = opened(relay, target)
        clients = [stack.enter_context(socket.create_connection(front, PATIENCE)) for _ in range(300)]
        stack.enter_context(socket.create_connection(other, PATIENCE))
        until(lambda: counted(relay)[target].open == 301)
        found = relay.flows("test", front, (), 1000, PATIENCE)
        assert {each.client for each in found} == {each.getsockname() for each in clients}
        assert {(each.target, each.connected) for each in found} == {(target, True)}
        assert len(relay.flows("test", front, (HOST,), 1000, PATIENCE)) == 300
        assert len(relay.flows("test", front, (), 150, PATIENCE)) == 150
        assert relay.flows("test", front, ("127.0.0.2",), 1000, PATIENCE) == []
        assert relay.flows("another", front, (), 1000, PATIENCE) == []


def test_it_is_settled_when_the_process_serves_all_listeners(relay: Relay) -> None:
    assert relay.settle(0)
    with echo(7001):
        places = [opened(relay, (HOST, 7001))[0] for _ in range(20)]
        os.kill(process_of(relay), signal.SIGSTOP)
        assert not relay.settle(0.05)
        os.kill(process_of(relay), signal.SIGCONT)
        assert relay.settle(60)
        served = {str(file.readlink()) for file in Path(f"/proc/{relay.pid}/fd").iterdir()}
        assert sum(name.startswith("socket:") for name in served) > len(places)
        for place in places:
            socket.create_connection(place, 10).close()


def test_it_is_settled_again_after_the_process_died(relay: Relay) -> None:
    opened(relay, (HOST, 7001))
    assert relay.settle(60)
    os.kill(process_of(relay), signal.SIGKILL)
    assert relay.settle(60)


def test_who_waits_for_a_relay_is_woken_when_it_is_stopped(relay: Relay) -> None:
    opened(relay, (HOST, 7001))
    os.kill(process_of(relay), signal.SIGSTOP)
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(relay.settle(600)))
    waiting.start()
    pid = relay.pid
    threading.Timer(0.2, os.kill, (pid, signal.SIGCONT)).start()
    relay.stop()
    waiting.join(60)
    assert len(answers) == 1
