"""Weights and Maglev hashing in nftables mode, compared with equal shares at random.

A new connection is measured as in `connect`, to three Services with the same ten endpoints by turns. Then
1,000 Services with ten endpoints are written, and one endpoint of a Service with a hundred is replaced.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bench import objects, rig
from bench.connect import CONNECTIONS, POD, PORT, TURNS, connections, node_and_pod
from kubeproxy.api import types
from kubeproxy.backends.nftables.driver import NFTablesDriver
from kubeproxy.backends.nftables.mode import MODE
from kubeproxy.model import maglev
from kubeproxy.model.node import NodeConfig
from kubeproxy.netlink.nft.kernel import NftKernel
from tests.fakes.cluster import Proxy
from tests.lab import netns
from tests.machines import MACHINE

SERVICES, ENDPOINTS, LARGE = 1_000, 10, 100
CHANGES = 100
KINDS: dict[str, dict[str, str]] = {
    "random": {},
    "weights": {"kube-proxy/weights": "zone:zone-0=3"},
    "maglev": {"kube-proxy/balancing": "maglev"},
    "maglev, address and port": {
        "kube-proxy/balancing": "maglev",
        "kube-proxy/maglev-hash": "source-and-port",
    },
    "maglev, 4,093 slots": {"kube-proxy/balancing": "maglev", "kube-proxy/maglev-table-size": "4093"},
}
NODE = NodeConfig(name=objects.NODE, address="192.0.2.1", balancing=MODE.balancing)


def main(rounds: int) -> None:
    found = _connections(rounds)
    usual = rig.median(found["random"])
    for kind, seconds in found.items():
        middle = rig.median(seconds)
        rig.row(f"a new connection, {kind}", f"{1e6 * middle:.1f} us", f"{middle / usual:.2f} x")
    for kind in KINDS:
        filled = [_fill(kind) for _ in range(min(rounds, 3))]
        rig.row(
            f"{SERVICES} Services with {ENDPOINTS} endpoints, {kind}",
            f"{rig.median([each.seconds for each in filled]):.2f} s",
            f"{rig.median([each.processor for each in filled]):.2f} s CPU",
            f"{rig.median([each.memory for each in filled]) / 2**20:.0f} MB kernel",
        )
    for kind in KINDS:
        rig.row(f"one endpoint of {LARGE} replaced, {kind}", f"{1e3 * _change(kind):.2f} ms")


def _service(i: int, kind: str) -> dict[str, Any]:
    made = objects.service(i)
    made["metadata"]["annotations"] = KINDS[kind]
    return made


def _slice(i: int, addresses: list[str]) -> types.EndpointSlice:
    return msgspec.convert(objects.slice_(i, addresses), types.EndpointSlice)


def _connections(rounds: int) -> dict[str, list[float]]:
    """Seconds of connections to a Service of each kind, by turns."""
    pods = [POD, *(f"10.128.0.{2 + number}" for number in range(1, ENDPOINTS))]
    items = [made for i, kind in enumerate(KINDS) for made in (_service(i, kind), objects.slice_(i, pods))]
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder, node_and_pod(*pods[1:]) as node:
        Path(folder, "cluster.json").write_text(
            json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        )
        with rig.Proxy(node, "--proxy-mode", "nftables", "--manifests", folder), netns.inside(node):
            for turn in range(rounds * TURNS):
                for number in range(len(KINDS)):
                    at = (number + turn) % len(KINDS)  # the first of a turn is not always the same
                    address = items[2 * at]["spec"]["clusterIP"]
                    found[list(KINDS)[at]].extend(connections(address, PORT_OF_SERVICE))
    assert all(len(seconds) == rounds * TURNS * CONNECTIONS for seconds in found.values())
    return found


PORT_OF_SERVICE = 80
assert PORT == 8080  # the port of the endpoints in `objects`


class Filled(NamedTuple):
    """The seconds of a first sync, those of a processor for it, and the bytes in the kernel after it."""

    seconds: float
    processor: float
    memory: int


def _in_node(work: Callable[[Proxy], Any]) -> Any:
    """Does something with a proxy in a new namespace."""
    with rig.node() as node, netns.inside(node), NftKernel(MACHINE) as kernel:
        return work(Proxy(NFTablesDriver(kernel, NODE), NODE))


def _told(proxy: Proxy, services: int, endpoints: int, kind: str) -> None:
    for i in range(services):
        proxy.tell(
            msgspec.convert(_service(i, kind), types.Service), _slice(i, objects.endpoints(i, endpoints))
        )


def _fill(kind: str) -> Filled:
    def work(proxy: Proxy) -> Filled:
        _told(proxy, SERVICES, ENDPOINTS, kind)
        plans = proxy.plans()
        maglev.table.cache_clear()
        before = rig.kernel_memory()
        used = time.process_time()
        seconds = rig.timed(lambda: proxy.backend.load_blocking(NODE, plans))  # type: ignore[attr-defined]
        return Filled(seconds, time.process_time() - used, rig.kernel_memory() - before)

    filled: Filled = _in_node(work)
    return filled


def _change(kind: str) -> float:
    """Median seconds from an EndpointSlice to the end of the sync."""

    def work(proxy: Proxy) -> float:
        _told(proxy, 1, LARGE, kind)
        assert not proxy.full()
        seconds = []
        for number in range(CHANGES):
            them = objects.endpoints(0, LARGE)
            them[number % LARGE] = objects.address(50_000 + number)
            changed = _slice(0, them)
            started = time.perf_counter()
            proxy.tell(changed)
            proxy.partial()
            seconds.append(time.perf_counter() - started)
        return rig.median(seconds)

    middle: float = _in_node(work)
    return middle
