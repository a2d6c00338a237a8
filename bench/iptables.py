"""iptables mode: a start compared with `iptables-restore` of the same rules, and one changed endpoint.

`exchange` measures the cost of a change with large legacy tables, and the kernel's part of it.
"""

import asyncio
import subprocess
import tempfile
import time
from pathlib import Path

from bench import exchange, objects, rig
from kubeproxy.backends.iptables import names
from kubeproxy.netlink import nfacct
from tests.fakes.apiserver import FakeApiServer
from tests.lab import netns
from tests.machines import MACHINE

SERVICES, ENDPOINTS = 5000, 3


def main(rounds: int) -> None:
    for variant in rig.VARIANTS:
        with rig.path(variant) as path:
            full = start(variant, path, rounds)
            change(variant, path, full, 4 * rounds)
    exchange.main(rounds)


def start(variant: str, path: str, rounds: int) -> float:
    """Measures alternately a start until all rules are in the kernel, and `iptables-restore`.

    Returns the former.
    """
    ours, bare = [], []
    programs = {
        name: str(Path(path.partition(":")[0], name)) for name in ("iptables-save", "iptables-restore")
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "cluster.json").write_bytes(objects.manifest(SERVICES, ENDPOINTS))
        for _ in range(rounds):
            with rig.node() as node:
                with rig.Proxy(node, "--manifests", folder, path=path) as proxy:
                    ours.append(proxy.seconds)
                with netns.inside(node):
                    text = subprocess.run([programs["iptables-save"]], check=True, capture_output=True).stdout
            with rig.node() as node, netns.inside(node):
                for counter in (names.INVALID_COUNTER, names.LOCALHOST_COUNTER):
                    nfacct.ensure(MACHINE, counter)
                restore = [programs["iptables-restore"]]
                bare.append(rig.timed(lambda: subprocess.run(restore, input=text, check=True)))  # noqa: B023
    title = f"{variant}: {SERVICES} Services x {ENDPOINTS}, start to all in place"
    rig.row(title, f"{rig.median(ours):.2f} s")
    rig.row(
        f"{variant}: bare iptables-restore of the same rules",
        f"{rig.median(bare):.2f} s",
        f"{rig.median(ours) / rig.median(bare):.2f} x",
    )
    return rig.median(ours)


def change(variant: str, path: str, full: float, rounds: int) -> None:
    """Adds and removes one endpoint: from the API server's event until the kernel's tables have changed."""
    seconds, processor = asyncio.run(_change(variant, path, rounds))
    rig.row(
        f"{variant}: one endpoint more or less, event to kernel",
        f"{1e3 * rig.median(seconds):.0f} ms",
        f"{full / rig.median(seconds):.0f} x faster",
    )
    rig.row(f"{variant}: processor time of that, children included", f"{1e3 * processor:.0f} ms")


async def _change(variant: str, path: str, rounds: int) -> tuple[list[float], float]:
    seconds = []
    with rig.node() as node:
        server = FakeApiServer()
        for obj in objects.cluster(SERVICES, ENDPOINTS):
            server.store.put(obj)
        server.store.put(
            {
                "kind": "Node",
                "metadata": {"name": objects.NODE},
                "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
            }
        )
        with netns.inside(node):
            await server.start()
        proxy = rig.Proxy(node, "--master", server.url, path=path)
        await asyncio.to_thread(proxy.__enter__)
        try:
            before = proxy.processor_seconds()
            for number in range(rounds):
                i = number * 37 % SERVICES
                addresses = objects.endpoints(i, ENDPOINTS)
                for changed in ([*addresses, "10.255.0.1"], addresses):
                    seen = rig.Watcher(node, rig.fingerprint(variant))
                    started = time.perf_counter()
                    server.store.put(objects.slice_(i, changed))
                    seconds.append(await asyncio.to_thread(seen.wait) - started)
                    await asyncio.sleep(4 * seconds[-1])
            processor = (proxy.processor_seconds() - before) / len(seconds)
        finally:
            await asyncio.to_thread(proxy.__exit__)
            await server.stop()
    return seconds, processor
