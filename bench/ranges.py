"""Source ranges: the cost of a Service with 2,000 of them in nftables mode, compared with ten.

Each figure is the time from the bytes of a watch event until the change is in the kernel, without the
kernel's own time.
"""

import asyncio
import time
from typing import Any, NamedTuple

from bench import objects, rig
from bench.nftables import NODE, Daemon, Timed, _line
from kubeproxy.backends.nftables.driver import NFTablesDriver
from tests.lab import netns

FEW, MANY, PORTS = 10, 2_000, 3


class Costs(NamedTuple):
    """Median milliseconds, ours and the kernel's: a Service added, an endpoint replaced, a range replaced."""

    came: tuple[float, float]
    endpoint: tuple[float, float]
    range: tuple[float, float]
    pause: float


def main(rounds: int) -> None:
    few, many = ([asyncio.run(_measure(count)) for _ in range(max(rounds, 3))] for count in (FEW, MANY))
    for what, field in ("Service comes", 0), ("an endpoint is replaced", 1), ("a range is replaced", 2):
        one, other = (_median([costs[:3][field] for costs in found]) for found in (few, many))
        rig.row(f"{PORTS} ports, {FEW} ranges: {what}", f"{one[0]:.2f} ms", f"kernel {one[1]:.2f} ms")
        rig.row(
            f"{PORTS} ports, {MANY} ranges: {what}",
            f"{other[0]:.2f} ms",
            f"kernel {other[1]:.2f} ms",
            f"{other[0] / one[0]:.2f} x",
        )
    for ranges, found in (FEW, few), (MANY, many):
        rig.row(
            f"{ranges} ranges: longest pause of the event loop",
            f"{rig.median([c.pause for c in found]):.1f} ms",
        )


def _service(ranges: int, *, first: int = 0) -> dict[str, Any]:
    found = objects.service(0)
    found["spec"] |= {
        "type": "LoadBalancer",
        "ports": [{"name": f"p{i}", "protocol": "TCP", "port": 80 + i} for i in range(PORTS)],
        "loadBalancerSourceRanges": [f"198.{i >> 8}.{i & 255}.0/24" for i in range(first, first + ranges)],
    }
    found["status"] = {"loadBalancer": {"ingress": [{"ip": "203.0.113.5"}]}}
    return found


def _slice(last: str) -> dict[str, Any]:
    found = objects.slice_(0, [*objects.endpoints(0, 4), last])
    found["ports"] = [{"name": f"p{i}", "protocol": "TCP", "port": 8080} for i in range(PORTS)]
    return found


async def _measure(ranges: int) -> Costs:
    with rig.node() as node, netns.inside(node), Timed() as kernel:
        daemon = Daemon(NFTablesDriver(kernel, NODE))
        daemon.hear("Service", _line(objects.service(1)))
        task = asyncio.create_task(daemon.loop.run())
        await daemon.committed()
        daemon.hub.loops = [daemon.loop]
        pauses: list[float] = [0.0]
        watch = asyncio.create_task(_watch_pauses(pauses))
        daemon.hear("EndpointSlice", _line(_slice("10.254.0.1")))
        came = await _timed(daemon, kernel, "Service", _service(ranges))
        endpoints = [
            await _timed(daemon, kernel, "EndpointSlice", _slice(f"10.254.1.{i}")) for i in range(20)
        ]
        wider = [await _timed(daemon, kernel, "Service", _service(ranges, first=i)) for i in range(1, 6)]
        watch.cancel()
        task.cancel()
    return Costs(came, _median(endpoints), _median(wider), max(pauses))


def _median(found: list[tuple[float, float]]) -> tuple[float, float]:
    return rig.median([ours for ours, _ in found]), rig.median([theirs for _, theirs in found])


async def _watch_pauses(found: list[float]) -> None:
    """Records how many milliseconds of processor time the event loop was blocked.

    Processor time and not time, because on a busy machine a thread also waits for a processor.
    """
    while True:
        before = time.thread_time()
        await asyncio.sleep(0.001)
        found.append(1e3 * (time.thread_time() - before))


async def _timed(daemon: Daemon, kernel: Timed, kind: str, obj: dict[str, Any]) -> tuple[float, float]:
    line = _line(obj, "MODIFIED")
    await asyncio.sleep(0.01)
    loop = asyncio.get_running_loop()
    started, before = loop.time(), kernel.seconds
    daemon.hear(kind, line)
    await daemon.committed()
    total, theirs = loop.time() - started, kernel.seconds - before
    return 1e3 * (total - theirs), 1e3 * theirs
