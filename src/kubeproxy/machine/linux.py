"""This Linux host, in the network namespace of the calling thread or in another namespace."""

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from kubeproxy.clock import Clock, SystemClock
from kubeproxy.linux import capabilities, instance, netns, oom, process, sysctl
from kubeproxy.linux.capabilities import Capability
from kubeproxy.linux.instance import Holder, Instance
from kubeproxy.linux.process import Process, RunningProgram
from kubeproxy.linux.run import Runner
from kubeproxy.netlink import route, wire
from kubeproxy.netlink.namespace import Namespace, Shared

if TYPE_CHECKING:
    from kubeproxy.windows.hcn import Hcn

if TYPE_CHECKING:
    from kubeproxy.linux.bpf.host import BpfHost, BpfPlaces

_NET: Final = Path("/proc/thread-self/net")
_MODULES: Final = Path("/sys/module")


class LinuxMachine:
    """See `base.Machine`."""

    def __init__(self, namespace: Path | None = None, *, bpf: "BpfPlaces | None" = None) -> None:
        """Binds it to a network namespace.

        Args:
            namespace: the file of a namespace, e.g. /run/netns/blue; None for the namespace of the calling
                thread.
            bpf: where programs are attached and pinned if nothing else is asked for; None: where it is usual.

        Raises:
            OSError: there is no such namespace, or this process is not permitted to enter it.
        """
        self.clock: Clock = SystemClock()
        self._namespace: int | None = None
        if namespace is not None:
            self._namespace = netns.open_namespace(namespace)
            weakref.finalize(self, os.close, self._namespace)
            with netns.inside(self._namespace):
                pass
        self._lock = threading.Lock()
        self._shared: dict[object, Any] = {}
        self._runner = Runner(self.start)
        self._bpf = bpf

    @property
    def processors(self) -> int:
        """See `Machine`."""
        return os.cpu_count() or 1

    @property
    def release(self) -> str:
        """See `Machine`."""
        return os.uname().release

    def socket(self, domain: int, kind: int, protocol: int = 0, /) -> socket.socket:
        """See `Namespace`."""
        with self._inside():
            return socket.socket(domain, kind, protocol)

    def interface(self, name: str) -> int:
        """See `Namespace`."""
        with self._inside():
            try:
                return socket.if_nametoindex(name)
            except OSError:
                return 0

    def net(self, name: str) -> BinaryIO:
        """See `Namespace`."""
        with self._inside():
            return (_NET / name).open("rb")

    def shared(self, kind: Callable[[], Shared]) -> Shared:
        """See `Namespace`."""
        with self._lock:
            if kind not in self._shared:
                self._shared[kind] = kind()
            found: Shared = self._shared[kind]
            return found

    def namespaces(self) -> Iterator[Namespace]:
        """See `Machine`."""
        yield self
        with self._inside():
            others = list(netns.known())
        for path in others:
            try:
                other = LinuxMachine(path)
            except FileNotFoundError:  # it ended
                continue
            yield other

    def has_family(self, domain: int) -> bool:
        """See `Machine`."""
        if domain == socket.AF_INET:
            return True
        try:
            self.net("if_inet6").close()
            return self.sysctl("net/ipv6/conf/all/disable_ipv6") == "0"
        except OSError:
            return False

    def addresses(self) -> list[route.Address]:
        """See `Machine`."""
        return route.addresses(self)

    def source_address(self, domain: int) -> str:
        """See `Machine`."""
        return route.source_address(self, domain)

    def route_to(self, address: str) -> route.Route | None:
        """See `Machine`."""
        return route.route_to(self, address)

    def interface_name(self, index: int) -> str:
        """See `Machine`."""
        with self._inside():
            try:
                return socket.if_indextoname(index)
            except OSError:
                return ""

    def mac(self, address: str) -> str:  # noqa: ARG002
        """See `Machine`. No mode of Linux needs it."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def hcn(self) -> "Hcn":
        """See `Machine`."""
        from kubeproxy.windows.errors import HnsMissingError

        raise HnsMissingError("this is Linux, and only Windows has HNS")

    @contextlib.contextmanager
    def watch_addresses(self, changed: Callable[[], None], *, but: str) -> Iterator[None]:
        """See `Machine`."""
        ignored = self.interface(but)
        with route.monitor(self) as monitor, _readable(monitor, lambda: _receive(monitor, ignored, changed)):
            yield

    def sysctl(self, name: str) -> str:
        """See `Machine`."""
        with self._inside():
            return sysctl.read(name)

    def set_sysctl(self, name: str, value: int) -> bool:
        """See `Machine`."""
        with self._inside():
            return sysctl.ensure(name, value)

    def sysctls(self, folder: str) -> list[str]:
        """See `Machine`."""
        with self._inside():
            return sysctl.names(folder)

    @contextlib.contextmanager
    def watch_sysctls(self, changed: Callable[[], None]) -> Iterator[None]:
        """See `Machine`."""
        with (
            route.settings_monitor(self) as monitor,
            _readable(monitor, lambda: _receive(monitor, None, changed)),
        ):
            yield

    def module(self, name: str, parameter: str) -> str:
        """See `Machine`."""
        folder = _MODULES / name
        if parameter:
            return (folder / "parameters" / parameter).read_text().strip()
        folder.stat()
        version = folder / "version"
        return version.read_text().strip() if version.exists() else ""

    def which(self, program: str) -> str | None:
        """See `Machine`."""
        return shutil.which(program)

    def start(self, argv: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
        """See `Machine`."""
        with self._inside():
            return subprocess.Popen(argv, **options)

    def feed(
        self,
        argv: Sequence[str],
        chunks: Iterable[bytes],
        *,
        started: Callable[[int], object] = lambda _: None,
    ) -> None:
        """See `Machine`."""
        self._runner.feed(argv, chunks, started=started)

    def lines(self, argv: Sequence[str]) -> Iterator[str]:
        """See `Machine`."""
        return self._runner.lines(argv)

    def stop(self) -> None:
        """See `Machine`."""
        self._runner.stop()

    def bpf(self, places: "BpfPlaces | None" = None) -> "BpfHost":
        """See `Machine`."""
        from kubeproxy.linux.bpf.host import BpfHost, BpfPlaces

        return BpfHost(self, places or self._bpf or BpfPlaces())

    def lacks(self, wanted: Iterable[Capability]) -> list[Capability]:
        """See `Machine`."""
        return capabilities.missing(wanted)

    def set_oom_score(self, score: int) -> None:
        """See `Machine`."""
        oom.adjust(score)

    def lock(self, patience: float, *, waiting: Callable[[Holder], None] = lambda _: None) -> Instance:
        """See `Machine`."""
        return instance.acquire(self.socket, patience, waiting=waiting)

    def holder(self) -> Holder | None:
        """See `Machine`."""
        return instance.holder(self.socket)

    def process(self, number: int) -> Process:
        """See `Machine`."""
        return process.find(number)

    def running(self) -> list[RunningProgram]:
        """See `Machine`."""
        with self._inside():
            return process.running()

    def links(self) -> list[route.Link]:
        """See `Machine`."""
        return route.links(self)

    def _inside(self) -> contextlib.AbstractContextManager[None]:
        """The calling thread is in the namespace until the block ends."""
        return contextlib.nullcontext() if self._namespace is None else netns.inside(self._namespace)


@contextlib.contextmanager
def _readable(monitor: wire.Socket, readable: Callable[[], None]) -> Iterator[None]:
    """Calls back in the running event loop whenever a socket can be read, until the block ends."""
    import asyncio

    loop = asyncio.get_running_loop()
    loop.add_reader(monitor.fileno(), readable)
    try:
        yield
    finally:
        loop.remove_reader(monitor.fileno())


def _receive(monitor: wire.Socket, ignored: int | None, changed: Callable[[], None]) -> None:
    """Reads notifications and calls back, unless all are about the ignored interface.

    If the socket's buffer overflowed, notifications were lost, so it calls back.
    """
    concerns = False
    try:
        while messages := list(monitor.receive(wait=False)):
            concerns = concerns or any(
                ignored is None or not route.concerns(message, ignored) for message in messages
            )
    except OSError:
        concerns = True
    if concerns:
        changed()
