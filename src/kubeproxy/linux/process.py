"""Another process of this host, read from /proc: how it was started, and its view of the file system.

Source: proc_pid_cmdline(5), proc_pid_environ(5), proc_pid_root(5).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

_PROC: Final = Path("/proc")


class Process(Struct, frozen=True):
    """A running process.

    Attributes:
        number: its process ID.
        arguments: its command line, with the program itself first.
        environment: the environment it was started with.
        folder: its working directory, in its own view of the file system.
        root: the path under which its view of the file system can be reached; "" if that is also ours.
    """

    number: int
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    folder: str
    root: str = ""


def find(number: int) -> Process:
    """Reads the command line, environment and directories of a process.

    Raises:
        OSError: there is no such process, or this one may not read its state (CAP_SYS_PTRACE).
    """
    folder = _PROC / str(number)
    variables = (variable.partition("=") for variable in _texts(folder / "environ"))
    return Process(
        number,
        _texts(folder / "cmdline"),
        {name: value for name, _, value in variables},
        str((folder / "cwd").readlink()),
        "" if _same(folder / "ns/mnt", _PROC / "self/ns/mnt") else str(folder / "root"),
    )


def _texts(file: Path) -> tuple[str, ...]:
    """The strings in a file, each terminated by NUL."""
    return tuple(os.fsdecode(text) for text in file.read_bytes().split(b"\0")[:-1])


def _same(one: Path, other: Path) -> bool:
    return os.path.samestat(one.stat(), other.stat())
