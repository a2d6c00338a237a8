"""This Windows host. It has no network namespaces of ours, so it has one machine.

What only Linux has (netlink, /proc, kernel settings, capabilities, the OOM killer) does not exist: settings
and programs raise the errors of a host without them, and what is optional does nothing. Windows has
addresses, sockets, the lock and processes.
"""

import asyncio
import contextlib
import errno
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from kubeproxy.clock import Clock, SystemClock
from kubeproxy.linux.capabilities import Capability
from kubeproxy.linux.instance import HeldError, Holder, Instance
from kubeproxy.linux.process import Process, RunningProgram
from kubeproxy.netlink import route
from kubeproxy.netlink.namespace import Namespace, Shared
from kubeproxy.netlink.route import Address, Link, Route
from kubeproxy.windows.adapters import Adapters, IPHelper
from kubeproxy.windows.hcn import Hcn, HostNetworking
from kubeproxy.windows.instance import NamedSection, SystemLock
from kubeproxy.windows.processes import Processes, SystemProcesses

if TYPE_CHECKING:
    from kubeproxy.linux.bpf.host import BpfHost, BpfPlaces

_POLL_SECONDS: Final = 0.1
_SYSTEM: Final = 0
"""The user of a process that holds the lock, which only administrators and services can take."""


class WindowsMachine:
    """See `base.Machine`."""

    def __init__(
        self,
        *,
        adapters: Adapters | None = None,
        lock: SystemLock | None = None,
        processes: Processes | None = None,
        hcn: Hcn | None = None,
    ) -> None:
        """Loads the libraries of Windows.

        Args:
            adapters: the interfaces; None for those of this host.
            lock: the lock; None for that of this host.
            processes: the processes; None for those of this host.
            hcn: HNS; None for that of this host.

        Raises:
            OSError: a library is missing.
        """
        self.clock: Clock = SystemClock()
        self._adapters = adapters or IPHelper()
        self._lock = lock or NamedSection()
        self._processes = processes or SystemProcesses()
        self._hcn = hcn
        self._shared: dict[object, Any] = {}

    @property
    def processors(self) -> int:
        """See `Machine`."""
        return os.cpu_count() or 1

    @property
    def release(self) -> str:
        """See `Machine`: the version of Windows, e.g. "10.0.20348"."""
        return platform.version()

    def socket(self, domain: int, kind: int, protocol: int = 0, /) -> socket.socket:
        """See `Namespace`."""
        return socket.socket(domain, kind, protocol)

    def interface(self, name: str) -> int:
        """See `Namespace`."""
        return next((adapter.number for adapter in self._adapters.list() if adapter.name == name), 0)

    def net(self, name: str) -> BinaryIO:
        """See `Namespace`. Windows has no such files."""
        raise _missing(name)

    def shared(self, kind: Callable[[], Shared]) -> Shared:
        """See `Namespace`."""
        if kind not in self._shared:
            self._shared[kind] = kind()
        found: Shared = self._shared[kind]
        return found

    def namespaces(self) -> Iterator[Namespace]:
        """See `Machine`. There are none besides the host."""
        yield self

    def hcn(self) -> Hcn:
        """See `Machine`."""
        if self._hcn is None:
            from kubeproxy.windows.binding import system_binding

            self._hcn = HostNetworking(system_binding())
        return self._hcn

    def has_family(self, domain: int) -> bool:
        """See `Machine`. A family exists if any interface has an address of it."""
        size = 4 if domain == socket.AF_INET else 16
        return any(len(address.packed) == size for address in self.addresses())

    def addresses(self) -> list[Address]:
        """See `Machine`."""
        return [
            Address(packed, prefix, adapter.number)
            for adapter in self._adapters.list()
            for packed, prefix in adapter.addresses
        ]

    def source_address(self, domain: int) -> str:
        """See `Machine`."""
        return route.source_address(self, domain)

    def route_to(self, address: str) -> Route | None:
        """See `Machine`."""
        domain = socket.AF_INET6 if ":" in address else socket.AF_INET
        packed = socket.inet_pton(domain, address)
        interfaces = {each.packed: each.interface for each in self.addresses()}
        if packed in interfaces:
            return Route(interfaces[packed], address, local=True)
        source = route.source_address(self, domain, address)
        if not source:
            return None
        return Route(interfaces.get(socket.inet_pton(domain, source), 0), source, local=False)

    def interface_name(self, index: int) -> str:
        """See `Machine`."""
        return next((adapter.name for adapter in self._adapters.list() if adapter.number == index), "")

    def mac(self, address: str) -> str:
        """See `Machine`."""
        packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
        return next(
            (a.mac for a in self._adapters.list() if any(own == packed for own, _ in a.addresses)), ""
        )

    @contextlib.contextmanager
    def watch_addresses(self, changed: Callable[[], None], *, but: str) -> Iterator[None]:  # noqa: ARG002
        """See `Machine`. The interface is not reported; the caller compares what it lists."""
        loop = asyncio.get_running_loop()
        with self._adapters.watch(lambda: _call(loop, changed)):
            yield

    def sysctl(self, name: str) -> str:
        """See `Machine`. There are none."""
        raise _missing(name)

    def set_sysctl(self, name: str, value: int) -> bool:  # noqa: ARG002
        """See `Machine`. There are none."""
        raise _missing(name)

    def sysctls(self, folder: str) -> list[str]:
        """See `Machine`. There are none."""
        raise _missing(folder)

    def watch_sysctls(self, changed: Callable[[], None]) -> contextlib.AbstractContextManager[None]:  # noqa: ARG002
        """See `Machine`. There are none."""
        raise _missing("kernel settings")

    def module(self, name: str, parameter: str) -> str:  # noqa: ARG002
        """See `Machine`. There are none."""
        raise _missing(name)

    def which(self, program: str) -> str | None:
        """See `Machine`."""
        return shutil.which(program)

    def start(self, argv: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
        """See `Machine`."""
        return subprocess.Popen(argv, **options)

    def feed(
        self,
        argv: Sequence[str],
        chunks: Iterable[bytes],  # noqa: ARG002
        *,
        started: Callable[[int], object] = lambda _: None,  # noqa: ARG002
    ) -> None:
        """See `Machine`. No mode of Windows needs a program."""
        raise _missing(argv[0])

    def lines(self, argv: Sequence[str]) -> Iterator[str]:
        """See `Machine`. No mode of Windows needs a program."""
        raise _missing(argv[0])

    def stop(self) -> None:
        """See `Machine`. No program runs."""

    def bpf(self, places: "BpfPlaces | None" = None) -> "BpfHost":  # noqa: ARG002
        """See `Machine`. It has none."""
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def lacks(self, wanted: Iterable[Capability]) -> list[Capability]:  # noqa: ARG002
        """See `Machine`. Windows has no capabilities; HNS refuses who is no administrator."""
        return []

    def set_oom_score(self, score: int) -> None:
        """See `Machine`. Windows ends no process for lack of memory."""

    def lock(self, patience: float, *, waiting: Callable[[Holder], None] = lambda _: None) -> Instance:
        """See `Machine`."""
        deadline, reported = time.monotonic() + patience, False
        while not self._lock.take(os.getpid()):
            found = self.holder()
            if found is not None:
                if time.monotonic() >= deadline:
                    raise HeldError(found, "on this host")
                if not reported:
                    reported = True
                    waiting(found)
            time.sleep(_POLL_SECONDS)
        return Instance(None, self._lock.release)

    def holder(self) -> Holder | None:
        """See `Machine`."""
        process = self._lock.holder()
        return None if process is None else Holder(process, _SYSTEM)

    def process(self, number: int) -> Process:
        """See `Machine`. Windows shows neither the environment nor the working directory."""
        return Process(number, self._processes.arguments(number), {}, "")

    def running(self) -> list[RunningProgram]:
        """See `Machine`. They are not listed."""
        return []

    def links(self) -> list[Link]:
        """See `Machine`. Windows has no kinds of interfaces as Linux has."""
        return [Link(a.number, a.name, "", a.mtu, 0, up=a.up) for a in self._adapters.list()]


def _missing(name: str) -> OSError:
    return OSError(errno.ENOSYS, f"{name}: {os.strerror(errno.ENOSYS)} on {sys.platform}")


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    """Calls a function in an event loop, from another thread; not after the loop was closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function)
