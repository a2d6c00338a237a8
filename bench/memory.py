"""Resident memory of the daemon: idle and with many Services, with manifests and an API server."""

import asyncio
import tempfile
import time
from pathlib import Path

from bench import objects, rig
from tests.fakes.apiserver import FakeApiServer
from tests.lab import netns

MODES = ("iptables", "nftables")
SIZES = ((0, 0), (5000, 3), (10000, 10))


def main(rounds: int) -> None:
    with rig.path("legacy") as path:
        for mode in MODES:
            rig.row(f"{mode} mode", "resident", "peak")
            for services, count in SIZES:
                title = f"{services} Services x {count}" if services else "idle"
                _show(
                    f"{title}, manifests", [_from_files(mode, services, count, path) for _ in range(rounds)]
                )
                _show(
                    f"{title}, API server",
                    [asyncio.run(_from_server(mode, services, count, path)) for _ in range(rounds)],
                )


def _show(title: str, figures: list[tuple[float, float]]) -> None:
    now, peak = (rig.median(column) for column in zip(*figures, strict=True))
    rig.row(title, f"{now:.0f} MB", f"{peak:.0f} MB")


def _from_files(mode: str, services: int, count: int, path: str) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder, rig.node() as node:
        if services:
            Path(folder, "cluster.json").write_bytes(objects.manifest(services, count))
        with rig.Proxy(node, "--proxy-mode", mode, "--manifests", folder, path=path) as proxy:
            time.sleep(1)
            return proxy.megabytes()


async def _from_server(mode: str, services: int, count: int, path: str) -> tuple[float, float]:
    with rig.node() as node:
        server = FakeApiServer()
        for obj in objects.cluster(services, count):
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
        proxy = rig.Proxy(node, "--proxy-mode", mode, "--master", server.url, path=path)
        try:
            await asyncio.to_thread(proxy.__enter__)
            await asyncio.sleep(1)
            return proxy.megabytes()
        finally:
            await asyncio.to_thread(proxy.__exit__)
            await server.stop()
