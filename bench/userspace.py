"""The relay, compared with HAProxy in TCP mode, a copy loop in asyncio, and direct connections.

It measures the throughput of one connection and the processor time of the proxy; short connections with one
byte in each direction; and the memory of idle connections. Each proxy has one thread. Memory is that of the
process; the kernel's memory for two sockets is additional and the same for all.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from bench import rig
from bench.carriers import HOST
from kubeproxy.relay import sockets
from kubeproxy.relay.control import Relay
from kubeproxy.relay.values import Choice, Listener
from tests.lab import netns
from tests.machines import MACHINE

SINK, PROXY = 7001, 7002
SECONDS = 3.0
IDLE = min(10_000, sockets.raise_limit() // 3 - 10)

_HAPROXY = """
global
    nbthread 1
    maxconn {most}
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    {option}
frontend front
    bind 127.0.0.1:{port}
    default_backend back
backend back
    server sink 127.0.0.1:{sink}
"""


class Carrier(NamedTuple):
    """A running proxy: its port and its process ID, 0 for none."""

    port: int
    pid: int


def main(rounds: int) -> None:
    carriers = {
        "direct": direct,
        "kube-proxy's relay": relay,
        "HAProxy": lambda: haproxy(""),
        "HAProxy, option splice-auto": lambda: haproxy("option splice-auto"),
        "asyncio streams": copy,
    }
    if shutil.which("haproxy") is None:
        raise SystemExit("haproxy is missing: apt-get install haproxy")
    with rig.node() as node, netns.inside(node), _started("sink", SINK):
        rig.row("one connection", "GB/s", "proxy s/GB")
        _rows(carriers, rounds, throughput)
        rig.row("short connections", "1/s", "proxy us each")
        _rows(carriers, rounds, calls)
        rig.row(f"{IDLE} silent connections", "KB each", "MB in all")
        _rows({name: each for name, each in carriers.items() if name != "direct"}, 1, idle)


def _rows(
    carriers: Mapping[str, Callable[[], contextlib.AbstractContextManager[Carrier]]],
    rounds: int,
    measure: Callable[[Carrier], tuple[float, float]],
) -> None:
    """Measures all alternately, so that other load on the machine affects all of them; prints medians."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in carriers}
    for _ in range(rounds):
        for name, start in carriers.items():
            with start() as carrier:
                found[name].append(measure(carrier))
    for name, figures in found.items():
        first, second = (rig.median(column) for column in zip(*figures, strict=True))
        rig.row(f"  {name}", f"{first:.{2 if first < 100 else 0}f}", f"{second:.{2 if second < 100 else 0}f}")


def throughput(carrier: Carrier) -> tuple[float, float]:
    before = _processor(carrier.pid)
    sent, seconds = _ask("source", carrier.port, SECONDS)
    return sent / seconds / 1e9, (_processor(carrier.pid) - before) / (sent / 1e9)


def calls(carrier: Carrier) -> tuple[float, float]:
    before = _processor(carrier.pid)
    rate, failed = _ask("caller", carrier.port, SECONDS)
    if failed:
        raise SystemExit(f"{failed:.0f} calls failed")
    return rate, 1e6 * (_processor(carrier.pid) - before) / (rate * SECONDS)


def idle(carrier: Carrier) -> tuple[float, float]:
    before = _memory(carrier.pid)
    with contextlib.ExitStack() as stack:
        for _ in range(IDLE):
            sock = stack.enter_context(socket.create_connection((HOST, carrier.port)))
            sock.send(b"?")
            sock.recv(1)
        time.sleep(1)
        now = _memory(carrier.pid)
    return (now - before) / IDLE, now / 1024


@contextlib.contextmanager
def direct() -> Iterator[Carrier]:
    yield Carrier(SINK, 0)


@contextlib.contextmanager
def relay() -> Iterator[Carrier]:
    """The relay as userspace mode starts it, but without the check that clients connected to a front."""
    carrier = Relay(MACHINE, "bench")
    try:
        sock = sockets.bind(MACHINE, HOST, (PROXY, PROXY), udp=False)
        carrier.open(sock, Listener("bench", "bench", choices=(Choice(((HOST, SINK),)),)))
        _until_open(PROXY)
        assert carrier.pid is not None
        yield Carrier(PROXY, carrier.pid)
    finally:
        carrier.stop()


@contextlib.contextmanager
def haproxy(option: str) -> Iterator[Carrier]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        config = Path(folder, "haproxy.cfg")
        config.write_text(_HAPROXY.format(option=option, port=PROXY, sink=SINK, most=IDLE + 5))
        process = subprocess.Popen(["haproxy", "-db", "-f", config], stderr=subprocess.DEVNULL)
        try:
            _until_open(PROXY)
            yield Carrier(PROXY, process.pid)
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def copy() -> Iterator[Carrier]:
    with _started("copy", PROXY, SINK) as process:
        yield Carrier(PROXY, process.pid)


@contextlib.contextmanager
def _started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A carrier that is ready."""
    process = subprocess.Popen(_command(*arguments), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"{arguments[0]} did not start")
        yield process
    finally:
        process.kill()
        process.communicate()


def _ask(*arguments: object) -> tuple[float, float]:
    """The two numbers that a carrier prints."""
    first, second = subprocess.run(
        _command(*arguments), check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split()
    return float(first), float(second)


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "bench.carriers", *map(str, arguments)]


def _until_open(port: int) -> None:
    """Waits until a proxy forwards connections."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1) as sock:
            sock.send(b"?")
            if sock.recv(1) == b"!":
                return
        time.sleep(0.02)
    raise SystemExit(f"nobody carries on port {port}")


def _processor(pid: int) -> float:
    """Processor seconds of a process."""
    if not pid:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> float:
    """Resident KB of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return float(status.split("VmRSS:")[1].split()[0])
