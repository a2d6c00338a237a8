"""`explain` among 10,000 Services with 10 endpoints each: from manifests, by asking a daemon, and a connection that is traced.

Commands are timed from their start to their end. The ratio is to a Python program that only imports what the
command needs.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import objects, rig
from bench.connect import POD, connections, node_and_pod
from kubeproxy.api.addresses import pack
from kubeproxy.insight import daemon
from kubeproxy.netlink.nft import messages
from kubeproxy.netlink.nft.trace import TracedFlow, Tracer
from kubeproxy.protocols import TCP
from tests.lab import netns
from tests.machines import MACHINE

SERVICES, ENDPOINTS = 10_000, 10
TRACED = 20
_NEEDED = "import kubeproxy.cli.explain, kubeproxy.insight.daemon, kubeproxy.machine.linux"


def main(rounds: int) -> None:
    asked = SERVICES // 2
    cluster = [objects.service(i) for i in range(SERVICES)]
    front = cluster[asked]["spec"]["clusterIP"]
    for i in range(SERVICES):
        addresses = [POD] if i == asked else objects.endpoints(i, ENDPOINTS)
        cluster.append(objects.slice_(i, addresses))
    with tempfile.TemporaryDirectory() as folder, node_and_pod() as node:
        file = Path(folder, "cluster.json")
        file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": cluster}))
        question = ("--from", "10.128.0.9", "--to", f"{front}:80")
        with rig.Proxy(node, "--proxy-mode", "nftables", "--manifests", folder), netns.inside(node):
            bare = [rig.timed(lambda: _run("-c", _NEEDED)) for _ in range(rounds)]
            manifests = [
                rig.timed(
                    lambda: _explain(*question, "--proxy-mode", "nftables", "--manifests", folder, *rig.FLAGS)
                )
                for _ in range(rounds)
            ]
            asking = [rig.timed(lambda: _explain(*question)) for _ in range(rounds)]
            answered = [rig.timed(lambda: daemon.ask(MACHINE, *question[1::2], "")) for _ in range(rounds)]
            base = rig.median(bare)
            rig.row("Python and its modules", _ms(base))
            for what, found in (
                ("explain from manifests, kernel compared", manifests),
                ("explain by asking the daemon, kernel compared", asking),
            ):
                rig.row(what, _ms(rig.median(found)), f"{rig.median(found) / base:.1f} x")
            rig.row("  the daemon's part of it", _ms(rig.median(answered)))
            plain = [seconds for _ in range(rounds) for seconds in connections(front, 80)]
            with _tracing(front):
                traced = []
                for _ in range(rounds):
                    time.sleep(1.5)  # so many a second are traced
                    traced += connections(front, 80)[:TRACED]
            rig.row("a connection through the ClusterIP", f"{1e6 * rig.median(plain):.0f} us")
            rig.row(
                "  the same, traced",
                f"{1e6 * rig.median(traced):.0f} us",
                f"{rig.median(traced) / rig.median(plain):.2f} x",
            )


def _explain(*arguments: str) -> None:
    _run("-m", "kubeproxy", "explain", "--json", *arguments)


def _run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], check=False, capture_output=True, text=True)
    if done.returncode or ('"kernel"' in done.stdout and '"agrees"' not in done.stdout):
        raise SystemExit(f"explain failed ({done.returncode}):\n{done.stdout[-2000:]}\n{done.stderr}")


@contextmanager
def _tracing(front: str) -> Iterator[None]:
    """Traces connections of this host to a front; the events are not read."""
    with Tracer(MACHINE, TracedFlow(messages.IP, TCP, b"", pack(front), 80, own=True)):
        yield


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"
