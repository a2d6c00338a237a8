"""ebpf mode, compared with direct connections, iptables mode and nftables mode, in the same run.

Each way has a node of its own, with a Pod that has the addresses of all endpoints of the Services that are
asked; all nodes serve 10,000 Services with 10 endpoints each at the same time, and the ways take turns.
Clients are processes of the node. In ebpf mode they are in a cgroup whose sockets are connected to endpoints.

A fill is the time from plans to maps: compiling, making maps, loading and attaching programs if needed. It is
measured apart, as is a change of one endpoint, from the plan to the last store.
"""

import contextlib
import errno
import gc
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace

from bench import objects, rig
from bench.connect import connections
from bench.nftables import NODE, _line
from kubeproxy.backends.base import Change
from kubeproxy.backends.ebpf import prepare
from kubeproxy.backends.ebpf.front import ConnectFront
from kubeproxy.hub import Hub
from kubeproxy.linux.bpf.host import BpfPlaces
from kubeproxy.model.node import ConnectSettings
from kubeproxy.model.plan import Key, ServicePlan
from kubeproxy.model.select import Endpoint
from kubeproxy.sources.events import decode_event
from kubeproxy.sources.known import KnownObjects
from tests.kernel import bpffs
from tests.lab import netns
from tests.machines import MACHINE

SERVICES, ENDPOINTS = 10_000, 10
FILLS = ((SERVICES, ENDPOINTS), (44_000, 3), (5_000, 50))
CHANGES = 2_000
TURNS, TIMES, REFUSALS = 100, 20, 5
PODS = tuple(f"10.200.0.{i}" for i in range(1, 1 + ENDPOINTS))
WEB, ECHO, DNS, EMPTY = (SERVICES + i for i in range(4))
CLOSING, ECHOING = 8080, 8081
_SERVER = f"""
import os, selectors, socket
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
wait = selectors.DefaultSelector()
closing = socket.create_server(("", {CLOSING}), backlog=4096)
echoing = socket.create_server(("", {ECHOING}), backlog=4096)
datagrams = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in {PODS}]
for each, address in zip(datagrams, {PODS}):
    each.bind((address, {CLOSING}))
closing.setblocking(False)
for each in echoing, *datagrams:
    wait.register(each, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in wait.select():
        if key.fileobj is echoing:
            connection = echoing.accept()[0]
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wait.register(connection, selectors.EVENT_READ)
        elif key.fileobj in datagrams:
            key.fileobj.sendto(*key.fileobj.recvfrom(99))
        elif data := key.fileobj.recv(99):
            try:
                while data == b"close":
                    closing.accept()[0].close()
            except BlockingIOError:
                pass
            key.fileobj.send(data)
        else:
            wait.unregister(key.fileobj)
            key.fileobj.close()
"""


Measure = Callable[[tuple[str, int]], list[float]]


class Client:
    """A process on a node, and in a cgroup, that connects when it is told to."""

    def __init__(self, node: str, places: BpfPlaces | None) -> None:
        fork = multiprocessing.get_context("fork")
        self._pipe, other = fork.Pipe()
        self._process = fork.Process(target=self._run, args=(node, places, other), daemon=True)
        self._process.start()

    @staticmethod
    def _run(node: str, places: BpfPlaces | None, pipe: Connection) -> None:
        """Both on the processor of the server: otherwise it matters most which processors they get."""
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        with contextlib.ExitStack() as stack:
            if places is not None:
                stack.enter_context(bpffs.inside(places))
            stack.enter_context(netns.inside(node))
            with contextlib.suppress(EOFError):
                while True:
                    name, address = pipe.recv()
                    pipe.send(MEASURES[name](address))

    def measure(self, name: str, address: tuple[str, int]) -> list[float]:
        """The seconds of each of some operations."""
        self._pipe.send((name, address))
        found: list[float] = self._pipe.recv()
        return found

    def close(self) -> None:
        """Ends the process."""
        self._process.terminate()
        self._process.join()


class Way(NamedTuple):
    """A node: its mode, a client on it, and the memory of the daemon in megabytes."""

    name: str
    client: Client
    megabytes: float = 0.0


MODES: dict[str, tuple[str, ...]] = {
    "iptables": ("--proxy-mode", "iptables"),
    "nftables": ("--proxy-mode", "nftables"),
    "ebpf": ("--proxy-mode", "ebpf", "--ebpf-strict"),
    "ebpf, no names": ("--proxy-mode", "ebpf", "--ebpf-strict", "--ebpf-peer-names=false"),
}


def main(rounds: int) -> None:
    gc.set_threshold(50_000, 20, 100)  # as in the daemon
    _traffic(rounds)
    for services, count in FILLS:
        _show_fills(services, count, rounds)


# Traffic


def _traffic(rounds: int) -> None:
    with _ways() as (bare, ways):
        rig.row("", *(way.name for way in ways))
        for what, name, front, pod in (
            ("new connection", "connections", (_ip(WEB), 80), (PODS[0], CLOSING)),
            ("round trip on an open connection", "round_trips", (_ip(ECHO), 80), (PODS[0], ECHOING)),
            ("datagram and answer, a socket each", "datagrams", (_ip(DNS), 80), (PODS[0], CLOSING)),
        ):
            _compare(what, name, front, pod, bare, ways, rounds)
        found: list[list[float]] = [[] for _ in ways]
        for _ in range(rounds):
            for way, seconds in zip(ways, found, strict=True):
                seconds.extend(way.client.measure("refusals", (_ip(EMPTY), 80)))
        rig.row("refused connection", *(f"{1e6 * rig.median(each):.1f} us" for each in found))
        rig.row("resident memory of the daemons", *(f"{way.megabytes:.0f} MB" for way in ways))


def _compare(
    what: str,
    name: str,
    front: tuple[str, int],
    pod: tuple[str, int],
    bare: Client,
    ways: Sequence[Way],
    rounds: int,
) -> None:
    """The ways take turns. Each front is compared with a direct connection on the same node in the same turn."""
    without: list[float] = []
    through: list[list[float]] = [[] for _ in ways]
    direct: list[list[float]] = [[] for _ in ways]
    more: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds * TURNS):
        without += bare.measure(name, pod)
        for way, *lists in zip(ways, through, direct, more, strict=True):
            one, other = way.client.measure(name, front), way.client.measure(name, pod)
            for each, seconds in zip(lists, (one, other, [rig.median(one) - rig.median(other)]), strict=True):
                each.extend(seconds)
    rig.row(f"{what}, without any rules", f"{1e6 * rig.median(without):.1f} us")
    rig.row("  through the Service", *(f"{1e6 * rig.median(each):.1f} us" for each in through))
    rig.row("  direct, on the same node", *(f"{1e6 * rig.median(each):.1f} us" for each in direct))
    rig.row("  the difference", *(f"{1e6 * rig.median(each):+.1f} us" for each in more))


@contextlib.contextmanager
def _ways() -> Iterator[tuple[Client, list[Way]]]:
    """A client on a node without rules, and one on a node of each mode."""
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(rig.path("legacy"))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        Path(folder, "cluster.json").write_bytes(objects.as_list(_cluster()))

        def client(node: str, places: BpfPlaces | None = None) -> Client:
            return stack.enter_context(contextlib.closing(Client(node, places)))

        def node() -> str:
            found = stack.enter_context(rig.node())
            stack.enter_context(rig.pod(found, PODS, _SERVER))
            # Connections are refused by ICMP messages, which are limited otherwise, and not sent on `lo`.
            netns.write_sysctls(found, {"net/ipv4/icmp_ratemask": "0"})
            netns.finish(netns.ip_batch("route replace default dev pod0 src 192.0.2.1", namespace=found))
            return found

        bare = client(node())
        ways = []
        for name, flags in MODES.items():
            places, more = None, list[str]()
            if "ebpf" in name:
                places = stack.enter_context(bpffs.places())
                more = ["--ebpf-cgroup", places.cgroup, "--ebpf-pins", places.pins]
            at = node()
            proxy = rig.Proxy(at, *flags, *more, "--manifests", folder, path=path)
            stack.enter_context(proxy)
            time.sleep(1)
            ways.append(Way(name, client(at, places), proxy.megabytes()[0]))
        yield bare, ways


def _cluster() -> list[dict[str, Any]]:
    """Many Services, and those that are asked."""
    found = objects.cluster(SERVICES, ENDPOINTS)
    found += [objects.service(i) for i in (WEB, ECHO, EMPTY)]
    dns = objects.service(DNS)
    dns["spec"]["ports"] = [{"name": "http", "protocol": "UDP", "port": 80, "targetPort": CLOSING}]
    for i, protocol, port in ((WEB, "TCP", CLOSING), (ECHO, "TCP", ECHOING), (DNS, "UDP", CLOSING)):
        slice_ = objects.slice_(i, list(PODS))
        slice_["ports"] = [{"name": "http", "protocol": protocol, "port": port}]
        found.append(slice_)
    return [*found, dns]


def _ip(i: int) -> str:
    return str(objects.service(i)["spec"]["clusterIP"])


def _connections(address: tuple[str, int]) -> list[float]:
    """The server closes them afterwards: it has the same processor."""
    found = connections(*address)
    with socket.create_connection((PODS[0], ECHOING)) as sock:
        sock.send(b"close")
        sock.recv(5)
    return found


def _round_trips(address: tuple[str, int]) -> list[float]:
    found = []
    with socket.create_connection(address) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.send(b"?")
        sock.recv(1)
        for _ in range(TIMES):
            started = time.perf_counter()
            sock.send(b"?")
            sock.recv(1)
            found.append(time.perf_counter() - started)
    return found


def _datagrams(address: tuple[str, int]) -> list[float]:
    found = []
    for _ in range(TIMES):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            started = time.perf_counter()
            sock.sendto(b"?", address)
            sock.recv(1)
            found.append(time.perf_counter() - started)
    return found


def _refused(address: tuple[str, int]) -> list[float]:
    """Few: a second each, where the ICMP message arrives while `connect` still holds the socket, which ignores it."""
    found = []
    for _ in range(REFUSALS):
        with socket.socket() as sock:
            started = time.perf_counter()
            result = sock.connect_ex(address)
            found.append(time.perf_counter() - started)
        assert result == errno.ECONNREFUSED, errno.errorcode.get(result)
    return found


MEASURES: dict[str, Measure] = {
    "connections": _connections,
    "round_trips": _round_trips,
    "datagrams": _datagrams,
    "refusals": _refused,
}


# Maps


class Cost(NamedTuple):
    """Seconds, and those of a processor."""

    seconds: float
    processor: float


class Filled(NamedTuple):
    """A fill, another one, and changes; megabytes of the maps in the kernel."""

    first: Cost
    again: Cost
    changed: list[float]
    megabytes: float


def _cost(work: Callable[[], object]) -> Cost:
    before = time.process_time()
    seconds = rig.timed(work)
    return Cost(seconds, time.process_time() - before)


def _show_fills(services: int, count: int, rounds: int) -> None:
    found = [_fill(services, count) for _ in range(rounds)]
    changed = [seconds for each in found for seconds in each.changed]
    _show(f"{services} Services x {count}: first fill", [each.first for each in found])
    _show("  another one, nothing differs", [each.again for each in found])
    change = "  one endpoint is replaced, from the plan to the last store"
    rig.row(change, f"{1e6 * rig.median(changed):.1f} us")
    rig.row("  memory of the maps in the kernel", f"{found[0].megabytes:.1f} MB")


def _show(what: str, costs: Sequence[Cost]) -> None:
    seconds, processor = (rig.median(list(column)) for column in zip(*costs, strict=True))
    rig.row(what, f"{seconds:.2f} s", f"cpu {processor:.2f} s")


def _fill(services: int, count: int) -> Filled:
    plans = _plans(services, count)
    with bpffs.places() as places:
        connects = ConnectSettings(everywhere=True, cgroup=places.cgroup, pins=places.pins)
        node = replace(NODE, connects=connects)
        with contextlib.closing(prepare.open_front(MACHINE, node)) as front:
            gc.collect()
            first = _cost(lambda: front.load(node, plans))
            again = _cost(lambda: front.load(node, plans))
            gc.collect()
            gc.freeze()
            changed = _changes(front, plans)
            gc.unfreeze()
            return Filled(first, again, changed, _kernel_megabytes())


def _plans(services: int, count: int) -> dict[Key, ServicePlan]:
    hub = Hub(objects.NODE)
    known = {kind: KnownObjects(kind, hub) for kind in ("Service", "EndpointSlice")}
    for obj in objects.cluster(services, count):
        known[obj["kind"]].set(decode_event(_line(obj)).object)
    planned = {key: hub.state.plan(key, NODE) for key in hub.state.services}
    return {key: plan for key, plan in planned.items() if plan is not None}


def _changes(front: ConnectFront, plans: dict[Key, ServicePlan]) -> list[float]:
    """One endpoint of one Service after the other is replaced."""
    found = []
    new = Endpoint("10.254.0.1", 8080)
    for key in list(plans)[:CHANGES]:
        port = plans[key].ports[0]
        ends = [Endpoint(each.address, each.port) for each in port.cluster]
        after = replace(plans[key], ports=(replace(port, cluster=(*ends[:-1], new)),))
        changes = [Change(key, plans[key], after)]
        started = time.perf_counter()
        front.apply(changes)
        found.append(time.perf_counter() - started)
    return found


def _kernel_megabytes() -> float:
    """The memory of all maps that this process has open."""
    found = 0
    for info in Path("/proc/self/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            lines = dict(each.split(":", 1) for each in info.read_text().splitlines() if ":" in each)
            if "map_type" in lines:
                found += int(lines["memlock"])
    return found / 2**20
