"""The cost of a change in a large legacy table: `iptables-restore`, and the kernel's part of it.

The kernel has no call that changes one rule. A program must read the whole table, write it, and add the old
counters to the new entries. The kernel's part is measured by doing this without a change in between.
"""

import ctypes
import mmap
import os
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench import objects, rig
from tests.lab import netns

SERVICES, ENDPOINTS = 5000, 10
TABLE = b"nat"
ONE_ENDPOINT = b"""*nat
:KUBE-SEP-BENCH - [0:0]
-A KUBE-SEP-BENCH -s 10.255.0.1/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-BENCH -p tcp -m tcp -j DNAT --to-destination 10.255.0.1:8080
COMMIT
"""

# linux/netfilter_ipv4/ip_tables.h: the options' numbers (one to get and one to set has each number), struct
# ipt_getinfo, the beginnings of ipt_get_entries and xt_counters_info, and ipt_replace up to its entries.
_INFO_OR_REPLACE, _ENTRIES_OR_COUNTERS = 64, 65
_INFO = struct.Struct("@32s I 5I 5I I I")
_HEADER = struct.Struct("@32s I 0Q")
_REPLACE = struct.Struct("@32s I I I 5I 5I I P")
_COUNTER_BYTES = 16
_libc = ctypes.CDLL(None, use_errno=True)


class Exchange(NamedTuple):
    """Seconds of processor time of each of the kernel's calls, and the size of the table."""

    read: float
    replace: float
    add_counters: float
    entries: int
    size: int


def main(rounds: int) -> None:
    """Prints the times of the program and of the kernel's part, measured alternately."""
    programs, exchanges = [], []
    with rig.path("legacy") as path, rig.node() as node, tempfile.TemporaryDirectory() as folder:
        Path(folder, "cluster.json").write_bytes(objects.manifest(SERVICES, ENDPOINTS))
        with rig.Proxy(node, "--manifests", folder, path=path):
            pass
        with netns.inside(node):
            for _ in range(2 * rounds):
                programs.append(_restore(path))
                exchanges.append(_exchange())
    seconds, processor, megabytes = (rig.median(column) for column in zip(*programs, strict=True))
    read, replace, add = (rig.median(column) for column in list(zip(*exchanges, strict=True))[:3])
    entries, size = exchanges[-1][3:]
    rig.row(
        f"legacy: table nat of {SERVICES} Services x {ENDPOINTS}",
        f"{entries} entries",
        f"{size / 1e6:.0f} MB",
    )
    rig.row("iptables-restore --noflush of one endpoint's rules", _ms(seconds), f"{megabytes:.0f} MB peak")
    rig.row("processor time of that", _ms(processor))
    for title, part in (("read", read), ("replace", replace), ("add counters", add)):
        rig.row(f"the kernel's part: {title}", _ms(part), f"{part / entries * 1e6:.2f} us each")
    for title, parts in (("all three", read + replace + add), ("without reading", replace + add)):
        rig.row(f"the kernel's part: {title}", _ms(parts), f"{processor / parts:.2f} x faster")


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms"


def _restore(path: str) -> tuple[float, float, float]:
    """Runs the program; returns its seconds, its processor time and its peak of resident memory in MB."""
    usage = None

    def run() -> None:
        nonlocal usage
        with subprocess.Popen(
            ["iptables-restore", "--noflush"], stdin=subprocess.PIPE, env={"PATH": path}
        ) as process:
            assert process.stdin is not None
            process.stdin.write(ONE_ENDPOINT)
            process.stdin.close()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit("iptables-restore failed")

    seconds = rig.timed(run)
    assert usage is not None
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def _exchange() -> Exchange:
    """Reads the table and writes it unchanged, in memory that was allocated before (the fastest way)."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as raw:
        info = ctypes.create_string_buffer(TABLE, _INFO.size)
        _get(raw, _INFO_OR_REPLACE, ctypes.addressof(info), _INFO.size)
        name, hooks, *points, entries, size = _INFO.unpack(info.raw)
        table, counters = (
            _buffer(_REPLACE.size + size),
            _buffer(_HEADER.size + _COUNTER_BYTES * entries),
        )
        at, counters_at = (ctypes.addressof(ctypes.c_char.from_buffer(b)) for b in (table, counters))
        # The entries are read to the place from which they are written.
        gap = _REPLACE.size - _HEADER.size
        _HEADER.pack_into(table, gap, name, size)
        read = _processor(lambda: _get(raw, _ENTRIES_OR_COUNTERS, at + gap, _HEADER.size + size))
        _REPLACE.pack_into(table, 0, name, hooks, entries, size, *points, entries, counters_at + _HEADER.size)
        replace = _processor(lambda: _set(raw, _INFO_OR_REPLACE, at, _REPLACE.size + size))
        _HEADER.pack_into(counters, 0, name, entries)
        length = _HEADER.size + _COUNTER_BYTES * entries
        add = _processor(lambda: _set(raw, _ENTRIES_OR_COUNTERS, counters_at, length))
    return Exchange(read, replace, add, entries, size)


def _processor(work: Callable[[], object]) -> float:
    """The processor time of this thread for a call, including the kernel's part."""
    started = time.thread_time()
    work()
    return time.thread_time() - started


def _buffer(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)


def _get(raw: socket.socket, option: int, at: int, size: int) -> None:
    length = ctypes.c_uint32(size)
    _check(_libc.getsockopt(raw.fileno(), 0, option, ctypes.c_void_p(at), ctypes.byref(length)))


def _set(raw: socket.socket, option: int, at: int, size: int) -> None:
    _check(_libc.setsockopt(raw.fileno(), 0, option, ctypes.c_void_p(at), size))


def _check(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
