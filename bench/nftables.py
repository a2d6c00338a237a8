"""nftables mode, compared with the nft program and the reference's tables; how its cost grows.

The reference's tables have the layout of v1.36: for each Service port a chain with one rule over an anonymous
map, an element in `service-ips` and one in `cluster-ips`. The listing of the table before each sync, which
the reference needs as well, is printed separately.
"""

import asyncio
import gc
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from bench import objects, rig
from kubeproxy.backends.nftables import names
from kubeproxy.backends.nftables.driver import NFTablesDriver
from kubeproxy.hub import Hub
from kubeproxy.model.node import LocalTraffic, NodeConfig
from kubeproxy.netlink.nft.kernel import NftKernel
from kubeproxy.netlink.nft.messages import NftMessage
from kubeproxy.reconcile.reconciler import Reconciler, Synced
from kubeproxy.sources.events import decode_event
from kubeproxy.sources.known import KnownObjects
from tests.lab import netns
from tests.machines import MACHINE

SERVICES, ENDPOINTS = 10_000, 10
OTHERS = ((5_000, 50), (44_000, 3))
MANY = 50_000
NODE = NodeConfig(
    name=objects.NODE,
    address="192.0.2.1",
    local_traffic=LocalTraffic("range", "10.128.0.0/9"),
    node_port_ranges=("192.0.2.1/32",),
    node_port_addresses=("192.0.2.1",),
)


def main(rounds: int) -> None:
    gc.set_threshold(50_000, 20, 100)  # as in the daemon
    firsts = [_first(SERVICES, ENDPOINTS) for _ in range(rounds)]
    _show_first(SERVICES, ENDPOINTS, firsts)
    for services, count in OTHERS:
        _show_first(services, count, [_first(services, count) for _ in range(min(rounds, 3))])
    theirs = _reference()
    ours = rig.median([first.total for first in firsts])
    rig.row("reference's tables by nft, first sync", f"{theirs.first:.2f} s", f"{theirs.first / ours:.0f} x")
    few, many = (asyncio.run(_change(count, ENDPOINTS if count == SERVICES else 3, 100)) for count in (SERVICES, MANY))  # fmt: skip
    rig.row("one endpoint replaced, event to committed, median", f"{1e3 * few.replaced:.2f} ms")
    _compare("  the same by nft", theirs.replaced, few.replaced)
    rig.row("one Service added, event to committed, median", f"{1e3 * few.added:.2f} ms")
    _compare("  the same by nft", theirs.added, few.added)
    _compare("  before either, the reference lists its table", theirs.listing, few.replaced)
    rig.row(f"one endpoint replaced among {MANY} Services", f"{1e3 * many.replaced:.2f} ms", f"{many.replaced / few.replaced:.2f} x")  # fmt: skip
    rig.row(f"one Service added to {MANY}", f"{1e3 * many.added:.2f} ms", f"{many.added / few.added:.2f} x")
    rig.row("nothing to do: full sync over what is right", f"{rig.median([f.again for f in firsts]):.2f} s")


def _compare(what: str, theirs: float, ours: float) -> None:
    rig.row(what, f"{1e3 * theirs:.0f} ms", f"{theirs / ours:.0f} x")


def _show_first(services: int, count: int, found: Sequence["First"]) -> None:
    total, kernel, processor = (rig.median(list(column)) for column in list(zip(*found, strict=True))[:3])
    rig.row(
        f"{services} Services x {count}, first byte of the lists to committed",
        f"{total:.2f} s",
        f"kernel {kernel:.2f} s",
        f"cpu {processor:.2f} s",
    )


class Timed(NftKernel):
    """A kernel that measures its commits.

    Attributes:
        seconds: the time in commits so far.
    """

    def __init__(self) -> None:
        super().__init__(MACHINE)
        self.seconds = 0.0

    def commit(self, messages: Sequence[NftMessage]) -> None:
        """See `NftKernel`."""
        started = time.perf_counter()
        try:
            super().commit(messages)
        finally:
            self.seconds += time.perf_counter() - started


class First(NamedTuple):
    """Seconds of a first sync, the kernel's part, the processor time of both, and another sync."""

    total: float
    kernel: float
    processor: float
    again: float


def _line(obj: dict[str, Any], kind: str = "ADDED") -> bytes:
    """An event of a watch."""
    return msgspec.json.encode({"type": kind, "object": obj})


class Daemon:
    """The parts of the daemon that handle watch events: decoding, the state, the control loop, the kernel."""

    def __init__(self, backend: NFTablesDriver) -> None:
        self.hub = Hub(objects.NODE)
        self.loop = Reconciler(self.hub.state, backend, NODE, min_sync_period=0.0)
        self._objects = {kind: KnownObjects(kind, self.hub) for kind in ("Service", "EndpointSlice")}
        self._done = asyncio.Event()
        self.loop.on_sync(self._synced)

    def _synced(self, _: Synced) -> None:
        self.at = time.perf_counter()
        self._done.set()

    def hear(self, kind: str, line: bytes) -> None:
        """Handles a line of a watch."""
        self._objects[kind].set(decode_event(line).object)

    async def committed(self) -> float:
        """Waits for the end of a sync; returns its time."""
        await asyncio.wait_for(self._done.wait(), 600)
        self._done.clear()
        return self.at


def _lists(services: int, count: int) -> list[tuple[str, bytes]]:
    return [(obj["kind"], _line(obj)) for obj in objects.cluster(services, count)]


def _first(services: int, count: int) -> First:
    lines = _lists(services, count)
    with rig.node() as node, netns.inside(node), Timed() as kernel:
        return asyncio.run(_first_sync(kernel, lines))


async def _first_sync(kernel: Timed, lines: list[tuple[str, bytes]]) -> First:
    daemon = Daemon(NFTablesDriver(kernel, NODE))
    started, before = time.perf_counter(), time.process_time()
    for kind, line in lines:
        daemon.hear(kind, line)
    task = asyncio.create_task(daemon.loop.run())
    total = await daemon.committed() - started
    spent, processor = kernel.seconds, time.process_time() - before
    gc.collect()
    started = time.perf_counter()
    daemon.loop.resync()
    again = await daemon.committed() - started
    task.cancel()
    return First(total, spent, processor, again)


class Changes(NamedTuple):
    """Median seconds from the bytes of an event until the change is in the kernel."""

    replaced: float
    added: float


async def _change(services: int, count: int, rounds: int) -> Changes:
    replaced, added = [], []
    lines = _lists(services, count)
    with rig.node() as node, netns.inside(node), NftKernel(MACHINE) as kernel:
        daemon = Daemon(NFTablesDriver(kernel, NODE))
        for kind, line in lines:
            daemon.hear(kind, line)
        task = asyncio.create_task(daemon.loop.run())
        await daemon.committed()
        daemon.hub.loops = [daemon.loop]
        gc.collect()
        gc.freeze()
        for number in range(rounds):
            i = number * 37 % services
            others = objects.endpoints(i, count)[1:]
            replaced.append(
                await _heard(daemon, "EndpointSlice", objects.slice_(i, [f"10.254.0.{number}", *others]))
            )
            new = services + number
            daemon.hear("EndpointSlice", _line(objects.slice_(new, objects.endpoints(new, count))))
            added.append(await _heard(daemon, "Service", objects.service(new)))
        task.cancel()
    gc.unfreeze()
    return Changes(rig.median(replaced), rig.median(added))


async def _heard(daemon: Daemon, kind: str, obj: dict[str, Any]) -> float:
    line = _line(obj, "MODIFIED")
    await asyncio.sleep(0.002)
    started = time.perf_counter()
    daemon.hear(kind, line)
    return await daemon.committed() - started


class Reference(NamedTuple):
    """Seconds that the nft program needs for the reference's tables."""

    first: float
    replaced: float
    added: float
    listing: float


def _reference() -> Reference:
    with rig.node() as node, netns.inside(node):
        first = rig.timed(lambda: _nft("\n".join(_tables(SERVICES, ENDPOINTS))))
        replaced = [_timed_nft(_rule(i, ["10.254.0.1", *objects.endpoints(i, ENDPOINTS)[1:]], flush=True)) for i in (7, 77, 777)]  # fmt: skip
        added = [_timed_nft("\n".join(_service(i, ENDPOINTS))) for i in range(SERVICES, SERVICES + 3)]
        command = ["nft", "--json", "list", "table", "ip", "kube-proxy"]
        listing = rig.timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
    return Reference(first, rig.median(replaced), rig.median(added), listing)


def _nft(text: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=text.encode(), check=True)


def _timed_nft(text: str) -> float:
    return rig.timed(lambda: _nft(text))


FRAME = """\
add table ip kube-proxy { comment "rules for kube-proxy" ; }
add set ip kube-proxy cluster-ips { type ipv4_addr ; }
add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }
add chain ip kube-proxy services
add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority -100 ; }
add chain ip kube-proxy nat-output { type nat hook output priority -100 ; }
add chain ip kube-proxy nat-postrouting { type nat hook postrouting priority 100 ; }
add rule ip kube-proxy nat-prerouting jump services
add rule ip kube-proxy nat-output jump services
add rule ip kube-proxy nat-postrouting meta mark & 0x4000 != 0 meta mark set meta mark ^ 0x4000 masquerade
fully-random add rule ip kube-proxy services ip daddr @cluster-ips ip saddr != 10.128.0.0/9 meta mark set meta
mark or 0x4000
add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips"""


def _tables(services: int, count: int) -> Iterator[str]:
    yield FRAME
    for i in range(services):
        yield from _service(i, count)


def _service(i: int, count: int) -> Iterator[str]:
    ip = objects.service(i)["spec"]["clusterIP"]
    yield f"add chain ip kube-proxy {_chain(i)}"
    yield _rule(i, objects.endpoints(i, count))
    yield f"add element ip kube-proxy cluster-ips {{ {ip} }}"
    yield f'add element ip kube-proxy service-ips {{ {ip} . tcp . 80 comment "default/svc-{i}:http" : goto {_chain(i)} }}'


def _chain(i: int) -> str:
    return f"service-{names.port(f'default/svc-{i}:http', 'TCP')}"


def _rule(i: int, addresses: Sequence[str], *, flush: bool = False) -> str:
    slots = ", ".join(f"{k} : {ip} . 8080" for k, ip in enumerate(addresses))
    rule = f"add rule ip kube-proxy {_chain(i)} meta l4proto tcp dnat ip addr . port to numgen random mod {len(addresses)} map {{ {slots} }}"
    return f"flush chain ip kube-proxy {_chain(i)}\n{rule}" if flush else rule
