"""Finds and destroys TCP sockets of a network namespace over sock_diag (sock_diag(7)).

A socket that is destroyed ends at once, with ECONNABORTED, also if it only waits for data; the other end gets
a reset. The kernel needs CONFIG_INET_DIAG_DESTROY, and the process CAP_NET_ADMIN.

Source: linux/sock_diag.h, linux/inet_diag.h, net/ipv4/inet_diag.c.
"""

import errno
import struct
from socket import AF_INET, AF_INET6
from typing import Final

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
_V4_PLACE: Final = 6


class TCPSockets(wire.Closing):
    """The TCP sockets of a network namespace."""

    def __init__(self, namespace: Sockets) -> None:
        """Opens a netlink socket.

        Raises:
            OSError: the namespace cannot be entered, or the kernel has no sock_diag.
        """
        self._socket: wire.Socket = wire.Socket(namespace, _PROTOCOL)

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
            replies = self._socket.request(_BY_FAMILY, _request(family, wanted))
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

    def destroy(self, identity: bytes) -> bool:
        """Destroys a socket that was found, and no other that has its addresses now.

        Returns:
            Whether it still existed.

        Raises:
            OSError: the kernel refused.
        """
        try:
            self._socket.request(_DESTROY, _request(identity[0], identity[1:]))
        except wire.NetlinkError as e:
            if e.errno == errno.ENOENT:
                return False
            raise
        return True


def _request(family: int, identity: bytes) -> bytes:
    return _HEAD.pack(family, protocols.TCP, 0, 0, _ALL_STATES) + identity
