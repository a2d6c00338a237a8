"""New connections through a ClusterIP, compared with direct ones and with iptables mode.

They are measured with few and with many Services.

A client on the node connects to a Pod over a veth pair, one connection after the other, each closed by a
reset. With many Services it connects to the one in the middle. Fifty direct connections and fifty others are
measured alternately; direct ones are also checked against the rules.
"""

import contextlib
import json
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench import objects, rig
from tests.lab import netns

SIZES = (10, 10_000)
TURNS, CONNECTIONS = 100, 50
POD, PORT = "10.128.0.2", 8080
_SERVER = f"""
import socket
listener = socket.create_server(("", {PORT}), backlog=4096)
print("ready", flush=True)
while True:
    listener.accept()[0].close()
"""


def main(rounds: int) -> None:
    rig.row("", "1/s", "median", "to bare")
    with rig.path("legacy") as path:
        for services in SIZES:
            for mode in ("iptables", "nftables"):
                found = _mode(mode, services, path, rounds)
                rig.row(f"{services} Services, {mode} mode")
                _show("through a ClusterIP", found.through, found.bare)
                _show("direct, on the same node", found.direct, found.bare)
                _show("direct, on this node before the start", found.bare, found.bare)


def _show(what: str, found: list[float], bare: list[float]) -> None:
    middle = rig.median(found)
    rate = len(found) / sum(found)
    rig.row(f"  {what}", f"{rate:.0f}", f"{1e6 * middle:.1f} us", f"{middle / rig.median(bare):.2f} x")


class Found(NamedTuple):
    """Seconds of connections: on a node without rules.

    With rules direct ones, and those through a ClusterIP.
    """

    bare: list[float]
    direct: list[float]
    through: list[float]


def _mode(mode: str, services: int, path: str, rounds: int) -> Found:
    asked = services // 2
    cluster = [objects.service(i) for i in range(services)]
    cluster += [objects.slice_(i, [POD]) for i in range(services)]
    found = Found([], [], [])
    with tempfile.TemporaryDirectory() as folder, node_and_pod() as node:
        listed = {"apiVersion": "v1", "kind": "List", "items": cluster}
        Path(folder, "cluster.json").write_text(json.dumps(listed))
        with netns.inside(node):
            for _ in range(rounds * TURNS):
                found.bare.extend(connections(POD, PORT))
        with rig.Proxy(node, "--proxy-mode", mode, "--manifests", folder, path=path), netns.inside(node):
            for _ in range(rounds * TURNS):
                found.direct.extend(connections(POD, PORT))
                found.through.extend(connections(cluster[asked]["spec"]["clusterIP"], 80))
    return found


@contextlib.contextmanager
def node_and_pod(*others: str) -> Iterator[str]:
    """A node with one Pod that accepts connections, at other addresses, too."""
    with rig.node() as node, rig.pod(node, (POD, *others), _SERVER):
        netns.write_sysctls(node, {"net/ipv4/ip_forward": "1"})
        yield node


def connections(address: str, port: int) -> list[float]:
    """The seconds of some connections, one after the other, each closed by a reset."""
    seconds = []
    reset = struct.pack("ii", 1, 0)
    for _ in range(CONNECTIONS):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            started = time.perf_counter()
            client.connect((address, port))
            seconds.append(time.perf_counter() - started)
    return seconds
