"""The interface of a machine. Methods that a system does not support raise OSError there."""

import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from kubeproxy.clock import Clock
from kubeproxy.linux.capabilities import Capability
from kubeproxy.linux.instance import Holder, Instance
from kubeproxy.linux.process import Process, RunningProgram
from kubeproxy.netlink.namespace import Namespace
from kubeproxy.netlink.route import Address, Link, Route

if TYPE_CHECKING:
    from kubeproxy.linux.bpf.host import BpfHost, BpfPlaces
    from kubeproxy.windows.hcn import Hcn


class Machine(Namespace, Protocol):
    """A host as seen from one network namespace.

    Attributes:
        clock: its time.
        processors: how many processors it has.
        release: the version of its kernel, e.g. "6.18.5".
    """

    @property
    def clock(self) -> Clock:
        """See above."""

    @property
    def processors(self) -> int:
        """See above."""

    @property
    def release(self) -> str:
        """See above."""

    def namespaces(self) -> Iterator[Namespace]:
        """The network namespaces of the host, this one first, as far as this process may see them.

        Raises:
            OSError: this process is not permitted to enter others.
        """

    # Addresses

    def has_family(self, domain: int) -> bool:
        """Whether the host has an IP family (socket.AF_INET, AF_INET6); IPv6 may not exist or be disabled."""

    def addresses(self) -> list[Address]:
        """Every address of the host, on every interface.

        Raises:
            OSError: the kernel refused.
        """

    def source_address(self, domain: int) -> str:
        """The source address of packets to a remote host, "" if there is no route to one.

        No packet is sent for this.
        """

    def route_to(self, address: str) -> Route | None:
        """The route of packets to an address; None if there is none. No packet is sent for this.

        Raises:
            OSError: the kernel refused.
        """

    def interface_name(self, index: int) -> str:
        """The name of an interface; "" if no interface has this index."""

    def mac(self, address: str) -> str:
        """The hardware address of the interface that has an IP address, e.g. "00-15-5D-00-00-01".

        "" if no interface has it. Only Windows supports this.

        Args:
            address: an IPv4 or IPv6 address.

        Raises:
            OSError: it cannot be read.
        """

    def watch_addresses(self, changed: Callable[[], None], *, but: str) -> AbstractContextManager[None]:
        """Calls back, in the running event loop, when an address of the host is added or removed.

        This ends with the block.

        Args:
            changed: the callback.
            but: the name of an interface whose addresses are ignored.

        Raises:
            OSError: the kernel refused.
        """

    def hcn(self) -> "Hcn":
        """The Host Networking Service of the host.

        Raises:
            HnsMissingError: there is none; only Windows has it.
            HcnError: it does not answer.
        """

    # Kernel settings

    def sysctl(self, name: str) -> str:
        """The value of a kernel setting, e.g. of "net/ipv4/ip_forward".

        Raises:
            OSError: there is none, or it cannot be read.
        """

    def set_sysctl(self, name: str, value: int) -> bool:
        """Sets a kernel setting if it has another value, else does not write it.

        Returns whether it was written.

        Raises:
            OSError: there is none, or it cannot be written.
        """

    def sysctls(self, folder: str) -> list[str]:
        """The names in a folder of kernel settings, e.g. the interfaces in "net/ipv4/conf".

        Raises:
            OSError: there is no such folder.
        """

    def watch_sysctls(self, changed: Callable[[], None]) -> AbstractContextManager[None]:
        """Calls back, in the running event loop, when a network setting of an interface changes.

        This ends with the block.

        Raises:
            OSError: the kernel does not send notifications.
        """

    def module(self, name: str, parameter: str) -> str:
        """The value of a parameter of a kernel module.

        If `parameter` is "": the version of the module, "" if it has none.

        Raises:
            OSError: the module is not loaded, or has no such parameter.
        """

    # Programs

    def which(self, program: str) -> str | None:
        """The path of a program, None if it is not installed."""

    def start(self, argv: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
        """Starts a program in the namespace. The caller must wait for its end.

        Args:
            argv: the program and its arguments.
            options: those of `subprocess.Popen`.

        Raises:
            OSError: it could not be started.
        """

    def feed(
        self,
        argv: Sequence[str],
        chunks: Iterable[bytes],
        *,
        started: Callable[[int], object] = lambda _: None,
    ) -> None:
        """Runs a program in the namespace until it ends, and writes bytes to its standard input.

        Args:
            argv: the program and its arguments.
            chunks: the input.
            started: called with the process ID before anything is written.

        Raises:
            run.ProgramError: it failed.
            OSError: it could not be started.
        """

    def lines(self, argv: Sequence[str]) -> Iterator[str]:
        """Runs a program in the namespace; yields the lines of its output, without line ends.

        Raises:
            run.ProgramError: it failed; this is raised after the last line.
            OSError: it could not be started.
        """

    def stop(self) -> None:
        """Kills the programs that `feed` and `lines` run, so that these calls return."""

    def bpf(self, places: "BpfPlaces | None" = None) -> "BpfHost":
        """What is needed for programs that the kernel runs for sockets of the host's processes.

        Args:
            places: where programs are attached and pinned; None for those of the machine.

        Raises:
            OSError: the host has none.
        """

    # The process

    def lacks(self, wanted: Iterable[Capability]) -> list[Capability]:
        """Those of the capabilities that this process does not have; none if this cannot be determined."""

    def set_oom_score(self, score: int) -> None:
        """Sets the OOM score adjustment of this process, from -1000 (the kernel never kills it) to 1000.

        Raises:
            OSError: a score below the one at the start of the process needs CAP_SYS_RESOURCE.
        """

    def lock(self, patience: float, *, waiting: Callable[[Holder], None] = lambda _: None) -> Instance:
        """Acquires the lock that only one kube-proxy of the namespace can hold.

        Args:
            patience: how many seconds to wait for another instance to end.
            waiting: called once, before the wait, with the process that holds the lock.

        Raises:
            instance.HeldError: another instance still has the lock after that time.
        """

    def holder(self) -> Holder | None:
        """The process that holds the lock of `lock`; None if there is none."""

    def process(self, number: int) -> Process:
        """A process of the host.

        Raises:
            OSError: there is no such process, or this one may not read its state.
        """

    def running(self) -> list[RunningProgram]:
        """The processes in the network namespace, as far as this one may see them.

        Raises:
            OSError: they cannot be listed.
        """

    def links(self) -> list[Link]:
        """The interfaces.

        Raises:
            OSError: the kernel refused.
        """
