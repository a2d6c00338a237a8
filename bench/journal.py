"""What the journal costs: on the event loop for each change, and in bytes; and how long a question about the past takes.

change    one endpoint of a Service replaced: from the decoded object until it is stored, without and with a journal; the
          bytes it takes among many within a second, and alone
beginning a segment    what the event loop spends on it, what the thread spends after that, and its size
--at      `explain --at` as a whole process, for now
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench import objects, rig
from kubeproxy.api import types
from kubeproxy.backends.fake import FakeDriver
from kubeproxy.config.load import load
from kubeproxy.hub import Hub
from kubeproxy.journal import frames, records
from kubeproxy.journal.folder import segments
from kubeproxy.journal.recorder import Recorder
from kubeproxy.model.node import NodeConfig
from kubeproxy.reconcile.reconciler import Reconciler

SIZES = ((1_000, 10), (10_000, 10))
CHANGES = 2_000


class Found(NamedTuple):
    """Seconds, and bytes."""

    bare: float
    recorded: float
    begin: float
    thread: float
    opening: int
    change: float
    alone: float
    ask: float


def main(rounds: int) -> None:
    rig.row(
        "Services x endpoints",
        "change",
        "with journal",
        "bytes",
        "alone",
        "begin: loop",
        "thread",
        "bytes",
        "explain --at",
    )
    for services, count in SIZES:
        found = [asyncio.run(_measure(services, count)) for _ in range(rounds)]
        bare, recorded, begin, thread, opening, change, alone, ask = (
            rig.median(c) for c in zip(*found, strict=True)
        )
        rig.row(
            f"{services} x {count}",
            f"{1e6 * bare:.1f} us", f"{1e6 * recorded:.1f} us", f"{change:.0f}", f"{alone:.0f}",
            f"{1e3 * begin:.1f} ms", f"{1e3 * thread:.0f} ms", f"{opening / 1e6:.2f} MB", f"{ask:.2f} s",
        )  # fmt: skip


def _changed(services: int, count: int) -> Sequence[types.EndpointSlice]:
    """Slices of which one endpoint is another."""
    made = []
    for n in range(CHANGES):
        i = n % services
        addresses = objects.endpoints(i, count)
        addresses[n // services % count] = objects.address(services * count + n)
        made.append(msgspec.convert(objects.slice_(i, addresses), types.EndpointSlice))
    return made


def _fill(hub: Hub, services: int, count: int) -> None:
    for obj in objects.cluster(services, count):
        kind: type[types.Service | types.EndpointSlice] = (
            types.Service if obj["kind"] == "Service" else types.EndpointSlice
        )
        hub.set(msgspec.convert(obj, kind))


def _set(hub: Hub, bare: Hub, changed: Sequence[types.EndpointSlice]) -> tuple[float, float]:
    """Seconds for a change with a journal and without one, in turns."""
    spent = [0.0, 0.0]
    for n, each in enumerate(changed):
        for i in (n % 2, 1 - n % 2):  # the first of the two reads the object from memory
            one = (hub, bare)[i]
            started = time.perf_counter()
            one.set(each)
            spent[i] += time.perf_counter() - started
    return spent[0] / len(changed), spent[1] / len(changed)


async def _measure(services: int, count: int) -> Found:
    changed = _changed(services, count)
    bare_hub = Hub(objects.NODE)
    _fill(bare_hub, services, count)
    with tempfile.TemporaryDirectory() as folder:
        hub = Hub(objects.NODE)
        _fill(hub, services, count)
        options = load({"journal": folder, "hostname-override": objects.NODE}, sys.platform)
        recorder = Recorder(options, lambda _: ())
        running = asyncio.create_task(recorder.run())
        started = time.perf_counter()
        recorder.follow(hub, "nftables", [_loop(hub)])
        begin = time.perf_counter() - started
        opening = await _written(recorder, folder)
        thread = time.perf_counter() - started - begin
        recorded, bare = _set(hub, bare_hub, changed)
        total = await _written(recorder, folder)
        ask = _ask(folder)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return Found(bare, recorded, begin, thread, opening, (total - opening) / CHANGES, _alone(hub), ask)


def _loop(hub: Hub) -> Reconciler:
    node = NodeConfig(name=objects.NODE, address="192.0.2.1")
    return Reconciler(hub.state, FakeDriver(), node)


async def _written(recorder: Recorder, folder: str) -> int:
    """Waits until all is written; returns the bytes of all files."""
    while not recorder.idle:  # noqa: ASYNC110 the time it takes is wanted to the millisecond
        await asyncio.sleep(0.001)
    return sum(path.stat().st_size for path in segments(Path(folder)))


def _alone(hub: Hub) -> float:
    """Bytes of a change that is written alone."""
    some = [(name, rows) for name, rows in hub.state.stored() if name[0] == "EndpointSlice"][:100]
    made = [frames.pack(records.joined([records.encode(records.of_object(1.7e9, *each))])) for each in some]
    return sum(map(len, made)) / len(made)


def _ask(folder: str) -> float:
    """Seconds for a question about the past."""
    command = (
        "explain",
        "--journal",
        folder,
        "--at",
        "-0s",
        "--from",
        "198.51.100.7",
        "--to",
        "svc-7.default",
    )
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "kubeproxy", *command], check=True, capture_output=True)
    return time.perf_counter() - started
