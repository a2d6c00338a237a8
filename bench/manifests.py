"""Manifests: the time to read 10,000 Services and their EndpointSlices from one file and to decode them.

It is compared with PyYAML's loader in C or the json module, which only parse values and check no limits, on
the same file in the same run.
"""

import gc
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from bench import objects, rig
from kubeproxy.sources.documents import documents

SERVICES, ENDPOINTS = 10_000, 3


def main(rounds: int) -> None:
    trees = [
        tree
        for i in range(SERVICES)
        for tree in (objects.service(i), objects.slice_(i, objects.endpoints(i, ENDPOINTS)))
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "manifest.yaml"
        file.write_text(yaml.dump_all(trees, Dumper=yaml.CSafeDumper))
        _compare("YAML", file, _plain_yaml, rounds)
        file = file.with_suffix(".json")
        file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": trees}))
        _compare("JSON", file, lambda file: json.loads(file.read_bytes()), rounds)


def _compare(what: str, file: Path, plain: Callable[[Path], object], rounds: int) -> None:
    ours, other = [], []
    for _ in range(rounds):
        ours.append(_seconds(_read, file))
        other.append(_seconds(plain, file))
    one, two = rig.median(ours), rig.median(other)
    size = file.stat().st_size / 1e6
    rig.row(
        f"{SERVICES} Services, {what}, {size:.0f} MB",
        f"{one:.2f} s",
        f"plain {two:.2f} s",
        f"{one / two:.2f} x",
    )


def _plain_yaml(file: Path) -> None:
    for _ in yaml.load_all(file.read_bytes(), Loader=yaml.CSafeLoader):
        pass


def _read(file: Path) -> None:
    for _, make in documents(file):
        make()


def _seconds(read: Callable[[Path], object], file: Path) -> float:
    gc.collect()
    begun = time.process_time()
    read(file)
    return time.process_time() - begun
