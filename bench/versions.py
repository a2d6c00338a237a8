"""This tree and another commit, in turn: what a start and a change take, memory, and an idle minute.

For every mode, with a cluster of 10,000 Services x 10 endpoints behind an API server in a process of its own
(ipvs mode in a virtual machine, with 1,000, and one round: its processor is emulated):

start      from the start of the program to READY, and its processor time until then
change     one endpoint added at the API server until the kernel's rules change (userspace and ipvs mode: until
           the sync is logged); the median of some
resident   memory when the program is ready and these changes are done
idle       resident memory with an empty cluster, and processor time of a quiet minute
IPv6       syncs of IPv6 that these changes of IPv4 EndpointSlices caused

The commit is checked out beside this tree: `python -m bench.versions COMMIT [MODE ...]`.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from bench import pace, rig
from tests.vm.__main__ import run
from tests.vm.machine import inside

SERVICES, ENDPOINTS = (1_000, 10) if inside() else (10_000, 10)
CHANGES = 11
QUIET_SECONDS = 60
ROUNDS = 1 if inside() else 3
Measured = TypeVar("Measured")
IPVS = pace.Way("ipvs mode", "ipvs", "nf_tables")
WAYS = (IPVS,) if inside() else (*pace.WAYS, pace.Way("userspace mode", "userspace", "nf_tables"))


class Figures(NamedTuple):
    """Of one run."""

    start: float
    processor: float
    change: float
    resident: float
    ipv6: int


class Idle(NamedTuple):
    """Of one run with an empty cluster."""

    resident: float
    processor: float


def main(commit: str, words: list[str]) -> None:
    here = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        other = Path(folder, "tree")
        subprocess.run(["git", "-C", here, "worktree", "add", "-q", "--detach", other, commit], check=True)
        try:
            trees = {commit[:10]: other, "this tree": here}
            print(f"{SERVICES} x {ENDPOINTS}, medians of {ROUNDS}")
            for way in WAYS:
                if not words or way.mode in words:
                    _show(way, trees)
        finally:
            subprocess.run(["git", "-C", here, "worktree", "remove", "--force", other], check=True)
    if not inside() and (not words or IPVS.mode in words):
        run([sys.executable, "-m", "bench.versions", commit])


def _show(way: pace.Way, trees: dict[str, Path]) -> None:
    found: dict[str, list[Figures]] = {name: [] for name in trees}
    idle: dict[str, list[Idle]] = {name: [] for name in trees}
    for _ in range(ROUNDS):
        for name, tree in trees.items():
            found[name].append(_in(tree, lambda: _figures(way)))
    for name, tree in trees.items():
        idle[name].append(_in(tree, lambda: _idle(way)))
    rig.row(way.name, *trees, "ratio")

    def row(what: str, unit: str, values: Callable[[str], list[float]], digits: int = 3) -> None:
        before, after = (rig.median(values(name)) for name in trees)
        ratio = f"{after / before:.2f}" if before else "-"
        rig.row(f"  {what}", f"{before:.{digits}f} {unit}", f"{after:.{digits}f} {unit}", ratio)

    row("start to READY", "s", lambda name: [f.start for f in found[name]])
    row("start to READY, processor time", "s", lambda name: [f.processor for f in found[name]])
    row("one change", "ms", lambda name: [1e3 * f.change for f in found[name]], 1)
    row("resident, full", "MB", lambda name: [f.resident for f in found[name]], 1)
    row("IPv6 syncs by IPv4 changes", "", lambda name: [float(f.ipv6) for f in found[name]], 0)
    row("resident, idle", "MB", lambda name: [i.resident for i in idle[name]], 1)
    row(
        f"processor, idle for {QUIET_SECONDS} s",
        "ms",
        lambda name: [1e3 * i.processor for i in idle[name]],
        0,
    )


def _in(tree: Path, measure: Callable[[], Measured]) -> Measured:
    """Measures the program of a tree."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(tree / "src")
    try:
        return measure()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _figures(way: pace.Way) -> Figures:
    with (
        rig.node() as node,
        rig.path(way.variant) as path,
        pace.server(node, SERVICES, ENDPOINTS) as port,
        rig.Proxy(node, *_flags(way, port), path=path) as proxy,
    ):
        processor = proxy.processor_seconds()
        time.sleep(1)
        syncs = _ipv6_syncs(proxy)
        change = pace.Changer(node, _look(way, proxy), port, SERVICES, ENDPOINTS)
        seconds = [change() for _ in range(CHANGES)]
        return Figures(
            proxy.seconds,
            processor,
            rig.median(seconds),
            proxy.megabytes()[0],
            _ipv6_syncs(proxy) - syncs,
        )


def _idle(way: pace.Way) -> Idle:
    with (
        rig.node() as node,
        rig.path(way.variant) as path,
        pace.server(node, 0, 0) as port,
        rig.Proxy(node, *_flags(way, port), path=path) as proxy,
    ):
        time.sleep(5)
        before = proxy.processor_seconds()
        time.sleep(QUIET_SECONDS)
        return Idle(proxy.megabytes()[0], proxy.processor_seconds() - before)


def _flags(way: pace.Way, port: int) -> tuple[str, ...]:
    return "--master", f"http://127.0.0.1:{port}", "--proxy-mode", way.mode, "-v", "3"


def _look(way: pace.Way, proxy: rig.Proxy) -> Callable[[], object]:
    """A value that differs after a change; the endpoints of some modes are not in the rules."""
    return _syncs_of(proxy) if way.mode in {"userspace", "ipvs"} else rig.fingerprint(way.variant)


def _syncs_of(proxy: rig.Proxy) -> Callable[[], object]:
    return lambda: proxy.log().count("IPv4: partial sync of")


def _ipv6_syncs(proxy: rig.Proxy) -> int:
    return len(re.findall(r"IPv6: \w+ sync of", proxy.log()))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2:])
