"""A host in memory that only has addresses and kernel settings; hundreds of them can exist in one process.

It has no netlink and no programs: their methods raise the errors of a host without them. Its Internet sockets
are real sockets of this process, so that it can connect to an API server and serve health pages.
"""

import asyncio
import contextlib
import errno
import io
import os
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from kubeproxy.clock import Clock, SystemClock
from kubeproxy.linux.capabilities import Capability
from kubeproxy.linux.instance import Holder, Instance
from kubeproxy.linux.process import Process, RunningProgram
from kubeproxy.netlink.namespace import Namespace, Shared
from kubeproxy.netlink.route import Address, Link, Route

if TYPE_CHECKING:
    from kubeproxy.linux.bpf.host import BpfHost, BpfPlaces
    from kubeproxy.windows.hcn import Hcn

_INTERNET: Final = frozenset({socket.AF_INET, socket.AF_INET6})
_LOOPBACK, _FIRST = 1, 2
_SYSCTLS: Final = {
    "net/ipv4/ip_forward": "1",
    "net/ipv4/conf/all/forwarding": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/netfilter/nf_conntrack_max": "65536",
    "net/netfilter/nf_conntrack_buckets": "16384",
    "net/netfilter/nf_conntrack_tcp_timeout_established": "432000",
    "net/netfilter/nf_conntrack_tcp_timeout_close_wait": "60",
}


class FakeMachine:
    """See `base.Machine`.

    Attributes:
        clock: its time.
        processors: how many processors it has.
        release: the version of its kernel.
        settings: its kernel settings, by name.
        fixed: names of the settings that cannot be written.
        files: the contents of the files in its /proc/net, by name.
        modules: the parameters of its kernel modules, by module and parameter.
        interfaces: the indices of its interfaces, by name.
        own: its addresses.
        oom_score: the last value that was set.
        processes: its processes, by number.
        programs: its processes, as `running` returns them.
        virtual: its interfaces that are no hardware.
        hardware: the hardware address of its interfaces.
        lock_holder: the process that holds the lock.
        hns: makes its Host Networking Service; None: it has none.
    """

    def __init__(self, addresses: Iterable[str] = ("127.0.0.1",), *, clock: Clock | None = None) -> None:
        """Creates a host.

        Args:
            addresses: its addresses; it has their IP families.
            clock: its time.
        """
        self.clock: Clock = clock or SystemClock()
        self.processors = 1
        self.release = "6.18.0"
        self.settings = dict(_SYSCTLS)
        self.fixed: set[str] = set()
        self.files: dict[str, bytes] = {}
        self.modules: dict[tuple[str, str], str] = {}
        self.oom_score = 0
        self.processes: dict[int, Process] = {}
        self.programs: list[RunningProgram] = []
        self.virtual: list[Link] = []
        self.lock_holder: Holder | None = None
        self.hardware = "00-15-5D-00-00-01"
        self.hns: Callable[[], Hcn] | None = None
        self.interfaces = {"lo": _LOOPBACK, "eth0": _FIRST}
        self.own: list[Address] = []
        self._watchers: dict[object, tuple[asyncio.AbstractEventLoop, Callable[[], None], int]] = {}
        self._shared: dict[object, Any] = {}
        self.set_addresses(addresses)

    def set_addresses(self, addresses: Iterable[str], *, interface: str = "") -> None:
        """Replaces the addresses of an interface, and notifies those that watch addresses.

        Args:
            addresses: the new addresses.
            interface: the interface; "" for lo (loopback addresses) and eth0 (all others).
        """
        index = self.interfaces[interface] if interface else 0
        mine = {index} if index else {_LOOPBACK, _FIRST}
        self.own = [a for a in self.own if a.interface not in mine]
        self.own += [_address(text, index) for text in addresses]
        for loop, changed, ignored in list(self._watchers.values()):
            if mine != {ignored}:
                loop.call_soon_threadsafe(changed)

    def socket(self, domain: int, kind: int, protocol: int = 0, /) -> socket.socket:
        """See `Namespace`. Internet sockets are real."""
        if domain not in _INTERNET:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return socket.socket(domain, kind, protocol)

    def interface(self, name: str) -> int:
        """See `Namespace`."""
        return self.interfaces.get(name, 0)

    def net(self, name: str) -> BinaryIO:
        """See `Namespace`."""
        if name not in self.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return io.BytesIO(self.files[name])

    def shared(self, kind: Callable[[], Shared]) -> Shared:
        """See `Namespace`."""
        if kind not in self._shared:
            self._shared[kind] = kind()
        found: Shared = self._shared[kind]
        return found

    def namespaces(self) -> Iterator[Namespace]:
        """See `Machine`. There is no other."""
        yield self

    def has_family(self, domain: int) -> bool:
        """See `Machine`."""
        return any(len(a.packed) == (4 if domain == socket.AF_INET else 16) for a in self.own)

    def addresses(self) -> list[Address]:
        """See `Machine`."""
        return list(self.own)

    def source_address(self, domain: int) -> str:
        """See `Machine`. The first address that is not a loopback address."""
        size = 4 if domain == socket.AF_INET else 16
        found = (a.packed for a in self.own if len(a.packed) == size and a.interface != _LOOPBACK)
        return next((socket.inet_ntop(domain, packed) for packed in found), "")

    def route_to(self, address: str) -> Route | None:
        """See `Machine`. Its own addresses are local, all others are reached through eth0."""
        domain = socket.AF_INET6 if ":" in address else socket.AF_INET
        packed = socket.inet_pton(domain, address)
        own = next((a for a in self.own if a.packed == packed), None)
        if own is not None:
            return Route(_LOOPBACK, address, local=True)
        source = self.source_address(domain)
        return Route(_FIRST, source, local=False) if source else None

    def interface_name(self, index: int) -> str:
        """See `Machine`."""
        return next((name for name, number in self.interfaces.items() if number == index), "")

    def mac(self, address: str) -> str:
        """See `Machine`. Only for addresses that it has."""
        packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
        return self.hardware if any(a.packed == packed for a in self.own) else ""

    def hcn(self) -> "Hcn":
        """See `Machine`."""
        from kubeproxy.windows.errors import HnsMissingError

        if self.hns is None:
            raise HnsMissingError("this host in memory has none")
        return self.hns()

    def watch_addresses(
        self, changed: Callable[[], None], *, but: str
    ) -> contextlib.AbstractContextManager[None]:
        """See `Machine`."""
        return self._watch(changed, self.interface(but))

    def sysctl(self, name: str) -> str:
        """See `Machine`."""
        if name not in self.settings:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return self.settings[name]

    def set_sysctl(self, name: str, value: int) -> bool:
        """See `Machine`."""
        if self.sysctl(name) == str(value):
            return False
        if name in self.fixed:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), name)
        self.settings[name] = str(value)
        return True

    def sysctls(self, folder: str) -> list[str]:
        """See `Machine`."""
        start = f"{folder}/"
        return sorted({n[len(start) :].partition("/")[0] for n in self.settings if n.startswith(start)})

    def watch_sysctls(self, changed: Callable[[], None]) -> contextlib.AbstractContextManager[None]:  # noqa: ARG002
        """See `Machine`. It sends no notifications."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def module(self, name: str, parameter: str) -> str:
        """See `Machine`."""
        if (name, parameter) not in self.modules:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{name} {parameter}")
        return self.modules[name, parameter]

    def which(self, program: str) -> str | None:  # noqa: ARG002 see `Machine`
        """See `Machine`. No program is installed."""
        return None

    def start(self, argv: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":  # noqa: ARG002
        """See `Machine`. There are no programs."""
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), argv[0])

    def feed(
        self,
        argv: Sequence[str],
        chunks: Iterable[bytes],  # noqa: ARG002
        *,
        started: Callable[[int], object] = lambda _: None,  # noqa: ARG002
    ) -> None:
        """See `Machine`. There are no programs."""
        self.start(argv)

    def lines(self, argv: Sequence[str]) -> Iterator[str]:
        """See `Machine`. There are no programs."""
        self.start(argv)
        yield from ()

    def stop(self) -> None:
        """See `Machine`. No program runs."""

    def bpf(self, places: "BpfPlaces | None" = None) -> "BpfHost":  # noqa: ARG002
        """See `Machine`. It has none."""
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def lacks(self, wanted: Iterable[Capability]) -> list[Capability]:  # noqa: ARG002
        """See `Machine`. It lacks none."""
        return []

    def set_oom_score(self, score: int) -> None:
        """See `Machine`."""
        self.oom_score = score

    def lock(self, patience: float, *, waiting: Callable[[Holder], None] = lambda _: None) -> Instance:  # noqa: ARG002
        """See `Machine`. There is no other instance."""
        return Instance(None)

    def holder(self) -> Holder | None:
        """See `Machine`."""
        return self.lock_holder

    def process(self, number: int) -> Process:
        """See `Machine`."""
        if number not in self.processes:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"process {number}")
        return self.processes[number]

    def running(self) -> list[RunningProgram]:
        """See `Machine`."""
        return list(self.programs)

    def links(self) -> list[Link]:
        """See `Machine`. Those of `virtual`, and the other `interfaces`, which are hardware."""
        plain = [Link(index, name, "", 1500, 0, up=True) for name, index in self.interfaces.items()]
        return [*(link for link in plain if link.name not in {t.name for t in self.virtual}), *self.virtual]

    @contextlib.contextmanager
    def _watch(self, changed: Callable[[], None], ignored: int) -> Iterator[None]:
        me = object()
        self._watchers[me] = asyncio.get_running_loop(), changed, ignored
        try:
            yield
        finally:
            del self._watchers[me]


def _address(text: str, interface: int) -> Address:
    packed = socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    loopback = text == "::1" or text.startswith("127.")
    return Address(packed, 8 * len(packed), interface or (_LOOPBACK if loopback else _FIRST))
