"""Destroys the sockets of clients on this host whose connections are to end, in whichever network namespace.

A client that sends notices the end of its connection by a reset (`flows`). One that only waits does not, but
its socket can be destroyed. Sockets of Pods are in their network namespaces, which only a process with
CAP_SYS_ADMIN may enter, so this is done only if the configuration asks for it (`destroySockets`).

The socket of a connection is the one with exactly its four addresses and ports. If it is found in several
namespaces, it is not known which one it is, and none is destroyed.
"""

import contextlib
import errno
import logging
from collections.abc import Iterator, Sequence

from kubeproxy.backends.sockets import HINTS, why
from kubeproxy.machine.base import Machine
from kubeproxy.netlink.sock_diag import InetSockets

log = logging.getLogger(__name__)

_HINTS = {**HINTS, errno.ENOENT: "the kernel needs CONFIG_INET_DIAG, modules inet_diag and tcp_diag"}


class SocketDestroyer:
    """Destroys sockets of TCP clients. To be used by one thread at a time.

    Attributes:
        destroyed: how many sockets were destroyed so far.
    """

    def __init__(self, machine: Machine) -> None:
        """Does nothing yet.

        Args:
            machine: the host.
        """
        self._machine = machine
        self._complaint = ""
        self.destroyed = 0

    def destroy(self, connections: Sequence[tuple[bytes, bytes]]) -> None:
        """Destroys the sockets of connections, as far as they are on this host; errors are logged.

        Args:
            connections: the place that each client sends from, and the place that it sends to.
        """
        complaint = ""
        with contextlib.ExitStack() as stack:
            opened: list[InetSockets] = []
            try:
                opened += map(stack.enter_context, self._open())
            except OSError as e:  # those that were opened are used
                complaint = why(e, _HINTS)
            for client, destination in connections:
                try:
                    self._destroy(opened, client, destination)
                except OSError as e:
                    complaint = why(e, _HINTS)
        if complaint and complaint != self._complaint:
            log.warning(
                "Sockets of connections to removed endpoints are not all destroyed, those clients notice it when they"
                " send: %(err)s",
                {"err": complaint},
            )
        self._complaint = complaint

    def _open(self) -> Iterator[InetSockets]:
        for namespace in self._machine.namespaces():
            yield InetSockets(namespace)

    def _destroy(self, opened: Sequence[InetSockets], client: bytes, destination: bytes) -> None:
        found = [(each, identity) for each in opened if (identity := each.find(client, destination))]
        if len(found) == 1:
            ((sockets, identity),) = found
            self.destroyed += sockets.destroy(identity)
