"""What a machine offers. Windows will have one, too: what Linux alone has raises OSError there."""

import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from kubeproxy.clock import Clock
from kubeproxy.linux.capabilities import Capability
from kubeproxy.linux.instance import Holder, Instance
from kubeproxy.linux.process import Process
from kubeproxy.netlink.namespace import Namespace
from kubeproxy.netlink.route import Address, Route


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

    # Addresses

    def speaks(self, domain: int) -> bool:
        """Whether the host has an IP family, socket.AF_INET or AF_INET6: IPv6 may be compiled out or disabled."""

    def addresses(self) -> list[Address]:
        """Every address of the host, on every interface.

        Raises:
            OSError: the kernel refused.
        """

    def source_address(self, domain: int) -> str:
        """The address from which the host sends to the rest of the world, "" if it cannot; nothing is sent to find out."""

    def route_to(self, address: str) -> Route | None:
        """The route of packets to an address; None if there is none. Nothing is sent to find out.

        Raises:
            OSError: the kernel refused.
        """

    def interface_name(self, index: int) -> str:
        """The name of an interface; "" if there is none of that index."""

    def watch_addresses(self, changed: Callable[[], None], *, but: str) -> AbstractContextManager[None]:
        """In the running event loop, calls back when an address of the host comes or goes, until the block ends.

        Args:
            changed: called back.
            but: the name of an interface that does not count.

        Raises:
            OSError: the kernel refused.
        """

    # Kernel settings

    def sysctl(self, name: str) -> str:
        """The value of a kernel setting, e.g. of "net/ipv4/ip_forward".

        Raises:
            OSError: there is none, or it cannot be read.
        """

    def set_sysctl(self, name: str, value: int) -> bool:
        """Sets a kernel setting that has another value; returns whether it had. One that is right is not written.

        Raises:
            OSError: there is none, or it cannot be written.
        """

    def sysctls(self, folder: str) -> list[str]:
        """The names in a folder of kernel settings, e.g. the interfaces in "net/ipv4/conf".

        Raises:
            OSError: there is no such folder.
        """

    def watch_sysctls(self, changed: Callable[[], None]) -> AbstractContextManager[None]:
        """In the running event loop, calls back when a network setting of an interface changes, until the block ends.

        Raises:
            OSError: the kernel gives no notifications.
        """

    def module(self, name: str, parameter: str) -> str:
        """The value of a parameter of a kernel module; of parameter "" the version, "" if it has none.

        Raises:
            OSError: the module is not loaded, or has no such parameter.
        """

    # Programs

    def which(self, program: str) -> str | None:
        """The path of a program, None if it is not installed."""

    def start(self, argv: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
        """Starts a program in the namespace, which the caller ends.

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
        """Runs a program in the namespace, with these bytes as its input.

        Args:
            argv: the program and its arguments.
            chunks: its input.
            started: called with the number of its process before it is given anything.

        Raises:
            run.ProgramError: it failed.
            OSError: it could not be started.
        """

    def lines(self, argv: Sequence[str]) -> Iterator[str]:
        """Runs a program in the namespace; yields the lines of its output, without their ends.

        Raises:
            run.ProgramError: it failed; known only after the last line.
            OSError: it could not be started.
        """

    def stop(self) -> None:
        """Ends the programs that `feed` and `lines` run, and with that the waiting of the threads that run them."""

    # The process

    def lacks(self, wanted: Iterable[Capability]) -> list[Capability]:
        """Those of the capabilities that this process does not have; none where that is not known."""

    def set_oom_score(self, score: int) -> None:
        """Sets how likely the kernel ends this process when memory runs out, from -1000, never, to 1000.

        Raises:
            OSError: a score below the one given to us needs CAP_SYS_RESOURCE.
        """

    def lock(self, patience: float, *, waiting: Callable[[Holder], None] = lambda _: None) -> Instance:
        """Takes the lock that one kube-proxy of the namespace holds.

        Args:
            patience: how many seconds to wait for another instance to end.
            waiting: called once, before waiting.

        Raises:
            instance.HeldError: another instance still has the lock after that time.
        """

    def holder(self) -> Holder | None:
        """The process that holds the lock of `lock`; None if there is none."""

    def process(self, number: int) -> Process:
        """A process of the host.

        Raises:
            OSError: there is no such process, or this one may not look at it.
        """
