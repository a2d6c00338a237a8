"""ipvs mode in a virtual machine: a start, one changed endpoint, and a minute without changes.

The start is compared with the system's programs restoring the same state. Everything is slower than on a real
processor, so only the ratios are meaningful; all figures are from one boot.
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import objects, rig
from kubeproxy.api.addresses import pack
from kubeproxy.netlink import ipvs
from tests.fakes.apiserver import FakeApiServer
from tests.lab import netns
from tests.machines import MACHINE
from tests.vm.__main__ import run
from tests.vm.machine import inside

SERVICES, ENDPOINTS = 5000, 3
FLAGS = ("--proxy-mode", "ipvs")
REST_SECONDS = 60.0


def main(rounds: int) -> None:
    if not inside():
        if code := run([sys.executable, "-m", "bench", "ipvs", "--rounds", str(rounds)]):
            raise SystemExit(code)
        return
    full = start(rounds)
    asyncio.run(_living(full, rounds))


def start(rounds: int) -> float:
    """Measures alternately a start until everything is in the kernel, and the system's programs.

    Returns the former.
    """
    ours, syncs, bare = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "cluster.json").write_bytes(objects.manifest(SERVICES, ENDPOINTS))
        for _ in range(rounds):
            with rig.node() as node:
                with rig.Proxy(node, *FLAGS, "-v=2", "--manifests", folder) as proxy:
                    ours.append(proxy.seconds)
                    syncs.append(_sync_seconds(proxy.log()))
                with netns.inside(node):
                    state = _saved()
            with rig.node() as node, netns.inside(node):
                bare.append(rig.timed(lambda: _restore(*state)))  # noqa: B023
    rig.row(f"{SERVICES} Services x {ENDPOINTS}, start to all in place", f"{rig.median(ours):.1f} s")
    rig.row("  of which the first sync", f"{rig.median(syncs):.1f} s")
    rig.row(
        "ipset restore, ipvsadm -R, ip -batch, iptables-restore of that",
        f"{rig.median(bare):.1f} s",
        f"{rig.median(bare) / rig.median(syncs):.1f} x as long",
    )
    return rig.median(syncs)


def _sync_seconds(log: str) -> float:
    """How long the first sync took, from the program's log."""
    line = next(line for line in log.splitlines() if "IPv4: full sync" in line)
    return float(line.split(" took ")[1].split()[0]) / 1e3


def _saved() -> tuple[str, str, str, str]:
    """The state in the format of each program."""
    shown = _output("ip", "-o", "-4", "address", "show", "dev", "kube-ipvs0")
    addresses = [line.split()[3] for line in shown.splitlines()]
    batch = ["link add kube-ipvs0 type dummy", *(f"address add {a} dev kube-ipvs0" for a in addresses)]
    return (
        _output("ipset", "save"),
        _output("ipvsadm", "-S", "-n"),
        "".join(f"{line}\n" for line in batch),
        _output("iptables-save"),
    )


def _restore(sets: str, servers: str, batch: str, rules: str) -> None:
    for command, given in (
        (["ipset", "restore"], sets),
        (["iptables-restore"], rules),
        (["ipvsadm", "-R"], servers),
        (["ip", "-batch", "-"], batch),
    ):
        subprocess.run(command, input=given, text=True, check=True, stdout=subprocess.DEVNULL)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


async def _living(full: float, rounds: int) -> None:
    """Adds and removes one endpoint, from the API server's event to the kernel.

    Then a minute without changes.
    """
    seconds = []
    with rig.node() as node:
        server = FakeApiServer()
        for obj in objects.cluster(SERVICES, ENDPOINTS):
            server.store.put(obj)
        addresses = [{"type": "InternalIP", "address": "192.0.2.1"}]
        server.store.put(
            {"kind": "Node", "metadata": {"name": objects.NODE}, "status": {"addresses": addresses}}
        )
        with netns.inside(node):
            await server.start()
            kernel = ipvs.IPVSSocket(MACHINE)
        proxy = rig.Proxy(node, *FLAGS, "--master", server.url)
        await asyncio.to_thread(proxy.__enter__)
        try:
            await asyncio.sleep(10)
            for number in range(2 * rounds):
                i = number * 37 % SERVICES
                virtual = ipvs.Virtual(ipvs.TCP, pack(objects.service(i)["spec"]["clusterIP"]), 80)
                endpoints = objects.endpoints(i, ENDPOINTS)
                for changed in ([*endpoints, "10.255.0.1"], endpoints):
                    started = time.perf_counter()
                    server.store.put(objects.slice_(i, changed))
                    await asyncio.to_thread(_until, kernel, virtual, len(changed))
                    seconds.append(time.perf_counter() - started)
                    await asyncio.sleep(1)
            rig.row(
                "one endpoint more or less, event to kernel",
                f"{1e3 * rig.median(seconds):.0f} ms",
                f"{full / rig.median(seconds):.0f} x faster",
            )
            before = proxy.processor_seconds()
            await asyncio.sleep(REST_SECONDS)
            rest = (proxy.processor_seconds() - before) * 60 / REST_SECONDS
            rig.row(
                "processor time of a minute at rest", f"{rest:.2f} s", f"{full / rest:.0f} x less than a sync"
            )
        finally:
            kernel.close()
            await asyncio.to_thread(proxy.__exit__)
            await server.stop()


def _until(kernel: ipvs.IPVSSocket, virtual: ipvs.Virtual, count: int) -> None:
    """Polls the kernel until a virtual server has so many real servers."""
    while len(kernel.reals(virtual)) != count:
        time.sleep(0.001)
