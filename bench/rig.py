"""A node that is only a network namespace, kube-proxy on it, and its cost."""

import contextlib
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

from bench.objects import NODE
from kubeproxy.linux import xtables
from kubeproxy.netlink.nft.kernel import generation
from tests.lab import netns
from tests.machines import MACHINE

FLAGS = ("--hostname-override", NODE, "--bind-address", "192.0.2.1", "--cluster-cidr", "10.128.0.0/9")
VARIANTS = {"legacy": "xtables-legacy-multi", "nf_tables": "xtables-nft-multi"}


@contextlib.contextmanager
def node() -> Iterator[str]:
    """A network namespace with an address and a default route, for a node."""
    name = f"{netns.unique_prefix()}bench"
    netns.create([name])
    try:
        lines = (
            "link set lo up",
            "address add 192.0.2.1/32 dev lo",
            "route add default dev lo src 192.0.2.1",
        )
        netns.finish(netns.ip_batch(*lines, namespace=name))
        yield name
    finally:
        netns.delete([name])


@contextlib.contextmanager
def pod(node: str, addresses: Sequence[str], program: str) -> Iterator[None]:
    """A Pod on a node, with some addresses and a program in Python that prints a line when it is ready."""
    name = f"{netns.unique_prefix()}pod"
    netns.create([name])
    try:
        lines = [f"link add pod0 type veth peer name eth0 netns {name}", "link set pod0 up"]
        lines += [f"route add {address} dev pod0" for address in addresses]
        netns.finish(netns.ip_batch(*lines, namespace=node))
        lines = ["link set eth0 up", *(f"address add {address}/32 dev eth0" for address in addresses)]
        netns.finish(netns.ip_batch(*lines, "route add default dev eth0", namespace=name))
        with netns.inside(name):
            server = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert server.stdout is not None
        server.stdout.readline()
        try:
            yield
        finally:
            server.kill()
            server.communicate()
    finally:
        netns.delete([name])


@contextlib.contextmanager
def path(variant: str) -> Iterator[str]:
    """A PATH with the iptables programs of one variant."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        multi = Path("/usr/sbin", VARIANTS[variant])
        if not multi.exists():
            raise SystemExit(f"{multi} is missing: apt-get install iptables")
        for base in ("iptables", "ip6tables"):
            for suffix in ("", "-save", "-restore"):
                Path(folder, base + suffix).symlink_to(multi)
        yield f"{folder}:{os.environ['PATH']}"


class Proxy:
    """kube-proxy on a node, from its start until it is ready; for a `with` block."""

    def __init__(self, node: str, *flags: str, path: str = os.environ["PATH"], timeout: float = 600) -> None:
        self._node, self._flags, self._path, self._timeout = node, flags, path, timeout

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        address = str(Path(self._folder.name, "notify"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(address)
            manager.settimeout(self._timeout)
            environment = {
                "PATH": self._path,
                "NOTIFY_SOCKET": address,
                "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            }
            command = [sys.executable, "-m", "kubeproxy", *FLAGS, *self._flags]
            with Path(self._folder.name, "log").open("wb") as log, netns.inside(self._node):
                started = time.perf_counter()
                self.process = subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            if manager.recv(100) != b"READY=1":
                raise SystemExit(f"kube-proxy did not start:\n{self.log()}")
        self.seconds = time.perf_counter() - started
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)
        self._folder.cleanup()

    def log(self) -> str:
        """Its log."""
        return Path(self._folder.name, "log").read_text()

    def processor_seconds(self) -> float:
        """Processor time so far, of the process and of the programs that it ran."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def megabytes(self) -> tuple[float, float]:
        """Resident memory now, and the peak."""
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        )
        return int(status["VmRSS"].split()[0]) / 1024, int(status["VmHWM"].split()[0]) / 1024


def fingerprint(variant: str) -> Callable[[], object]:
    """A value that changes with any rule in the kernel."""
    return (
        (lambda: generation(MACHINE))
        if variant == "nf_tables"
        else lambda: xtables.table_size(MACHINE, 2, "nat")
    )


class Watcher(threading.Thread):
    """Polls the kernel until its rules have changed."""

    def __init__(self, node: str, look: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._node, self._look = node, look
        self._ready = threading.Event()
        self.start()
        self._ready.wait()

    def run(self) -> None:
        with netns.inside(self._node):
            first = self._look()
            self._ready.set()
            while self._look() == first:
                time.sleep(0.0002)
            self.at = time.perf_counter()

    def wait(self) -> float:
        """Waits for the change; returns its time."""
        self.join(60)
        return self.at


def timed(work: Callable[[], object]) -> float:
    """The seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def kernel_memory() -> int:
    """Bytes of the kernel in slabs and for each processor."""
    text = Path("/proc/meminfo").read_text()
    return 1024 * sum(int(found) for found in re.findall(r"^(?:Slab|Percpu): +(\d+)", text, re.MULTILINE))


def row(what: str, *cells: str) -> None:
    """One line of results."""
    print(f"  {what:58}{''.join(f'{cell:>16}' for cell in cells)}", flush=True)
