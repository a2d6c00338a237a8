"""The duration of a start and the delay of changes, with an API server in a separate process.

start    from the start of the program to READY
first    one endpoint replaced as soon as the program is ready: from the write at the API server until the
kernel's rules change later    more changes, each written when the previous one is in the kernel flush    the
rules are flushed: until they are restored, and the first change after that (if the kernel reports a flush)
"""

import contextlib
import http.client
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench import objects, rig
from tests.lab import netns

SIZES = ((3_000, 5), (5_000, 10))
LATER = 15
_NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": objects.NODE},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
}


class Way(NamedTuple):
    """A mode, with one variant of the programs if it needs them."""

    name: str
    mode: str
    variant: str


WAYS = (
    Way("nftables mode", "nftables", "nf_tables"),
    Way("iptables mode, nf_tables programs", "iptables", "nf_tables"),
    Way("iptables mode, legacy programs", "iptables", "legacy"),
)


class Found(NamedTuple):
    """Seconds of one start and the changes after it.

    Those of a flush are 0 if the kernel does not report one.
    """

    start: float
    first: float
    later: list[float]
    restored: float
    after: float


def main(rounds: int) -> None:
    for services, count in SIZES:
        for way in WAYS:
            found = [measure(way, services, count) for _ in range(rounds)]
            show(f"{way.name}, {services} x {count}", found)


def show(title: str, found: list[Found]) -> None:
    """Prints the medians of several starts."""

    def seconds(what: str, values: list[float], *more: str) -> None:
        rig.row(f"{title}: {what}", f"{rig.median(values):.3f} s", *more)

    seconds("start to READY", [f.start for f in found])
    firsts = [f.first for f in found]
    seconds("first change after READY", firsts, f"most {max(firsts):.3f} s")
    later = [seconds for f in found for seconds in f.later]
    seconds("changes one after another", later, f"most {max(later):.3f} s")
    if found[0].restored:
        seconds("flush to all restored", [f.restored for f in found])
        seconds("first change after that", [f.after for f in found])


def measure(way: Way, services: int, count: int) -> Found:
    """Measures one start and the changes after it."""
    with rig.node() as node, rig.path(way.variant) as path, server(node, services, count) as port:
        flags = ("--master", f"http://127.0.0.1:{port}", "--proxy-mode", way.mode, "-v", "3")
        with rig.Proxy(node, *flags, path=path) as proxy:
            change = Changer(node, rig.fingerprint(way.variant), port, services, count)
            first = change()
            later = [change() for _ in range(LATER)]
            if way.variant == "legacy":
                return Found(proxy.seconds, first, later, 0.0, 0.0)
            syncs = full_syncs(proxy)
            with netns.inside(node):
                flushed = time.perf_counter()
                subprocess.run(["nft", "flush", "ruleset"], check=True)
            while full_syncs(proxy) == syncs:
                time.sleep(0.005)
            restored = time.perf_counter() - flushed
            return Found(proxy.seconds, first, later, restored, change())


def full_syncs(proxy: rig.Proxy) -> int:
    """The number of full syncs of IPv4, from the log."""
    return proxy.log().count("IPv4: full sync of")


class Changer:
    """Replaces an endpoint of one Service after another."""

    def __init__(self, node: str, look: Callable[[], object], port: int, services: int, count: int) -> None:
        """Changes nothing yet.

        Args:
            node: the network namespace of the node.
            look: a value that differs once a change is made.
            port: that of the API server.
            services: how many there are.
            count: the endpoints of each.
        """
        self._node, self._port, self._services, self._count = node, port, services, count
        self._look = look
        self._done = 0

    def __call__(self) -> float:
        """Makes one change; returns the seconds until it is in the kernel."""
        self._done += 1
        i = self._done * 37 % self._services
        # Adds an endpoint, so that the size of a legacy table changes.
        addresses = [*objects.endpoints(i, self._count), f"10.255.0.{self._done}"]
        slice_ = objects.slice_(i, addresses)
        path = f"/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/{slice_['metadata']['name']}"
        with netns.inside(self._node):
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
            connection.connect()
            seen = rig.Watcher(self._node, self._look)
            started = time.perf_counter()
            connection.request("PUT", path, msgspec.json.encode(slice_))
            status = connection.getresponse().status
            connection.close()
        if status != http.client.OK:
            raise SystemExit(f"the API server answered {status}")
        return seen.wait() - started


@contextlib.contextmanager
def server(node: str, services: int, count: int) -> Iterator[int]:
    """An API server on a node, with a cluster of this size; yields its port."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        file = Path(folder, "cluster.json")
        file.write_bytes(objects.as_list([_NODE, *objects.cluster(services, count)]))
        command = [sys.executable, "-m", "tests.fakes.apiserver", "--port", "0", "--objects", str(file)]
        with (
            netns.inside(node),
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process,
        ):
            try:
                assert process.stdout is not None
                yield int(process.stdout.readline().rpartition(":")[2])
            finally:
                process.kill()


if __name__ == "__main__":
    size = tuple(map(int, sys.argv[1:3])) or SIZES[0]
    for each in WAYS:
        if not sys.argv[3:] or any(word in each.name for word in sys.argv[3:]):
            show(each.name, [measure(each, *size) for _ in range(3)])
