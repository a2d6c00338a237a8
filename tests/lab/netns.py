"""Network namespaces by name: step into one, create and delete many at once, remove what crashed runs left.

A lab's namespaces are called `kplab-PID-START-RANDOM-ROLE`. PID and START (the start time the kernel gives for that
process) say whose they are, so that a later run removes the leftovers of owners that are dead and touches nobody
else's. `setns` moves only the calling thread: sockets, processes and sysctl files opened while inside belong to that
namespace for good.
"""

import contextlib
import ctypes
import os
import secrets
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

PREFIX = "kplab-"
FOLDER = Path("/run/netns")
CLONE_NEWNET = 0x40000000  # <linux/sched.h>; os.setns exists only from Python 3.12 on
MNT_DETACH = 2  # <sys/mount.h>
_libc = ctypes.CDLL(None, use_errno=True)


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """The calling thread is in the namespace `name` for the length of a `with` block."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(FOLDER / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def unique_prefix() -> str:
    """A prefix for the names of one lab: whose it is, and a random part for several labs of one process."""
    return f"{PREFIX}{os.getpid()}-{_start_time(os.getpid()):x}-{secrets.token_hex(3)}-"


def _start_time(pid: int) -> int:
    """Clock ticks from boot to the start of a process (proc(5), field 22); raises OSError if there is none."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def owner_lives(name: str) -> bool:
    """Whether the process that made a prefix runs."""
    pid, start, *_ = name.removeprefix(PREFIX).split("-")
    try:
        return _start_time(int(pid)) == int(start, 16)
    except OSError:
        return False


def ip_batch(*lines: str, namespace: str | None = None, family: str | None = None) -> subprocess.Popen[str]:
    """Starts one `ip -batch` over the lines; see `finish`."""
    command = ["ip", *(["-n", namespace] if namespace else []), *([family] if family else []), "-batch", "-"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:  # it has ended; `finish` says why
        process.stdin.write("\n".join(lines) + "\n")
    process.stdin = None
    return process


def finish(*processes: subprocess.Popen[str]) -> None:
    """Waits for `ip` programs and raises RuntimeError with the error output of the first failing one."""
    said = [(process, process.communicate()[1]) for process in processes]
    for process, errors in said:
        if process.returncode:
            raise RuntimeError(f"{' '.join(map(str, process.args))}: {errors.strip()}")  # type: ignore[arg-type]


def create(names: Iterable[str]) -> None:
    """Creates namespaces."""
    finish(ip_batch(*(f"netns add {name}" for name in names)))


def write_sysctls(name: str, values: Mapping[str, str]) -> None:
    """Writes sysctls (`net/ipv4/ip_forward`) inside a namespace; what this kernel does not have there is left out."""
    with inside(name):
        for key, value in values.items():
            with contextlib.suppress(FileNotFoundError):
                Path("/proc/sys", key).write_text(value)


def ask_neighbours_longer(name: str) -> None:
    """A neighbour that does not answer for three seconds is no less there: the machine is busy."""
    with inside(name):
        for version in ("ipv4", "ipv6"):
            for path in Path("/proc/sys/net", version, "neigh").glob("*/[mu]cast_solicit"):
                path.write_text("30")


def read_sysctls(name: str, keys: Iterable[str]) -> dict[str, str]:
    """Reads those of the sysctls that this kernel has in the namespace."""
    with inside(name):
        return {key: path.read_text().strip() for key in keys if (path := Path("/proc/sys", key)).exists()}


def delete(names: Iterable[str]) -> None:
    """Ends the processes that are left inside the namespaces, then removes these. Missing ones are no error."""
    paths = [path for name in names if (path := FOLDER / name).exists()]
    if not paths:
        return
    inodes = {path.stat().st_ino for path in paths}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if (entry / "ns/net").stat().st_ino in inodes:
                    os.kill(int(entry.name), signal.SIGKILL)
    for path in paths:
        _libc.umount2(os.fsencode(path), MNT_DETACH)
        path.unlink(missing_ok=True)  # another run may sweep the same leftovers


def sweep() -> list[str]:
    """Removes the namespaces of labs whose owner is dead. Returns their names."""
    try:
        names = [entry.name for entry in FOLDER.iterdir() if entry.name.startswith(PREFIX)]
    except FileNotFoundError:
        return []
    dead = [name for name in names if not owner_lives(name)]
    delete(dead)
    return dead
