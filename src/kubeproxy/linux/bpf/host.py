"""Where a host has its cgroups and its BPF file system, and the identity of a network namespace."""

import os
import socket
import struct
from pathlib import Path
from typing import Final

from msgspec import Struct

from kubeproxy.linux.bpf.pins import PinFolder
from kubeproxy.netlink.namespace import Sockets

BPF_FOLDER: Final = Path("/sys/fs/bpf")
"""Where systemd mounts the BPF file system."""

_MOUNTS: Final = (Path("/proc/1/mounts"), Path("/proc/self/mounts"))
_SO_NETNS_COOKIE: Final = 71
_SIOCGSKNS: Final = 0x894C


class BpfPlaces(Struct, frozen=True, gc=False):
    """Where programs are attached and objects pinned.

    Attributes:
        cgroup: a folder of cgroup version 2; "" for the root of the host's.
        pins: a folder of a BPF file system; "" for /sys/fs/bpf/kube-proxy.
    """

    cgroup: str = ""
    pins: str = ""


class BpfHost:
    """The BPF of a host, as seen from one network namespace."""

    def __init__(self, sockets: Sockets, places: BpfPlaces) -> None:
        """Nothing is done before the first call."""
        self._sockets = sockets
        self._places = places

    def folder(self, version: str) -> PinFolder:
        """The folder of pins for a version of a layout."""
        return PinFolder(Path(self._places.pins or BPF_FOLDER / "kube-proxy") / version)

    def cgroup(self) -> str:
        """The path of the cgroup whose processes are served.

        Raises:
            OSError: the host has no cgroup version 2.
        """
        return self._places.cgroup or _root()

    def open_cgroup(self) -> int:
        """A descriptor of the cgroup, which the caller must close.

        Raises:
            OSError: there is none.
        """
        return os.open(self.cgroup(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def open_namespace(self) -> int:
        """A descriptor of the network namespace, which the caller must close.

        Raises:
            OSError: CAP_NET_ADMIN is missing.
        """
        import fcntl  # not on Windows, where modules that import this one must load

        with self._sockets.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            return fcntl.ioctl(sock, _SIOCGSKNS)

    def cookie(self) -> int | None:
        """The number that programs know the network namespace by; None before Linux 5.14."""
        with self._sockets.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                found = sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
            except OSError:
                return None
        number: int = struct.unpack("=Q", found)[0]
        return number


def _root() -> str:
    """The first mount of cgroup version 2, of the host if its mounts can be read."""
    for path in _MOUNTS:
        try:
            mounts = path.read_text()
        except OSError:
            continue
        for line in mounts.splitlines():
            fields = line.split(" ")
            if fields[2] == "cgroup2":
                return fields[1]
    raise FileNotFoundError("no cgroup version 2 is mounted")
