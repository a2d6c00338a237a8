"""Sockets that the programs connected to an endpoint, with the front that was asked for.

Connection tracking sees such a connection as one to the endpoint, so what is done about flows of removed
endpoints is done to the sockets instead: they are destroyed, and their programs connect again. A socket that
was connected to the endpoint by its own address is never among them. What was asked for is known

    of UDP     from the map `reverse`, by the cookie of the socket and the endpoint
    of TCP     from the storage of the socket, if getpeername is to return the front (`peerNames`). Reading it
               needs CAP_BPF

With the scope `all` sockets are searched in all network namespaces, which needs CAP_SYS_ADMIN.
"""

import contextlib
import errno
import logging
from collections.abc import Iterator, Sequence
from socket import AF_INET, AF_INET6
from typing import NamedTuple

from kubeproxy import protocols
from kubeproxy.api.addresses import IPV4
from kubeproxy.backends.ebpf import layout, names
from kubeproxy.backends.ebpf.prepare import host
from kubeproxy.backends.sockets import HINTS, why
from kubeproxy.linux.bpf.maps import BpfObject, HashMap
from kubeproxy.machine.base import Machine
from kubeproxy.model.node import NodeConfig
from kubeproxy.netlink.namespace import Sockets
from kubeproxy.netlink.sock_diag import ConnectedSocket, InetSockets

log = logging.getLogger(__name__)

_HINTS = {
    **HINTS,
    errno.EPERM: f"{HINTS[errno.EPERM]}, and CAP_BPF to know which connections of TCP are concerned",
    errno.ENOENT: "the kernel needs CONFIG_INET_DIAG and CONFIG_INET_UDP_DIAG, modules inet_diag, tcp_diag and udp_diag",
}


class SocketFlow(NamedTuple):
    """A socket as a flow, see `model.flows.TrackedFlow`.

    Attributes:
        protocol: its protocol.
        destination: the front.
        source: the endpoint.
        zone: 0.
        client: the place it sends from.
        namespace: its network namespace.
        identity: what it is destroyed by.
    """

    protocol: int
    destination: bytes
    source: bytes
    zone: int
    client: bytes
    namespace: Sockets
    identity: bytes


class ConnectSockets:
    """See `backends.base.TranslatedSockets`.

    Attributes:
        destroyed: how many sockets were destroyed so far.
    """

    def __init__(self, machine: Machine, node: NodeConfig) -> None:
        """Nothing is done before the first call.

        Args:
            machine: the host.
            node: the node under a family.
        """
        self._machine = machine
        self._node = node
        self._layout = layout.LAYOUTS[node.family]
        self._complaint = ""
        self.destroyed = 0

    def flows(self, protocol: int, *, destination: bytes = b"", source: bytes = b"") -> Iterator[SocketFlow]:
        """See `TranslatedSockets`; what cannot be found is logged."""
        complaint = ""
        try:
            table = self._table(protocol)
            if table is not None:
                with contextlib.closing(table):
                    for namespace in self._namespaces():
                        yield from self._find(namespace, protocol, table, destination, source)
        except OSError as e:
            complaint = why(e, _HINTS)
        self._complain(complaint)

    def end(self, flows: Sequence[SocketFlow]) -> None:
        """See `TranslatedSockets`; errors are logged."""
        complaint = ""
        for each in flows:
            try:
                with InetSockets(each.namespace, each.protocol) as diag:
                    self.destroyed += diag.destroy(each.identity)
            except OSError as e:
                complaint = why(e, _HINTS)
        self._complain(complaint)

    def _table(self, protocol: int) -> BpfObject | None:
        """What is known of the sockets of a protocol; None if there is nothing."""
        name = {protocols.UDP: "reverse", protocols.TCP: "peers"}.get(protocol)
        folder = host(self._machine, self._node).folder(names.VERSION)
        pin = folder.get(f"{name}{names.digit(self._node.family)}") if name is not None else None
        return HashMap(pin.release()) if pin is not None and protocol == protocols.UDP else pin

    def _namespaces(self) -> Iterator[Sockets]:
        """Those with sockets that the programs connect."""
        assert self._node.connects is not None
        if self._node.connects.everywhere:
            yield from self._machine.namespaces()
        else:
            yield self._machine

    def _find(
        self, namespace: Sockets, protocol: int, table: BpfObject, destination: bytes, source: bytes
    ) -> Iterator[SocketFlow]:
        families = (AF_INET, AF_INET6) if self._node.family == IPV4 else (AF_INET6,)
        storage = -1 if isinstance(table, HashMap) else table.fd
        with InetSockets(namespace, protocol) as diag:
            for family in families:
                for each in list(diag.connected(family, int.from_bytes(source[-2:]), storage)):
                    if len(each.peer) != self._layout.address + 2 or (source and each.peer != source):
                        continue
                    front = self._front(each, table)
                    if front and (not destination or front.endswith(destination)):
                        yield SocketFlow(protocol, front, each.peer, 0, each.client, namespace, each.identity)

    def _front(self, sock: ConnectedSocket, table: BpfObject) -> bytes:
        """The front that a socket asked for; b"" if it was not connected by the programs."""
        size, slot = len(sock.peer), self._layout.slot
        if isinstance(table, HashMap):
            return (table.get(sock.cookie + sock.peer.ljust(slot, b"\0")) or b"")[:size]
        return sock.stored[:size] if sock.stored[slot : slot + size] == sock.peer else b""

    def _complain(self, complaint: str) -> None:
        if complaint and complaint != self._complaint:
            log.warning(
                "%(ipFamily)s: sockets that are connected to removed endpoints are not all destroyed, their programs are not"
                " answered: %(err)s",
                {"ipFamily": self._node.family, "err": complaint},
            )
        self._complaint = complaint
