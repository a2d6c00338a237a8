"""From the start of the process until /healthz answers 200, and until all rules are in place."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import tempfile
import threading
import time

from bench import rig
from bench.objects import NODE
from tests.fakes.apiserver import FakeApiServer
from tests.lab import netns

MODES = ("iptables", "nftables")
ADDRESS = ("127.0.0.1", 10256)
_QUESTION = b"GET /healthz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n"


def main(rounds: int) -> None:
    rounds = max(rounds, 11)
    rig.row("start of the process", "health 200", "rules in place")
    bare = [rig.timed(lambda: subprocess.run([sys.executable, "-c", ""], check=True)) for _ in range(rounds)]
    rig.row("Python alone", f"{1e3 * rig.median(bare):.0f} ms", "")
    with rig.path("nf_tables") as path:
        for mode in MODES:
            with tempfile.TemporaryDirectory() as folder:
                found = [_start(mode, path, "--manifests", folder) for _ in range(rounds)]
            _show(f"{mode} mode, manifests", found)
            _show(f"{mode} mode, API server", asyncio.run(_from_server(mode, path, rounds)))


def _show(title: str, found: list[tuple[float, float]]) -> None:
    healthy, ready = (rig.median(column) for column in zip(*found, strict=True))
    rig.row(title, f"{1e3 * healthy:.0f} ms", f"{1e3 * ready:.0f} ms")


def _start(mode: str, path: str, *flags: str, node: str = "") -> tuple[float, float]:
    """Seconds until both, of one start."""
    with contextlib.ExitStack() as stack:
        where = node or stack.enter_context(rig.node())
        healthy = _Healthy(where)
        started = time.perf_counter()
        proxy = stack.enter_context(rig.Proxy(where, "--proxy-mode", mode, *flags, path=path))
        return healthy.wait() - started, proxy.seconds


async def _from_server(mode: str, path: str, rounds: int) -> list[tuple[float, float]]:
    found = []
    for _ in range(rounds):
        with rig.node() as node:
            server = FakeApiServer()
            server.store.put(
                {
                    "kind": "Node",
                    "metadata": {"name": NODE},
                    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
                }
            )
            with netns.inside(node):
                await server.start()
            found.append(await asyncio.to_thread(_start, mode, path, "--master", server.url, node=node))
            await server.stop()
    return found


class _Healthy(threading.Thread):
    """Asks for the health of a node until it is good."""

    def __init__(self, node: str) -> None:
        super().__init__(daemon=True)
        self._node = node
        self.at = 0.0
        self.start()

    def run(self) -> None:
        with netns.inside(self._node):
            while not self._good():
                time.sleep(0.001)
            self.at = time.perf_counter()

    def wait(self) -> float:
        """When it was."""
        self.join(60)
        return self.at

    def _good(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(ADDRESS, 5) as client:
            client.sendall(_QUESTION)
            return client.recv(100).startswith(b"HTTP/1.1 200")
        return False
