"""The cost of one more simulated node in a process: memory and processor time.

The API server and the daemons share one process; the hosts are in memory, and their drivers only store plans.
The figures are differences between many nodes and few, so they do not include the process and the server.
"""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

from bench import objects, rig
from tests.fakes.apiserver import FakeApiServer
from tests.fakes.nodes import Hollow, address, node, running

FEW, MANY = 10, 110
SIZES = ((10, 3), (500, 3))


def main(rounds: int) -> None:
    rig.row("each node of a process", "memory", "start", "one change")
    for services, count in SIZES:
        found = [_differences(services, count) for _ in range(rounds)]
        memory, start, change = (rig.median(column) for column in zip(*found, strict=True))
        rig.row(
            f"{services} Services x {count}",
            f"{memory:.2f} MB", f"{1000 * start:.1f} ms", f"{1000 * change:.2f} ms",
        )  # fmt: skip


def _differences(services: int, count: int) -> tuple[float, ...]:
    few, many = (_measured(nodes, services, count) for nodes in (FEW, MANY))
    return tuple((more - less) / (MANY - FEW) for less, more in zip(few, many, strict=True))


def _measured(*sizes: int) -> list[float]:
    """Resident memory in MB, and seconds of processor time of the start and of a change, of a process of its own."""
    command = [sys.executable, "-m", "bench.nodes", *map(str, sizes)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: list[float] = json.loads(done.stdout)
    return figures


def _resident() -> float:
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024


async def _measure(nodes: int, services: int, count: int) -> list[float]:
    async with FakeApiServer() as server:
        for obj in objects.cluster(services, count):
            server.store.put(obj)
        for i in range(nodes):
            server.store.put(node(f"node-{i}", address(i)))
        apps = [Hollow(f"node-{i}", address(i), server.url) for i in range(nodes)]
        started = time.process_time()
        async with running(apps):
            while not all(app.drivers and app.drivers[0].loads for app in apps):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            ready = time.process_time()
            resident = _resident()
            changing = time.process_time()
            server.store.put(objects.slice_(0, [objects.address(9)]))
            while not all(app.drivers[0].applied for app in apps):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            return [resident, ready - started, time.process_time() - changing]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_measure(*map(int, sys.argv[1:])))))
