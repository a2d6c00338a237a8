"""The cost of scrapes, of health checks while a sync runs, and the processor time of an idle daemon."""

import asyncio
import http.client
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import objects, rig
from tests.fakes.apiserver import FakeApiServer
from tests.lab import netns

SERVICES, ENDPOINTS, PORTS = 10_000, 3, 2_000
REST_SECONDS = 60.0
FLAGS = ("--proxy-mode", "nftables", "--nodeport-addresses", "0.0.0.0/0,::/0")


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder, rig.node() as node:
        Path(folder, "cluster.json").write_bytes(objects.manifest(SERVICES, ENDPOINTS))
        with rig.Proxy(node, "--manifests", folder, *FLAGS) as proxy:
            time.sleep(3)
            with asking(node, 10256, "/healthz") as ask:
                longest = max(rig.timed(ask) for _ in range(500))
            rig.row(f"/healthz at rest, {SERVICES} Services, longest of 500", f"{1e3 * longest:.1f} ms")
            with asking(node, 10249, "/metrics") as ask:
                first = rig.timed(ask)
                scrapes = [rig.timed(ask) for _ in range(20 * rounds)]
            rig.row("/metrics", f"{1e3 * rig.median(scrapes):.1f} ms", f"{1e3 * first:.0f} ms first")
            rig.row("resident memory, scraped", f"{proxy.megabytes()[0]:.0f} MB")
            rest("manifests", proxy)
    asyncio.run(_from_server())
    while_syncing(rounds)
    health_ports()


def rest(source: str, proxy: rig.Proxy) -> None:
    """Processor time of a minute without changes."""
    time.sleep(2)
    before = _on_processor(proxy)
    time.sleep(REST_SECONDS)
    used = (_on_processor(proxy) - before) * 60 / REST_SECONDS
    rig.row(f"processor time of a minute at rest, {source}", f"{1e3 * used:.1f} ms")


def _on_processor(proxy: rig.Proxy) -> float:
    """Seconds all threads were on a processor, to the nanosecond (the ticks of /proc/PID/stat are too coarse here)."""
    tasks = Path(f"/proc/{proxy.process.pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9


async def _from_server() -> None:
    with rig.node() as node:
        server = FakeApiServer()
        for obj in (*objects.cluster(SERVICES, ENDPOINTS), _own_node()):
            server.store.put(obj)
        with netns.inside(node):
            await server.start()
        proxy = rig.Proxy(node, "--master", server.url, *FLAGS)
        try:
            await asyncio.to_thread(proxy.__enter__)
            await asyncio.to_thread(rest, "API server", proxy)
        finally:
            await asyncio.to_thread(proxy.__exit__)
            await server.stop()


def _own_node() -> dict[str, Any]:
    return {
        "kind": "Node",
        "metadata": {"name": objects.NODE},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    }


def while_syncing(rounds: int) -> None:
    """The longest answer time of /healthz, after the first answer, while everything is planned and written."""
    longest = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder, rig.node() as node:
            Path(folder, "cluster.json").write_bytes(objects.manifest(SERVICES, ENDPOINTS))
            over = threading.Event()
            found: list[float] = []
            prober = threading.Thread(target=_probe, args=(node, over, found))
            prober.start()
            with rig.Proxy(node, "--manifests", folder, *FLAGS):
                time.sleep(0.5)
                over.set()
                prober.join()
            longest.append(max(found))
    rig.row(
        f"/healthz during a start with {SERVICES} Services, longest", f"{1e3 * rig.median(longest):.0f} ms"
    )


def _probe(node: str, over: threading.Event, found: list[float]) -> None:
    while not over.is_set():
        try:
            with asking(node, 10256, "/healthz") as ask:
                while not over.is_set():
                    found.append(rig.timed(ask))
                    time.sleep(0.001)
        except ConnectionRefusedError:
            time.sleep(0.005)


def health_ports() -> None:
    """Thousands of health-check node ports, compared with the same Services without them."""
    without, having = (_resident(local=local) for local in (False, True))
    rig.row(
        f"resident memory with {PORTS} health-check ports", f"{having:.1f} MB", f"{without:.1f} MB without"
    )


def _resident(*, local: bool) -> float:
    with tempfile.TemporaryDirectory() as folder, rig.node() as node:
        items = [_balanced(i, local=local) for i in range(PORTS)]
        Path(folder, "cluster.json").write_bytes(objects.as_list(items))
        with rig.Proxy(node, "--manifests", folder, *FLAGS) as proxy:
            if local:
                time.sleep(2)
                with asking(node, 20_000 + PORTS - 1, "/") as ask:
                    ask()
            return proxy.megabytes()[0]


def _balanced(i: int, *, local: bool) -> dict[str, Any]:
    wire = objects.service(i)
    spec = {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}
    wire["spec"] |= {**spec, "healthCheckNodePort": 20_000 + i if local else 0}
    return wire


@contextmanager
def asking(node: str, port: int, path: str) -> Iterator[Callable[[], None]]:
    """Requests a page repeatedly over one connection."""
    with netns.inside(node):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.connect()

    def ask() -> None:
        connection.request("GET", path)
        if connection.getresponse().read() == b"":
            raise SystemExit(f"{path}: no answer")

    try:
        yield ask
    finally:
        connection.close()
