"""Opens ports, and retries while another program uses them.

An unspecified address, 0.0.0.0 as well as ::, means every address of both families, as it does to Go
programs.
"""

import asyncio
import contextlib
import errno
import logging
import socket
import sys
from asyncio.trsock import TransportSocket
from collections.abc import Callable
from typing import Final

from kubeproxy.api.addresses import IPV6, Family, family_of, join
from kubeproxy.machine.base import Machine
from kubeproxy.netlink import route
from kubeproxy.serve.http import Door, OpenPort
from kubeproxy.serve.message import Handler

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 5.0
_UNSPECIFIED = {"0.0.0.0", "::"}


At = tuple[str, int]
"""An address and a port."""


def bind(
    machine: Machine, address: str, port: int, *, single: bool = False, shared: bool = False
) -> socket.socket:
    """Makes a TCP socket that is bound.

    Args:
        machine: the host.
        address: an IP address.
        port: a port.
        single: an unspecified address is that of its own family alone.
        shared: another socket of this user may have the port if it allows that, too (SO_REUSEPORT).

    Raises:
        OSError: the address is not on this host, or the port is in use.
    """
    if address in _UNSPECIFIED and not single:
        try:
            return _bind(machine, "::", port, both=True, shared=shared)
        except OSError as e:
            if e.errno not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
                raise
        address = "0.0.0.0"  # this kernel has no IPv6
    return _bind(machine, address, port, both=False, shared=shared)


def _bind(machine: Machine, address: str, port: int, *, both: bool, shared: bool) -> socket.socket:
    family: Family = family_of(address)
    made = machine.socket(socket.AF_INET6 if family == IPV6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        if sys.platform == "win32":  # there SO_REUSEADDR lets another process bind to the same port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _share(made, on=shared)
        if family == IPV6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        made.bind(route.socket_address(machine.addresses, address, port))
    except BaseException:
        made.close()
        raise
    return made


class Port:
    """An address on which something is served. A new one is opened before the old one is closed.

    Attributes:
        at: the address that is open; None if none is.
    """

    def __init__(
        self,
        machine: Machine,
        what: str,
        handler: Handler,
        *,
        failed: Callable[[str], None] = lambda _: None,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """Nothing is open before `run`.

        Args:
            machine: the host.
            what: what is served there, for messages.
            handler: answers.
            failed: called once if the port cannot be opened.
            retry_seconds: when to try again.
        """
        self._machine = machine
        self._what = what
        self._handler = handler
        self._failed = failed
        self._retry_seconds = retry_seconds
        self._wanted: At | None = None
        self._hard_fail = False
        self.at: At | None = None
        self._listener: OpenPort | None = None
        self._reserved: tuple[At, socket.socket] | None = None
        self._changed = asyncio.Event()
        self._said = ""

    def reserve(self, address: At | None, *, hard_fail: bool) -> None:
        """Binds an address that may be wanted next, so that it is known beforehand whether it can be had.

        Raises:
            OSError: it cannot, and with `hard_fail` this is fatal.
        """
        self.release()
        if address is None or address == self.at:
            return
        try:
            self._reserved = address, self._bind(address)
        except OSError as e:
            if hard_fail:
                raise OSError(e.errno, self._message(address, e)) from e

    def release(self) -> None:
        """What was reserved is not wanted."""
        if self._reserved is not None:
            self._reserved[1].close()
            self._reserved = None

    def want(self, address: At | None, *, hard_fail: bool) -> None:
        """This is to be open from now on; None for nothing.

        Args:
            address: where to listen.
            hard_fail: `run` ends with the error if it cannot be opened and nothing else is open.
        """
        self._wanted, self._hard_fail = address, hard_fail
        self._changed.set()

    async def run(self) -> None:
        """Keeps what is wanted open until it is cancelled.

        Raises:
            OSError: it cannot be opened, and that is fatal.
        """
        try:
            while True:
                self._changed.clear()
                done = await self._follow()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if done else self._retry_seconds):
                        await self._changed.wait()
        finally:
            self.release()
            self._close()

    async def _follow(self) -> bool:
        """Opens what is wanted, and then closes what was open; returns whether that is done."""
        wanted = self._wanted
        if wanted == self.at:
            return True
        if wanted is None:
            self._close()
            return True
        reserved, self._reserved = self._reserved, None
        try:
            if reserved is not None and reserved[0] == wanted:
                sock = reserved[1]
            else:
                if reserved is not None:
                    reserved[1].close()
                sock = self._bind(wanted)
            listener = await Door().open(self._handler, sock)
        except OSError as e:
            message = self._message(wanted, e)
            if self._hard_fail and self._listener is None:
                raise OSError(e.errno, message) from e
            if message != self._said:
                self._said = message
                log.error(  # noqa: TRY400 the message is complete
                    "%(reason)s; trying again every %(seconds)g s",
                    {"reason": message, "seconds": self._retry_seconds},
                )
                self._failed(message)
            return False
        self._close()
        for each in listener.server.sockets:
            _share(each, on=False)
        self._said, self._listener, self.at = "", listener, wanted
        log.info("Serving %(listener)s on %(address)s", {"listener": self._what, "address": join(*wanted)})
        return True

    def _bind(self, address: At) -> socket.socket:
        """Binds an address. Our own listener may have its port on another address, which overlaps."""
        if self._listener is None or self.at is None or self.at[1] != address[1]:
            return bind(self._machine, *address)
        for sock in self._listener.server.sockets:
            _share(sock, on=True)
        return bind(self._machine, *address, shared=True)

    def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = self.at = None

    def _message(self, address: At, error: OSError) -> str:
        return f"{self._what} cannot be served on {join(*address)}: {error.strerror or error}"


def _share(sock: socket.socket | TransportSocket, *, on: bool) -> None:
    """Says whether another socket may have the port of this one; Windows has nothing like it."""
    if sys.platform != "win32":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(on))


def allow_many_files() -> None:
    """Raises the limit of open files as far as allowed: each port is one, and the default is as low as 1,024.

    Windows has no such limit.
    """
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
