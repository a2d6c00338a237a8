"""Objects by names in a BPF file system, where they stay when the process ends; and links to a cgroup.

A name is replaced at once: the object gets another name first, which is then renamed.
"""

import contextlib
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from kubeproxy.linux.bpf import syscall
from kubeproxy.linux.bpf.maps import BpfObject
from kubeproxy.linux.bpf.programs import ATTACH, Attach

_NEW: Final = "_new"
"""Names with dots are refused."""

_MAPS: Final = 64


class PinFolder:
    """A folder of a BPF file system."""

    def __init__(self, path: Path) -> None:
        """Nothing is done before the first call."""
        self.path = path

    def get(self, name: str) -> BpfObject | None:
        """The object with a name; None if there is none.

        Raises:
            OSError: it may not be opened.
        """
        try:
            return BpfObject(syscall.get(str(self.path / name)))
        except FileNotFoundError:
            return None

    def put(self, name: str, item: BpfObject) -> None:
        """Gives an object a name, which another one may have had.

        Raises:
            OSError: the folder is not in a BPF file system, or may not be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        new = self.path / (name + _NEW)
        new.unlink(missing_ok=True)
        syscall.pin(item.fd, str(new))
        new.rename(self.path / name)

    def names(self) -> list[str]:
        """The names there are; none if there is no such folder."""
        try:
            return sorted(each.name for each in self.path.iterdir())
        except FileNotFoundError:
            return []

    def remove(self, name: str) -> None:
        """Removes a name, if it is there. A link without a name and a descriptor is detached."""
        (self.path / name).unlink(missing_ok=True)

    def clear(self) -> bool:
        """Removes all names and the folder; returns whether it was there."""
        names = self.names()
        for name in names:
            self.remove(name)
        with contextlib.suppress(FileNotFoundError):
            self.path.rmdir()
            return True
        return False


class LoadedProgram(Struct, frozen=True, gc=False):
    """What the kernel reports of a program: its ID, name and the IDs of its maps."""

    number: int
    name: str
    maps: frozenset[int]


def loaded(fd: int) -> LoadedProgram:
    """What the kernel reports of a program."""
    number, maps, name = syscall.program_info(fd, _MAPS)
    return LoadedProgram(number, name, frozenset(maps))


class CgroupLink(Struct, frozen=True, gc=False):
    """What the kernel reports of a link: the ID of its program, and of its cgroup; 0 if that is deleted."""

    program: int
    cgroup: int
    attach: int


def linked(fd: int) -> CgroupLink:
    """What the kernel reports of a link to a cgroup."""
    data = syscall.info(fd)
    return CgroupLink(struct.unpack_from("=I", data, 8)[0], *struct.unpack_from("=QI", data, 16))


def attach(program: BpfObject, target: int, hook: Attach) -> BpfObject:
    """Attaches a program to the descriptor of a cgroup or namespace, beside the others there.

    Raises:
        OSError: the kernel refused.
    """
    return BpfObject(syscall.create_link(program.fd, target, ATTACH[hook]))


def others(cgroup: int, hooks: Mapping[Attach, frozenset[int]]) -> dict[int, str]:
    """The programs of hooks that are run for processes in a cgroup, those of its parents, too.

    Args:
        cgroup: the descriptor of the cgroup.
        hooks: the IDs of programs that are left out, of each hook.

    Returns:
        The names by ID; "" where this process may not ask for the name.

    Raises:
        OSError: the kernel refused.
    """
    found = {}
    for hook, known in hooks.items():
        for number in syscall.attached(cgroup, ATTACH[hook], effective=True):
            if number not in known:
                found[number] = _name(number)
    return found


def _name(number: int) -> str:
    try:
        fd = syscall.program_by_id(number)
    except OSError:
        return ""
    try:
        return loaded(fd).name
    finally:
        os.close(fd)
