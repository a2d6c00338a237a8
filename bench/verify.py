"""`verify`, `plan` and `doctor` among 10,000 Services with 10 endpoints each, on a node that holds their rules.

The command is timed from its start to its end, with the reading of the manifests. `verify --against reference` evaluates rules of
iptables mode, which are the reference's.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import objects, rig
from tests.lab import netns

SERVICES, ENDPOINTS = 10_000, 10


def main(rounds: int) -> None:
    cluster = [objects.service(i) for i in range(SERVICES)]
    cluster += [objects.slice_(i, objects.endpoints(i, ENDPOINTS)) for i in range(SERVICES)]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as changed:
        Path(folder, "cluster.json").write_text(_list(cluster))
        cluster[SERVICES // 2] = objects.service(SERVICES)
        Path(changed, "cluster.json").write_text(_list(cluster))
        for mode, variant in (("nftables", "nf_tables"), ("iptables", "nf_tables")):
            _mode(mode, variant, rounds, folder, changed)


def _mode(mode: str, variant: str, rounds: int, folder: str, changed: str) -> None:
    with rig.node() as node, rig.path(variant) as path:
        with rig.Proxy(node, "--proxy-mode", mode, "--manifests", folder, path=path):
            pass
        questions: list[tuple[str, int, tuple[str, ...], str]] = [
            ("verify, nothing differs", 0, ("verify",), folder),
            ("plan, one Service leaves and another comes", 2, ("plan",), changed),
            ("doctor, without connecting", 2, ("doctor", "--no-connect"), folder),
            ("doctor, with connections to 256 endpoints", 2, ("doctor",), folder),
        ]
        if mode == "iptables":
            questions.append(("verify --against reference", 0, ("verify", "--against", "reference"), folder))
        with netns.inside(node):
            if mode == "iptables":  # most of the time of the commands
                save = ("iptables-save",)
                environment = {**os.environ, "PATH": path}
                taken = rig.timed(
                    lambda: subprocess.run(save, env=environment, stdout=subprocess.DEVNULL, check=True)
                )
                rig.row("iptables mode: iptables-save alone", f"{taken:.1f} s")
            for what, status, command, manifests in questions:
                arguments = (*command, "--json", "--proxy-mode", mode, "--manifests", manifests, *rig.FLAGS)
                times = [rig.timed(lambda: _run(status, path, *arguments)) for _ in range(rounds)]  # noqa: B023
                rig.row(f"{mode} mode: {what}", f"{rig.median(times):.1f} s")


def _run(status: int, path: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kubeproxy", *arguments],
        check=False, capture_output=True, text=True, env={**os.environ, "PATH": path},
    )  # fmt: skip
    if done.returncode != status:
        raise SystemExit(f"{arguments[0]} failed ({done.returncode}):\n{done.stdout[-2000:]}\n{done.stderr}")


def _list(items: list[dict[str, object]]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
