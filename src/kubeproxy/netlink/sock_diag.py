"""Finds and destroys TCP and UDP sockets of a network namespace over sock_diag (sock_diag(7)).

A socket that is destroyed ends at once, with ECONNABORTED, also if it only waits for data; the other end of a
TCP connection gets a reset. The kernel needs CONFIG_INET_DIAG_DESTROY, and the process CAP_NET_ADMIN.

Source: linux/sock_diag.h, linux/inet_diag.h, net/ipv4/inet_diag.c.
"""

import errno
import struct
from collections.abc import Iterator
from socket import AF_INET, AF_INET6
from typing import Final, NamedTuple

from kubeproxy import protocols
from kubeproxy.netlink import wire
from kubeproxy.netlink.namespace import Sockets

_PROTOCOL: Final = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY, _DESTROY = 20, 21
_HEAD: Final = struct.Struct("=BBBBI")  # struct inet_diag_req_v2 up to its id
_ID_AT, _ID_BYTES = 4, 48  # struct inet_diag_sockid in struct inet_diag_msg
_ALL_STATES: Final = 0xFFFFFFFF
_NO_COOKIE: Final = 0xFFFFFFFF
_ADDRESS_BYTES: Final = 16
_V4_BYTES: Final = 4
_V4_PLACE: Final = _V4_BYTES + 2
_MESSAGE_BYTES: Final = 72  # struct inet_diag_msg
_ADDRESSES_AT: Final = 4
_MAPPED: Final = bytes(10) + b"\xff\xff"
_CONNECTED: Final = 1 << 1 | 1 << 2 | 1 << 8  # ESTABLISHED, SYN_SENT, CLOSE_WAIT
_ASK_STORAGES, _ASK_MAP = 2, 1  # INET_DIAG_REQ_SK_BPF_STORAGES, SK_DIAG_BPF_STORAGE_REQ_MAP_FD
_STORAGES, _VALUE = 20, 3  # INET_DIAG_SK_BPF_STORAGES, SK_DIAG_BPF_STORAGE_MAP_VALUE


class ConnectedSocket(NamedTuple):
    """A socket that is connected.

    Attributes:
        identity: what it is destroyed by.
        cookie: its number, in the machine's byte order; eBPF programs have the same.
        client: the place that it sends from, an address and a port in network order.
        peer: the place that it is connected to. An IPv4 address in a socket of IPv6 has four bytes here.
        stored: the value of the storage that was asked for.
    """

    identity: bytes
    cookie: bytes
    client: bytes
    peer: bytes
    stored: bytes = b""


class InetSockets(wire.Closing):
    """The sockets of a protocol in a network namespace."""

    def __init__(self, namespace: Sockets, protocol: int = protocols.TCP) -> None:
        """Opens a netlink socket.

        Args:
            namespace: the namespace.
            protocol: TCP or UDP.

        Raises:
            OSError: the namespace cannot be entered, or the kernel has no sock_diag.
        """
        self._socket: wire.Socket = wire.Socket(namespace, _PROTOCOL)
        self._protocol = protocol

    def find(self, client: bytes, destination: bytes) -> bytes | None:
        """The identity of the socket of a connection; None if it is not in this namespace.

        Args:
            client: the place that it sends from, an address and a port in network order.
            destination: the place that it is connected to.
        """
        family = AF_INET if len(client) == _V4_PLACE else AF_INET6
        wanted = b"".join(
            (
                client[-2:],
                destination[-2:],
                client[:-2].ljust(_ADDRESS_BYTES, b"\0"),
                destination[:-2].ljust(_ADDRESS_BYTES, b"\0"),
                struct.pack("=III", 0, _NO_COOKIE, _NO_COOKIE),
            )
        )
        try:
            replies = self._socket.request(_BY_FAMILY, self._request(family, wanted))
        except wire.NetlinkError as e:
            if e.errno == errno.ENOENT:
                return None
            raise
        for reply in replies:
            found = bytes(reply.body[_ID_AT : _ID_AT + _ID_BYTES])
            # A listening socket is found if there is no other: it belongs to no connection.
            if len(found) == _ID_BYTES and found[:36] == wanted[:36]:
                return bytes([family]) + found
        return None

    def connected(self, family: int, port: int = 0, storage: int = -1) -> Iterator[ConnectedSocket]:
        """Lists the sockets that are connected, or connect.

        Args:
            family: AF_INET or AF_INET6.
            port: only those connected to this port; 0 for all.
            storage: the descriptor of an eBPF map of kind sk_storage, of which the values are wanted; this
                needs CAP_BPF.

        Raises:
            OSError: the kernel refused.
        """
        wanted = bytes(2) + port.to_bytes(2) + bytes(_ID_BYTES - 4)
        body = _HEAD.pack(family, self._protocol, 0, 0, _CONNECTED) + wanted
        if storage >= 0:
            body += wire.nested(_ASK_STORAGES, wire.attribute(_ASK_MAP, struct.pack("=I", storage)))
        for reply in self._socket.dump(_BY_FAMILY, body):
            identity = bytes(reply.body[_ID_AT : _ID_AT + _ID_BYTES])
            client, peer = (_place(identity, number, family) for number in (0, 1))
            yield ConnectedSocket(
                bytes([family]) + identity, identity[-8:], client, peer, _stored(reply.body[_MESSAGE_BYTES:])
            )

    def destroy(self, identity: bytes) -> bool:
        """Destroys a socket that was found, and no other that has its addresses now.

        Returns:
            Whether it still existed.

        Raises:
            OSError: the kernel refused.
        """
        try:
            self._socket.request(_DESTROY, self._request(identity[0], identity[1:]))
        except wire.NetlinkError as e:
            if e.errno == errno.ENOENT:
                return False
            raise
        return True

    def _request(self, family: int, identity: bytes) -> bytes:
        return _HEAD.pack(family, self._protocol, 0, 0, _ALL_STATES) + identity


def _place(identity: bytes, number: int, family: int) -> bytes:
    """The place of one end, of struct inet_diag_sockid."""
    at = _ADDRESSES_AT + _ADDRESS_BYTES * number
    address = identity[at : at + (_V4_BYTES if family == AF_INET else _ADDRESS_BYTES)]
    return address.removeprefix(_MAPPED) + identity[2 * number : 2 * number + 2]


def _stored(data: memoryview) -> bytes:
    """The value of the storage among attributes of an answer; b"" if the socket has none."""
    for kind, value in wire.attribute_list(data) if data else ():
        if kind == _STORAGES:
            for _, storage in wire.attribute_list(value):
                return bytes(wire.attributes(storage).get(_VALUE, b""))
    return b""
