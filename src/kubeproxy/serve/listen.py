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
from collections.abc import Callable
from typing import Final

from kubeproxy.api.addresses import IPV6, Family, family_of, join
from kubeproxy.machine.base import Machine
from kubeproxy.netlink import route
from kubeproxy.serve.http import Door
from kubeproxy.serve.message import Handler

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 5.0
_UNSPECIFIED = {"0.0.0.0", "::"}


def bind(machine: Machine, address: str, port: int, *, single: bool = False) -> socket.socket:
    """Makes a TCP socket that is bound.

    Args:
        machine: the host.
        address: an IP address.
        port: a port.
        single: an unspecified address stands for its own family only.

    Raises:
        OSError: the address is not on this host, or the port is in use.
    """
    if address in _UNSPECIFIED and not single:
        try:
            return _bind(machine, "::", port, both=True)
        except OSError as e:
            if e.errno not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
                raise
        address = "0.0.0.0"  # this kernel has no IPv6
    return _bind(machine, address, port, both=False)


def _bind(machine: Machine, address: str, port: int, *, both: bool) -> socket.socket:
    family: Family = family_of(address)
    made = machine.socket(socket.AF_INET6 if family == IPV6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        if sys.platform == "win32":  # there SO_REUSEADDR lets another process bind to the same port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == IPV6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        made.bind(route.socket_address(machine.addresses, address, port))
    except BaseException:
        made.close()
        raise
    return made


async def hold(
    machine: Machine,
    what: str,
    handler: Handler,
    address: tuple[str, int],
    *,
    hard_fail: bool,
    failed: Callable[[str], None] = lambda _: None,
    retry_seconds: float = RETRY_SECONDS,
) -> None:
    """Keeps a port open until it is cancelled.

    Args:
        machine: the host.
        what: what is served, for messages.
        handler: answers requests.
        address: the address and port.
        hard_fail: whether to raise instead of retrying.
        failed: called once with a message if the port cannot be opened.
        retry_seconds: seconds between two attempts.

    Raises:
        OSError: the port cannot be opened, with `hard_fail`.
    """
    where = join(*address)
    reported = ""
    while True:
        try:
            listener = await Door().open(handler, bind(machine, *address))
        except OSError as e:
            message = f"{what} cannot be served on {where}: {e.strerror or e}"
            if hard_fail:
                raise OSError(e.errno, message) from e
            if message != reported:
                reported = message
                log.error(  # noqa: TRY400 the message says it all
                    "%(reason)s; trying again every %(seconds)g s",
                    {"reason": message, "seconds": retry_seconds},
                )
                failed(message)
            await asyncio.sleep(retry_seconds)
            continue
        log.info("Serving %(listener)s on %(address)s", {"listener": what, "address": where})
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            listener.close()


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
