"""Stale UDP flows among many, when an endpoint of the cluster's DNS is removed, and at a start.

Compared with listing the table.

The flows are created by messages to the kernel. The measurement covers everything that happens in the daemon
after a sync, with its threads and its event loop. How long the event loop was blocked is the longest pause of
a task that only yields.
"""

import asyncio
import subprocess
import time

from bench import rig
from kubeproxy.flows import Cleaned, FlowCleaner
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint
from kubeproxy.reconcile.ledger import Ledger
from tests.lab import flows, netns
from tests.lab.flows import Entry
from tests.machines import MACHINE

FLOWS, STALE = 100_000, 1_000
DNS = ("kube-system", "kube-dns")
VIP = ("10.96.0.10", 53)
STAYS, GOES = Endpoint("10.128.0.1", 53), Endpoint("10.128.0.2", 53)


def main(rounds: int) -> None:
    with rig.node() as node:
        flows.add(node, (_flow(i, STAYS) for i in range(FLOWS - STALE)))
        with netns.inside(node):
            asyncio.run(_measure(node, rounds))
            listing = ["conntrack", "-L", "-p", "udp"]
            whole = [
                rig.timed(lambda: subprocess.run(listing, check=True, capture_output=True))
                for _ in range(rounds)
            ]
            rig.row("conntrack -L -p udp of that table", f"{1e3 * rig.median(whole):.0f} ms")


async def _measure(node: str, rounds: int) -> None:
    loop = _Loop()
    cleaner = FlowCleaner(MACHINE, loop)  # type: ignore[arg-type]
    cleaned: asyncio.Queue[Cleaned] = asyncio.Queue()
    cleaner.on_clean(cleaned.put_nowait)
    turning = _Turning()
    tasks = [asyncio.create_task(cleaner.run()), asyncio.create_task(turning.run())]
    both, one = _plan(STAYS, GOES), _plan(STAYS)
    for title, full in (
        (f"{STALE:,} stale of {FLOWS:,}, one endpoint went", False),
        (f"{STALE:,} stale of {FLOWS:,}, at a start", True),
    ):
        seconds, pauses = [], []
        for _ in range(rounds):
            loop.record(both, full=True)
            done = await cleaned.get()
            await asyncio.to_thread(flows.add, node, [_flow(FLOWS + i, GOES) for i in range(STALE)])
            await asyncio.sleep(2 * done.seconds + 0.2)  # the cleaner pauses for as long as it worked
            turning.longest = 0.0
            started = time.perf_counter()
            loop.record(one, full=full)
            done = await cleaned.get()
            seconds.append(time.perf_counter() - started)
            pauses.append(turning.longest)
            if done.deleted != STALE:
                raise SystemExit(f"{done.deleted} of {STALE} stale flows were deleted")
        rig.row(title, f"{1e3 * rig.median(seconds):.0f} ms", f"pause {1e3 * rig.median(pauses):.0f} ms")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _flow(i: int, backend: Endpoint) -> Entry:
    """A client's flow to the DNS."""
    client = f"10.{200 + (i >> 16)}.{i >> 8 & 255}.{i & 255}"
    return Entry((client, 40000), VIP, (backend.address, backend.port))


def _plan(*backends: Endpoint) -> ServicePlan:
    port = PortPlan("kube-system/kube-dns:dns", "UDP", VIP[1], VIP[0], cluster=backends, serving=backends)
    return ServicePlan(*DNS, (port,))


class _Loop:
    """A control loop that has just synced the given plans."""

    def __init__(self) -> None:
        self.node = NodeConfig()
        self.family = self.node.family
        self.ledger = Ledger(self.family)

    def in_kernel(self, plan: ServicePlan) -> ServicePlan:
        return plan

    def record(self, plan: ServicePlan, *, full: bool) -> None:
        self.ledger.want(DNS, plan)
        if full:
            self.ledger.loaded({})
        else:
            self.ledger.applied(self.ledger.due())


class _Turning:
    """A task that runs every millisecond, and the longest delay of it."""

    longest = 0.0

    async def run(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.perf_counter() - before - 0.001)
