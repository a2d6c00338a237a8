"""Another process of this host, read from /proc: how it was started, and its view of the file system.

Source: proc_pid_cmdline(5), proc_pid_environ(5), proc_pid_root(5).
"""

import contextlib
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


class RunningProgram(Struct, frozen=True):
    """A process, as far as every user may know it.

    Attributes:
        number: its process ID.
        name: the name of its main thread (proc_pid_comm(5)), at most 15 characters.
        program: the name of the file that it executes; "" if this process may not read it.
    """

    number: int
    name: str
    program: str


def running() -> list[RunningProgram]:
    """The processes in the network namespace of this thread, without those that end or cannot be read.

    Raises:
        OSError: there is no /proc.
    """
    here = (_PROC / "thread-self/ns/net").stat()
    found = []
    for folder in _PROC.iterdir():
        if not folder.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            if os.path.samestat((folder / "ns/net").stat(), here):
                name = (folder / "comm").read_text(errors="replace").strip()
                found.append(RunningProgram(int(folder.name), name, _program(folder)))
    return found


def _program(folder: Path) -> str:
    try:
        return (folder / "exe").readlink().name
    except OSError:
        return ""


def _texts(file: Path) -> tuple[str, ...]:
    """The strings in a file, each terminated by NUL."""
    return tuple(os.fsdecode(text) for text in file.read_bytes().split(b"\0")[:-1])


def _same(one: Path, other: Path) -> bool:
    return os.path.samestat(one.stat(), other.stat())
