"""What `kube-proxy top` costs, and the counters in the maps of nftables mode.

The view runs on a terminal, with many Services and clients that connect to any of them a thousand times a
second. Counters are compared with none in turn: new connections through a ClusterIP, the time to write
elements, and the memory of the kernel.
"""

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import connect, objects, rig
from kubeproxy.backends.nftables import layout, packing
from kubeproxy.netlink.nft import messages
from kubeproxy.netlink.nft.kernel import NftKernel
from kubeproxy.netlink.nft.messages import IP, TableName
from tests.lab import netns
from tests.machines import MACHINE

SERVICES, ENDPOINTS = 10_000, 10
FEW = 100
PIECE = 5_000
TABLE = TableName(IP, "bench")
RATE = 1_000
SETTLING_SECONDS, MEASURED_SECONDS = 20, 60
PORT = 8080
PODS = tuple(f"10.128.0.{i}" for i in range(2, 2 + ENDPOINTS))
COUNTERS = {False: (), True: ("--nftables-counters",)}
_SERVER = f"""
import socket
listener = socket.create_server(("", {PORT}), backlog=4096)
print("ready", flush=True)
while True:
    listener.accept()[0].close()
"""
_CLIENT = f"""
import random, socket, struct, sys, time
addresses = sys.stdin.read().split()
reset = struct.pack("ii", 1, 0)
due = time.monotonic()
while True:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        client.settimeout(1)
        try:
            client.connect((random.choice(addresses), 80))
        except OSError:
            pass
    due += 1 / {RATE}
    time.sleep(max(0, due - time.monotonic()))
"""


def main(rounds: int) -> None:
    rig.row(f"{SERVICES} Services x {ENDPOINTS}, {RATE} connections/s", "of a processor", "conn/s seen")
    for counters in COUNTERS:
        share, seen = _view(counters=counters)
        rig.row(f"  the view, {'counters' if counters else 'events'}", f"{100 * share:.1f} %", f"{seen:.0f}")
    _connections(rounds)
    _elements(rounds)


def _view(*, counters: bool) -> tuple[float, float]:
    """The share of a processor that the view takes, and the connections per second that it sees."""
    cluster = [objects.service(i) for i in range(SERVICES)]
    cluster += [objects.slice_(i, list(PODS)) for i in range(SERVICES)]
    with _cluster(cluster) as (node, folder):
        flags = ("--proxy-mode", "nftables", "--manifests", folder, *COUNTERS[counters])
        with rig.Proxy(node, *flags), _clients(node, cluster[:SERVICES]):
            with netns.inside(node):
                terminal, inner = pty.openpty()
                fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
                view = subprocess.Popen(
                    [sys.executable, "-m", "kubeproxy", "top", *rig.FLAGS, *flags],
                    stdin=inner, stdout=inner, stderr=inner, env={**os.environ, "TERM": "xterm-256color"},
                )  # fmt: skip
            threading.Thread(target=_drain, args=(terminal,), daemon=True).start()
            try:
                time.sleep(SETTLING_SECONDS)
                before, started = _processor(view.pid), time.perf_counter()
                time.sleep(MEASURED_SECONDS)
                share = (_processor(view.pid) - before) / (time.perf_counter() - started)
                assert view.poll() is None, "the view ended"
            finally:
                view.terminate()
                view.wait(60)
                os.close(inner)
            with netns.inside(node):
                done = subprocess.run(
                    [sys.executable, "-m", "kubeproxy", "top", "--json", *rig.FLAGS, *flags],
                    check=True, capture_output=True,
                )  # fmt: skip
    found = json.loads(done.stdout)
    ports = [port for service in found["services"] for port in service["ports"]]
    assert found["sources"]["connections"] == ("counters" if counters else "events")
    return share, sum(port["connectionsPerSecond"] for port in ports)


def _drain(terminal: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(terminal, 1 << 16):
            pass


def _processor(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def _cluster(cluster: Sequence[object]) -> Iterator[tuple[str, str]]:
    """A node, with a Pod that has the addresses of all endpoints, and a folder of manifests."""
    with tempfile.TemporaryDirectory() as folder, rig.node() as node:
        listed = {"apiVersion": "v1", "kind": "List", "items": cluster}
        Path(folder, "cluster.json").write_text(json.dumps(listed))
        with rig.pod(node, PODS, _SERVER):
            yield node, folder


@contextlib.contextmanager
def _clients(node: str, services: Sequence[object]) -> Iterator[None]:
    """Connections to any of the Services, until the block ends."""
    addresses = re.findall(r'"clusterIP": "([^"]+)"', json.dumps(services))
    with netns.inside(node):
        client = subprocess.Popen([sys.executable, "-c", _CLIENT], stdin=subprocess.PIPE)
    assert client.stdin is not None
    client.stdin.write(" ".join(addresses).encode())
    client.stdin.close()
    try:
        yield
    finally:
        client.kill()
        client.wait()


def _connections(rounds: int) -> None:
    """New connections with counters and without, in turn."""
    cluster: list[object] = [objects.service(i) for i in range(FEW)]
    cluster += [objects.slice_(i, list(PODS)) for i in range(FEW)]
    address = str(objects.service(FEW // 2)["spec"]["clusterIP"])
    found: dict[bool, list[float]] = {False: [], True: []}
    with _cluster(cluster) as (node, folder):
        for counters in [False, True] * max(rounds, 2):
            flags = ("--proxy-mode", "nftables", "--manifests", folder, *COUNTERS[counters])
            with rig.Proxy(node, *flags), netns.inside(node):
                for _ in range(connect.TURNS):
                    found[counters] += connect.connections(address, 80)
    without, with_ = rig.median(found[False]), rig.median(found[True])
    rig.row("new connection through a ClusterIP, median", f"{1e6 * without:.1f} us")
    rig.row("  with counters", f"{1e6 * with_:.1f} us", f"{with_ / without:.3f} x")


def _elements(rounds: int) -> None:
    """Elements with counters and without, in turn: the time to write them, and the memory of the kernel."""
    found: dict[bool, list[tuple[float, int]]] = {False: [], True: []}
    endpoints = layout.endpoints(IP, ENDPOINTS)
    for counters in [False, True] * (rounds + 1):
        packer = packing.EndpointElements("IPv4", 12, counted=counters)
        tails = [packer.tail(address, PORT) for address in PODS]
        fronts = (
            packing.front(str(objects.service(i)["spec"]["clusterIP"]), "TCP", 80) for i in range(SERVICES)
        )
        elements = [element for front in fronts for element in packer.elements(front, tails)]
        with rig.node() as node, netns.inside(node), NftKernel(MACHINE) as kernel:
            made = messages.add_set(TABLE, endpoints.name, endpoints.key, endpoints.data)
            kernel.commit([messages.add_table(TABLE), made])
            pieces = [elements[i : i + PIECE] for i in range(0, len(elements), PIECE)]
            before = rig.kernel_memory()
            started = time.perf_counter()
            for piece in pieces:
                kernel.commit(messages.add_elements(TABLE, endpoints.name, piece))
            seconds = time.perf_counter() - started
            found[counters].append((seconds, rig.kernel_memory() - before))
    without, with_ = (rig.median([seconds for seconds, _ in found[key]]) for key in (False, True))
    # What was freed before is used again, which only makes differences smaller.
    plain, counted = (max(grown for _, grown in found[key]) for key in (False, True))
    count = SERVICES * ENDPOINTS
    rig.row(f"{count} elements written", f"{without:.2f} s")
    rig.row("  with counters", f"{with_:.2f} s", f"{with_ / without:.2f} x")
    rig.row("memory of the kernel for an element", f"{plain / count:.0f} bytes")
    rig.row(f"  with counters, {os.cpu_count()} processors", f"{counted / count:.0f} bytes")
