"""Node ports on localhost: 1,000 of TCP and 1,000 of UDP, steered to two sockets, or with a socket for each.

Memory of the kernel is that of sockets, open files and maps; sockets of other programs are in it, if they come
and go meanwhile. Memory of the process is resident memory of the relay. A connection is made and answered on a busy relay's
first and last port in turn.
"""

import contextlib
import errno
import os
import signal
import socket
import threading
import time
from pathlib import Path

from bench import rig
from kubeproxy.machine.linux import LinuxMachine
from kubeproxy.relay.control import Relay
from kubeproxy.relay.doors import Doors
from kubeproxy.relay.steering import SteeredPorts
from kubeproxy.relay.values import Choice, Listener
from tests.lab import netns

HOST, SERVER, FIRST = "127.0.0.1", 7001, 30000
PORTS, CONNECTIONS = 1000, 1000
WAYS = ("one socket each", "steered to one socket")


class _Unable(LinuxMachine):
    """A host on which nothing can be steered."""

    def bpf(self, places: object = None) -> object:  # type: ignore[override]  # noqa: ARG002
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def main(rounds: int) -> None:
    rig.row(f"{PORTS} ports of TCP, {PORTS} of UDP", *WAYS)
    found = {way: [_measure(way == WAYS[0]) for _ in range(rounds)] for way in WAYS}
    for at, (name, unit) in enumerate(
        (
            ("until all are served", "ms"),
            ("processor time of the daemon for it", "ms"),
            ("one more, until it is served", "ms"),
            ("after the process is killed, until served", "ms"),
            ("memory of the kernel", "KB"),
            ("memory of the relay process", "KB"),
            ("descriptors of the daemon", ""),
            ("a connection and an answer", "us"),
        )
    ):
        cells = (rig.median([each[at] for each in found[way]]) for way in WAYS)
        rig.row(name, *(f"{cell:,.1f} {unit}" for cell in cells))


def _measure(each: bool) -> list[float]:
    with rig.node() as node, netns.inside(node), socket.create_server((HOST, SERVER), backlog=4096) as server:
        threading.Thread(target=_serve, args=(server,), daemon=True).start()
        machine = _Unable() if each else LinuxMachine()
        relay = Relay(machine, "relay")
        ports = SteeredPorts(relay)
        doors: Doors[tuple[int, bool]] = Doors(relay, ports)
        before = _open()
        put(doors, 1, udp=False)
        relay.settle(60)
        kernel, descriptors, resident = _kernel(), _open(), _resident(relay)

        def fill() -> None:
            for port in range(FIRST, FIRST + PORTS):
                put(doors, port, udp=False)
                put(doors, port, udp=True)
            relay.settle(60)

        busy = time.process_time()
        filled = rig.timed(fill)
        busy = time.process_time() - busy
        kernel, resident = _kernel() - kernel, _resident(relay) - resident
        descriptors = _open() - before

        def more() -> None:
            put(doors, FIRST + PORTS, udp=False)
            relay.settle(60)

        one = rig.timed(more)
        assert relay.pid is not None
        connection = rig.median([rig.timed(lambda port=port: _ask(port)) for port in (FIRST, FIRST + PORTS - 1) * (CONNECTIONS // 2)])  # type: ignore[misc]  # fmt: skip
        os.kill(relay.pid, signal.SIGKILL)
        killed = rig.timed(lambda: _ask(FIRST + PORTS - 1))
        relay.stop()
        relay.join()
        ports.close()
        server.shutdown(socket.SHUT_RDWR)
        return [
            filled * 1e3,
            busy * 1e3,
            one * 1e3,
            killed * 1e3,
            kernel,
            resident,
            descriptors,
            connection * 1e6,
        ]


def put(doors: Doors[tuple[int, bool]], port: int, *, udp: bool) -> None:
    listener = Listener("bench", f"bench{port}", udp=udp, choices=(Choice(((HOST, SERVER),)),))
    doors.put((port, udp), listener, HOST, (port, port))


def _ask(port: int) -> None:
    with socket.create_connection((HOST, port), 60) as sock:
        sock.recv(1)


def _serve(server: socket.socket) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        client.send(b"!")
        client.close()


def _kernel() -> float:
    """Kilobytes of all sockets and open files of the host, and of the maps of this process."""
    found = 0.0
    for line in Path("/proc/slabinfo").read_text().splitlines():
        fields = line.split()
        if fields[0] in {"TCP", "UDP", "sock_inode_cache", "filp", "tcp_bind_bucket"}:
            found += int(fields[1]) * int(fields[3]) / 1024
    for each in Path("/proc/self/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            found += sum(
                int(line.split()[1]) / 1024
                for line in each.read_text().splitlines()
                if line.startswith("memlock:")
            )
    return found


def _resident(relay: Relay) -> float:
    lines = Path(f"/proc/{relay.pid}/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def _open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
