"""The destination of a client before the kernel's rules translated it, from connection tracking.

For TCP it is an option of the socket. For UDP it is requested from the kernel over netlink, once for each
flow: the entry whose answers are sent from our address to the client.

Sources: linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h, linux/netfilter/nfnetlink_conntrack.h.
"""

import socket
import struct

from kubeproxy.netlink import wire
from kubeproxy.relay.values import Target

_SO_ORIGINAL_DST = 80  # IP6T_SO_ORIGINAL_DST, too
_GET = 1 << 8 | 1
_TUPLE_ORIGINAL, _TUPLE_REPLY, _STATUS = 1, 2, 3
_TUPLE_ADDRESSES, _TUPLE_PROTOCOL = 1, 2
_SOURCE4, _DESTINATION4, _SOURCE6, _DESTINATION6 = 1, 2, 3, 4
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_DESTINATION_TRANSLATED = 0x20


def of_connection(sock: socket.socket) -> Target | None:
    """The destination of a TCP connection before it was translated.

    None if it is not known or was not translated.
    """
    try:
        if sock.family == socket.AF_INET:
            raw = sock.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, 16)
            found = socket.inet_ntop(socket.AF_INET, raw[4:8])
        else:
            raw = sock.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, 28)
            found = socket.inet_ntop(socket.AF_INET6, raw[8:24])
    except OSError:
        return None
    target = found, int.from_bytes(raw[2:4])
    return None if target == sock.getsockname()[:2] else target


class Flows:
    """Looks up the destinations of UDP flows."""

    def __init__(self) -> None:
        """Opens a socket.

        Raises:
            OSError: the kernel does not support it.
        """
        self._socket = wire.Socket(socket, wire.NETFILTER)

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def destination(self, client: Target, own: Target) -> Target | None:
        """The destination of a flow before it was translated; None if it is not known or was not translated.

        Args:
            client: the sender.
            own: our address and port at which its packets arrive.
        """
        body = struct.pack(">BBH", socket.AF_INET6 if ":" in own[0] else socket.AF_INET, 0, 0)
        body += wire.nested(_TUPLE_REPLY, *_tuple(own, client))
        try:
            replies = self._socket.request(_GET, body)
        except OSError:
            return None
        for reply in replies:
            found = wire.attributes(reply.body[4:])
            if int.from_bytes(found[_STATUS]) & _DESTINATION_TRANSLATED:
                return _destination(wire.attributes(found[_TUPLE_ORIGINAL]))
        return None


def _tuple(source: Target, destination: Target) -> tuple[bytes, bytes]:
    domain = socket.AF_INET6 if ":" in source[0] else socket.AF_INET
    kinds = (_SOURCE6, _DESTINATION6) if domain == socket.AF_INET6 else (_SOURCE4, _DESTINATION4)
    return (
        wire.nested(
            _TUPLE_ADDRESSES,
            wire.attribute(kinds[0], socket.inet_pton(domain, source[0].partition("%")[0])),
            wire.attribute(kinds[1], socket.inet_pton(domain, destination[0].partition("%")[0])),
        ),
        wire.nested(
            _TUPLE_PROTOCOL,
            wire.attribute(_NUMBER, bytes([socket.IPPROTO_UDP])),
            wire.attribute(_SOURCE_PORT, source[1].to_bytes(2)),
            wire.attribute(_DESTINATION_PORT, destination[1].to_bytes(2)),
        ),
    )


def _destination(found: dict[int, memoryview]) -> Target:
    addresses = wire.attributes(found[_TUPLE_ADDRESSES])
    packed = bytes(addresses[_DESTINATION4] if _DESTINATION4 in addresses else addresses[_DESTINATION6])
    port = int.from_bytes(wire.attributes(found[_TUPLE_PROTOCOL])[_DESTINATION_PORT])
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed), port
