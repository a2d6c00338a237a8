"""Relay processes that hang: neither the event loop nor other relays wait for them, and they are replaced."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kubeproxy.relay import process as relay_process
from kubeproxy.relay import sockets
from kubeproxy.relay.control import Patience, Relay
from kubeproxy.relay.doors import Doors
from kubeproxy.relay.values import Message
from tests.kernel.daemons import PATIENCE, until
from tests.kernel.test_relay import HOST, echo, ended, opened, process_of, serving
from tests.lab import netns
from tests.machines import MACHINE

WITHOUT_END = Patience(answer=1e9, start=1e9, stop=1e9)
SHORT = Patience(idle=0.1, tick=0.1, answer=2.0)
LARGE = [(HOST, port) for port in range(1, 60_000)]
"""Targets whose message is larger than a socket's buffer."""

Make = Callable[[Patience], Relay]


@pytest.fixture
def make(space: str) -> Iterator[Make]:
    """Makes relays in the namespace, where the test is, too. Processes that the test stopped are killed after it."""
    relays: list[Relay] = []

    def one(patience: Patience) -> Relay:
        relays.append(Relay(MACHINE, f"relay {len(relays)}", patience=patience))
        return relays[-1]

    with netns.inside(space):
        yield one
        for relay in relays:
            if relay.pid is not None:
                os.kill(relay.pid, signal.SIGKILL)
            ended(relay)


def stopped(pid: int) -> bool:
    """Whether SIGSTOP has stopped a process, proc_pid_stat(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def hang(relay: Relay) -> int:
    """Stops the process of a relay, which has answered before; returns its number."""
    assert relay.settle(PATIENCE)
    pid = process_of(relay)
    os.kill(pid, signal.SIGSTOP)
    until(lambda: stopped(pid))
    return pid


def answers(front: tuple[str, int]) -> None:
    """A new client is served."""
    with socket.create_connection(front, PATIENCE) as client:
        client.send(b"?")
        assert client.recv(1) == b"?"


def test_an_idle_process_that_hangs_is_replaced(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is sent to it: it is noticed by its silence. A client that came meanwhile is served by the next one."""
    relay = make(SHORT)
    with echo(7001):
        front, _ = opened(relay, (HOST, 7001))
        first = hang(relay)
        answers(front)
        assert relay.pid != first
    assert not Path(f"/proc/{first}").exists()
    assert any("the relay process is replaced, it did not respond for 2 s" in m for m in caplog.messages)


def test_a_process_that_hangs_with_a_full_socket_is_replaced(make: Make) -> None:
    """The next one is sent what the table says then."""
    relay = make(SHORT)
    with echo(7001):
        front, number = opened(relay, (HOST, 9))
        first = hang(relay)
        for i in range(20):
            relay.change(number, serving(*LARGE[i:]))
        relay.change(number, serving((HOST, 7001)))
        more, _ = opened(relay, (HOST, 7001))
        answers(more)
        assert relay.pid != first
        answers(front)


def test_no_call_waits_for_a_process_that_hangs(make: Make) -> None:
    """It would wait without end here. What was changed meanwhile holds when the process goes on."""
    relay = make(WITHOUT_END)

    async def work() -> list[int]:
        doors: Doors[int] = Doors(relay)
        for i in range(50):
            doors.put(i, serving(*LARGE[i:]), HOST, (0, 0))
            await asyncio.sleep(0)
        for i in range(50):
            doors.put(i, serving((HOST, 7001)), HOST, (0, 0))
        ports = [doors.port(i) for i in range(50)]
        doors.close(range(10, 50))
        return ports

    with echo(7001):
        front, number = opened(relay, (HOST, 9))
        pid = hang(relay)
        ports = asyncio.run(work())
        relay.change(number, serving((HOST, 7001)))
        assert stopped(pid)
        assert relay.pid == pid
        os.kill(pid, signal.SIGCONT)
        assert relay.settle(PATIENCE)
        answers(front)
        assert relay.pid == pid
        for port in ports[:10]:
            answers((HOST, port))
        for port in ports[10:]:
            with pytest.raises(ConnectionRefusedError), contextlib.closing(socket.socket()) as client:
                client.connect((HOST, port))


def test_a_process_that_hangs_delays_neither_the_loop_nor_the_stop_of_others(make: Make) -> None:
    hung, healthy = make(WITHOUT_END), make(WITHOUT_END)

    async def work(pid: int) -> None:
        turns = 0
        stops = [asyncio.create_task(Doors[int](relay).stop()) for relay in (hung, healthy)]
        async with asyncio.timeout(PATIENCE):
            await stops[1]
            while turns < 1000:
                turns += 1
                await asyncio.sleep(0)
            assert not stops[0].done()
            assert stopped(pid)
            os.kill(pid, signal.SIGKILL)
            await stops[0]

    opened(hung, (HOST, 9))
    opened(healthy, (HOST, 9))
    asyncio.run(work(hang(hung)))


def test_a_process_that_hangs_is_killed_at_the_stop(make: Make) -> None:
    relay = make(Patience(stop=0.1))
    opened(relay, (HOST, 9))
    pid = hang(relay)
    ended(relay)
    assert not Path(f"/proc/{pid}").exists()


def test_connections_of_other_relays_go_on(make: Make) -> None:
    hung, healthy = make(SHORT), make(Patience())
    with echo(7001):
        ours, _ = opened(healthy, (HOST, 7001))
        theirs, _ = opened(hung, (HOST, 7001))
        with socket.create_connection(ours, PATIENCE) as client:
            first, other = hang(hung), process_of(healthy)
            answers(theirs)
            assert hung.pid != first
            client.send(b"!")
            assert client.recv(1) == b"!"
            assert healthy.pid == other


def test_a_process_that_was_suspended_for_less_is_kept(make: Make) -> None:
    relay = make(Patience(idle=0.01, tick=0.01, answer=1e9))
    with echo(7001):
        front, _ = opened(relay, (HOST, 7001))
        pid = hang(relay)
        turns = iter(range(20))
        until(lambda: next(turns, None) is None)
        os.kill(pid, signal.SIGCONT)
        answers(front)
        assert relay.pid == pid


def test_a_process_that_cannot_be_started_is_tried_again(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever opens a listener does not notice."""
    relay = make(Patience(life=0.05))
    with echo(7001):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", "/nonexistent/python")
            front, _ = opened(relay, (HOST, 7001))
            until(lambda: any("cannot start the relay process, trying again" in m for m in caplog.messages))
        answers(front)


def test_a_process_that_sends_nonsense_is_replaced(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = relay_process.RelayProcess.receive
    failing = [True]

    def receive(process: relay_process.RelayProcess) -> list[Message] | None:
        if failing:
            failing.clear()
            raise ValueError("no message")
        return real(process)

    monkeypatch.setattr(relay_process.RelayProcess, "receive", receive)
    relay = make(Patience(life=0.05))
    with echo(7001):
        front, _ = opened(relay, (HOST, 7001))
        until(lambda: any("cannot handle a message of the relay process" in m for m in caplog.messages))
        assert relay.settle(PATIENCE)
        answers(front)


def test_listeners_of_a_relay_that_is_stopped_are_closed(make: Make) -> None:
    relay = make(Patience())
    front, _ = opened(relay, (HOST, 9))
    ended(relay)
    assert relay.pid is None
    sock = sockets.bind(MACHINE, HOST, (0, 0), udp=False)
    relay.open(sock, serving((HOST, 9)))
    assert sock.fileno() == -1
    with pytest.raises(ConnectionRefusedError), contextlib.closing(socket.socket()) as client:
        client.connect(front)


WITH_A_RELAY = """
import sys
from kubeproxy.machine.linux import LinuxMachine
from kubeproxy.relay import sockets
from kubeproxy.relay.control import Patience, Relay
from kubeproxy.relay.values import Listener
machine = LinuxMachine()
relay = Relay(machine, "relay", patience=Patience(idle=0.1, tick=0.2, answer=4.0))
relay.open(sockets.bind(machine, "127.0.0.1", (0, 0), udp=False), Listener("web", "web"))
assert relay.settle(300)
for _ in sys.stdin:
    relay.settle(300)
    print(relay.pid, flush=True)
"""


def test_time_in_which_everything_was_suspended_does_not_count(space: str) -> None:
    """As in a container that is frozen: relay and daemon stop, and go on later than a process may be silent."""
    with netns.inside(space):
        command = [sys.executable, "-c", WITH_A_RELAY]
        daemon = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask() -> int:
        assert daemon.stdin is not None
        assert daemon.stdout is not None
        print(file=daemon.stdin, flush=True)
        return int(daemon.stdout.readline())

    try:
        first = ask()
        for pid in (first, daemon.pid):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(6)
        for pid in (daemon.pid, first):
            os.kill(pid, signal.SIGCONT)
        assert ask() == first
    finally:
        daemon.kill()
        daemon.communicate()
