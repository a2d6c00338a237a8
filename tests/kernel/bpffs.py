"""A BPF file system and a cgroup of a test's own: nothing of the host is attached to."""

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeproxy.linux.bpf.host import BpfPlaces
from tests.lab.netns import PREFIX, owner_lives, unique_prefix
from tests.vm.machine import inside as inside_machine

_DETACH = 2
_MOUNTS = "bpffs-"


def _cgroups() -> Path:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split(" ")
        if kind == "cgroup2":
            return Path(where)
    if inside_machine():  # which mounts none when it starts
        where = "/sys/fs/cgroup"
        subprocess.run(["mount", "-t", "cgroup2", "cgroups", where], check=True)
        return Path(where)
    pytest.fail("these tests need a mount of cgroup version 2", pytrace=False)


@contextmanager
def places() -> Iterator[BpfPlaces]:
    """Places for programs and pins, removed at the end; so are those of runs that were killed."""
    _sweep()
    name = unique_prefix().rstrip("-")
    cgroup, folder = _cgroups() / name, _folder() / f"{_MOUNTS}{name}"
    folder.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(folder)], check=True)
    try:
        cgroup.mkdir()
        yield BpfPlaces(str(cgroup), f"{folder}/kube-proxy")
    finally:
        _remove(folder, cgroup)


def _sweep() -> None:
    """Removes what is left of runs whose processes do not exist any more. Others may do this at the same time."""
    for folder in _folder().glob(f"{_MOUNTS}{PREFIX}*"):
        name = folder.name.removeprefix(_MOUNTS)
        if not owner_lives(name):
            _remove(folder, _cgroups() / name)


def _remove(folder: Path, cgroup: Path) -> None:
    ctypes.CDLL(None).umount2(os.fsencode(folder), _DETACH)
    with suppress(OSError):
        folder.rmdir()
    home = _cgroups() / "cgroup.procs"
    with suppress(OSError):
        for process in (cgroup / "cgroup.procs").read_text().split():
            home.write_text(process)
        cgroup.rmdir()


def _folder() -> Path:
    return Path(tempfile.gettempdir())


@contextmanager
def inside(where: BpfPlaces) -> Iterator[None]:
    """This process is in the cgroup until the block ends."""
    path = next(
        line[3:].strip()
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if line.startswith("0:")
    )
    home = Path(f"{_cgroups()}{path.removeprefix(':')}", "cgroup.procs")
    Path(where.cgroup, "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        home.write_text(str(os.getpid()))


def configure(file: Path, where: BpfPlaces, **settings: Any) -> None:
    """Puts places and settings of ebpf mode into a configuration file."""
    config = yaml.safe_load(file.read_text())
    config["ebpf"] = {**settings, "cgroup": where.cgroup, "pins": where.pins}
    file.write_text(yaml.safe_dump(config))
