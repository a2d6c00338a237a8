"""Lists and deletes tracked flows over ctnetlink.

The connection table may have hundreds of thousands of flows, of which only a few are needed. So the kernel
filters them (CTA_FILTER, since 5.8): by protocol, by the destination of the client, and by the source of the
answers. This has limits: the kernel does not compare IPv6 addresses correctly, and does not compare the ports
of SCTP. Of a listed flow, only the fields that are needed to check it are decoded, at fixed offsets of the
message; the complete message is decoded only for flows that are deleted. A flow is deleted by its original
tuple, zone and ID, so that a newer flow with the same addresses is not deleted by mistake.

Addresses and ports are bytes in network order. A *place* is an address followed by a port.

Source: linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c.
"""

import errno
import struct
from collections.abc import Iterator, Sequence
from socket import AF_INET, AF_INET6
from typing import Final, NamedTuple

from kubeproxy import protocols
from kubeproxy.netlink import wire
from kubeproxy.netlink.namespace import Namespace

SCTP, TCP, UDP = protocols.SCTP, protocols.TCP, protocols.UDP

_SUBSYSTEM = 1 << 8
GET, _DELETE, _GET_STATS_CPU, _GET_STATS = (_SUBSYSTEM | kind for kind in (1, 2, 4, 5))
_TUPLE_ORIG, _TUPLE_REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
STATUS, PROTOCOL_INFO, STATUS_MASK = 3, 4, 26
TCP_INFO, TCP_STATE = 1, 1
SEEN_REPLY, _ASSURED = 2, 4
_SYN_SENT = 1
_TCP_STATES = (
    "NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE", "SYN_SENT2",
)  # fmt: skip
"""Source: enum tcp_conntrack."""

_TUPLE_IP, _TUPLE_PROTO, _TUPLE_ZONE = 1, 2, 3
_PROTO_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_V4_SOURCE, _V4_DESTINATION, _V6_SOURCE, _V6_DESTINATION = 1, 2, 3, 4
_V4_PLACE = 6
_FILTER_ORIG, _FILTER_REPLY = 1, 2
_BY_SOURCE, _BY_DESTINATION, _BY_NUMBER, _BY_SOURCE_PORT, _BY_DESTINATION_PORT = 1, 2, 8, 16, 32
_ENTRIES, _MOST_ENTRIES = 1, 2
_WITH_PORTS = frozenset({TCP, UDP, SCTP})
NFGENMSG = struct.Struct(">BBH")
_ATTRIBUTE = struct.Struct("=HH")
_BATCH = 500
_UNFILTERED = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
"""The errors of kernels that support filters, but not the requested one."""


class _Layout(NamedTuple):
    """The layout of the message of a flow with ports, after its nfgenmsg.

    Attributes:
        head: the length, destination address, protocol and destination port of the original tuple, and the
            length, source address and source port of the reply tuple.
        length: the length that both tuples have in this layout; a tuple with a zone, or without ports, has
            another one.
    """

    head: struct.Struct
    length: int


_LAYOUTS: dict[int, _Layout] = {
    # After the first tuple's header (4): IP header 4, source 4 + n, destination 4 + n; PROTO header 4, number
    # 4 + 4, ports 4 + 4 each. The second tuple has the same layout.
    AF_INET: _Layout(struct.Struct("=H2x 4x 8x 4x4s 4x 4xB3x 8x 4x2s2x H2x 4x 4x4s 8x 4x 8x 4x2s2x"), 52),
    AF_INET6: _Layout(
        struct.Struct("=H2x 4x 20x 4x16s 4x 4xB3x 8x 4x2s2x H2x 4x 4x16s 20x 4x 8x 4x2s2x"), 76
    ),
}


class ConntrackFlow(NamedTuple):
    """A tracked flow with ports.

    Attributes:
        protocol: its number.
        destination: the place to which the client sends.
        source: the place from which the answers are sent: the destination, or the place to which it was
            translated.
        message: the kernel's complete message, with its nfgenmsg.
    """

    protocol: int
    destination: bytes
    source: bytes
    message: memoryview

    @property
    def zone(self) -> int:
        """The conntrack zone of the packets of its client; 0 unless a rule assigns zones."""
        found = wire.attributes(self.message[4:])
        value = found.get(_ZONE) or wire.attributes(found[_TUPLE_ORIG]).get(_TUPLE_ZONE)
        return 0 if value is None else int.from_bytes(value)

    @property
    def original(self) -> bytes:
        """Its original tuple as the kernel writes it: the addresses and ports of its client's packets."""
        length, _ = _ATTRIBUTE.unpack_from(self.message, 4)
        return bytes(self.message[4 : 4 + length])

    @property
    def client(self) -> bytes:
        """The place from which the client sends."""
        found = _tuple(wire.attributes(self.message[4:])[_TUPLE_ORIG])
        return b"" if found is None else found[1]

    @property
    def state(self) -> str:
        """The state of a TCP connection as conntrack names it; of others ASSURED, REPLIED or UNREPLIED."""
        found = wire.attributes(self.message[4:])
        number = tcp_state(found.get(PROTOCOL_INFO))
        if number is not None:
            return _TCP_STATES[number] if number < len(_TCP_STATES) else str(number)
        status = int.from_bytes(found.get(STATUS, b""))
        return "ASSURED" if status & _ASSURED else "REPLIED" if status & SEEN_REPLY else "UNREPLIED"

    @property
    def unanswered(self) -> bool:
        """Whether it is a TCP connection in state SYN_SENT without a reply."""
        found = wire.attributes(self.message[4:])
        if self.protocol != TCP or not found.keys() >= {STATUS, PROTOCOL_INFO}:
            return False
        status = int.from_bytes(found[STATUS])
        return tcp_state(found[PROTOCOL_INFO]) == _SYN_SENT and not status & SEEN_REPLY

    @property
    def name(self) -> bytes:
        """The attributes that identify this flow."""
        found = wire.attributes(self.message[4:])
        return wire.nested(_TUPLE_ORIG, bytes(found[_TUPLE_ORIG])) + b"".join(
            wire.attribute(kind, bytes(found[kind])) for kind in (_ZONE, _ID) if kind in found
        )


class Usage(NamedTuple):
    """The number of tracked flows and its limit; 0 if the kernel does not report it."""

    entries: int
    most: int


def usage(namespace: Namespace) -> Usage:
    """The number of entries of the connection table and its limit.

    Raises:
        OSError: the kernel has no ctnetlink, or we lack CAP_NET_ADMIN.
    """
    with wire.Socket(namespace, wire.NETFILTER) as kernel:
        for reply in kernel.request(_GET_STATS, NFGENMSG.pack(0, 0, 0)):
            found = wire.attributes(reply.body[4:])
            return Usage(*(int.from_bytes(found.get(kind, b"")) for kind in (_ENTRIES, _MOST_ENTRIES)))
    raise OSError(errno.ENOTSUP, "no count of tracked flows")


_COUNTERS: Final = {
    2: "found", 4: "invalid", 8: "insert", 9: "insert_failed", 10: "drop", 11: "early_drop", 12: "error",
    14: "clash_resolve", 15: "chaintoolong",
}  # fmt: skip


def counters(namespace: Namespace) -> dict[str, int]:
    """The counters of connection tracking since the namespace exists, summed over all processors.

    Their names are those that `conntrack -S` prints.

    Raises:
        OSError: the kernel has no ctnetlink, or we lack CAP_NET_ADMIN.
    """
    total = dict.fromkeys(_COUNTERS.values(), 0)
    with wire.Socket(namespace, wire.NETFILTER) as kernel:
        for reply in kernel.dump(_GET_STATS_CPU, NFGENMSG.pack(0, 0, 0)):
            for kind, value in wire.attributes(reply.body[4:]).items():
                if kind in _COUNTERS:
                    total[_COUNTERS[kind]] += int.from_bytes(value)
    return total


def flows(
    namespace: Namespace,
    family: int,
    protocol: int,
    *,
    destination: bytes = b"",
    source: bytes = b"",
    unanswered: bool = False,
) -> Iterator[ConntrackFlow]:
    """Lists flows.

    A kernel that does not support the filter lists more flows, so the caller must check each flow.

    Flows that are added or removed at the same time may be missing or listed twice.

    Args:
        namespace: the network namespace.
        family: AF_INET or AF_INET6.
        protocol: the number of a protocol with ports.
        destination: the place to which the client sends, or only a port; empty for any.
        source: the place from which the answers are sent; empty for any.
        unanswered: list only flows without a reply (since Linux 5.15).

    Raises:
        OSError: the kernel has no ctnetlink, or we lack CAP_NET_ADMIN.
    """
    body = NFGENMSG.pack(family, 0, 0)
    if unanswered:
        body += wire.be32(STATUS, 0) + wire.be32(STATUS_MASK, SEEN_REPLY)
    with wire.Socket(namespace, wire.NETFILTER) as kernel:
        try:
            yield from _list(kernel, family, protocol, body + _filter(protocol, destination, source))
        except wire.NetlinkError as e:
            if e.errno in _UNFILTERED:
                yield from _list(kernel, family, protocol, NFGENMSG.pack(family, 0, 0))
            elif e.errno != errno.EINTR:
                raise


def _list(kernel: wire.Socket, family: int, protocol: int, body: bytes) -> Iterator[ConntrackFlow]:
    head, expected = _LAYOUTS[AF_INET6 if family == AF_INET6 else AF_INET]
    size = 4 + head.size
    for reply in kernel.dump(GET, body):
        message = reply.body
        if len(message) >= size:
            first, destination, number, port, second, source, source_port = head.unpack_from(message, 4)
            if first == second == expected:
                if number == protocol:
                    yield ConntrackFlow(number, destination + port, source + source_port, message)
                continue
        flow = _read(message)
        if flow is not None and flow.protocol == protocol:
            yield flow


def decode(message: memoryview) -> ConntrackFlow | None:
    """Decodes the kernel's message about a flow, with its nfgenmsg; None if its protocol has no ports."""
    layout = _LAYOUTS.get(message[0])
    if layout is not None and len(message) >= 4 + layout.head.size:
        first, destination, number, port, second, source, source_port = layout.head.unpack_from(message, 4)
        if first == second == layout.length and number in _WITH_PORTS:
            return ConntrackFlow(number, destination + port, source + source_port, message)
    return _read(message)


def tcp_state(protocol_info: memoryview | bytes | None) -> int | None:
    """The state of a TCP connection (enum tcp_conntrack), from its attribute CTA_PROTOINFO.

    None if there is none.
    """
    info = wire.attributes(wire.attributes(protocol_info or b"").get(TCP_INFO, b""))
    return info[TCP_STATE][0] if TCP_STATE in info else None


def _read(message: memoryview) -> ConntrackFlow | None:
    """Decodes a flow whose message has another layout: its tuples may have zones, or no ports."""
    found = wire.attributes(message[4:])
    original, reply = (_tuple(found[kind]) for kind in (_TUPLE_ORIG, _TUPLE_REPLY))
    if original is None or reply is None:
        return None
    return ConntrackFlow(original[0], original[2], reply[1], message)


def _tuple(data: memoryview) -> tuple[int, bytes, bytes] | None:
    """Protocol, source and destination place of a tuple; None if it has no ports."""
    found = wire.attributes(data)
    addresses, ports = wire.attributes(found[_TUPLE_IP]), wire.attributes(found[_TUPLE_PROTO])
    if not ports.keys() >= {_SOURCE_PORT, _DESTINATION_PORT}:
        return None
    source, destination = (
        (_V4_SOURCE, _V4_DESTINATION) if _V4_SOURCE in addresses else (_V6_SOURCE, _V6_DESTINATION)
    )
    return (
        ports[_PROTO_NUMBER][0],
        bytes(addresses[source]) + bytes(ports[_SOURCE_PORT]),
        bytes(addresses[destination]) + bytes(ports[_DESTINATION_PORT]),
    )


def _filter(protocol: int, destination: bytes, source: bytes) -> bytes:
    """The attributes of a request with which the kernel lists only such flows."""
    original, reply = (
        _part(kind, protocol, place, address, port)
        for kind, place, address, port in (
            (
                _TUPLE_ORIG,
                destination,
                (_V4_DESTINATION, _BY_DESTINATION),
                (_DESTINATION_PORT, _BY_DESTINATION_PORT),
            ),
            (_TUPLE_REPLY, source, (_V4_SOURCE, _BY_SOURCE), (_SOURCE_PORT, _BY_SOURCE_PORT)),
        )
    )
    flags = (
        wire.attribute(kind, struct.pack("=I", part[0]))
        for kind, part in ((_FILTER_ORIG, original), (_FILTER_REPLY, reply))
    )
    return original[1] + reply[1] + wire.nested(_FILTER, *flags)


def _part(
    kind: int, protocol: int, place: bytes, address: tuple[int, int], port: tuple[int, int]
) -> tuple[int, bytes]:
    """Flags for the parts of a tuple that the kernel must compare, and the tuple.

    `address` and `port` are the types and flags of these parts.
    """
    flags, addresses, ports = _BY_NUMBER, b"", wire.attribute(_PROTO_NUMBER, bytes([protocol]))
    if place:
        flags |= port[1]
        ports += wire.attribute(port[0], place[-2:])
    # Kernels invert the comparison of IPv6 addresses, and list the flows with any other address. So only the
    # port is compared.
    if len(place) == _V4_PLACE:
        flags |= address[1]
        addresses = wire.nested(_TUPLE_IP, wire.attribute(address[0], place[:-2]))
    return flags, wire.nested(kind, addresses, wire.nested(_TUPLE_PROTO, ports))


def delete(namespace: Namespace, listed: Sequence[ConntrackFlow]) -> int:
    """Deletes flows, each only if it is the same flow that was listed; returns how many still existed.

    Raises:
        OSError: the kernel refused to delete some: the first error, after all were tried.
    """
    deleted = len(listed)
    refused: wire.NetlinkError | None = None
    with wire.Socket(namespace, wire.NETFILTER) as kernel:
        for start in range(0, len(listed), _BATCH):
            for error in _delete(kernel, listed[start : start + _BATCH]):
                deleted -= 1
                if error.errno != errno.ENOENT:
                    refused = refused or error
    if refused is not None:
        raise refused
    return deleted


def delete_unanswered(namespace: Namespace, listed: Sequence[ConntrackFlow]) -> int:
    """Deletes TCP connections as `delete` does, but each only if it still has no reply.

    The kernel cannot check this when it deletes, so each connection is requested immediately before.

    Raises:
        OSError: the kernel refused to delete some: the first error, after all were tried.
    """
    deleted = 0
    refused: wire.NetlinkError | None = None
    with wire.Socket(namespace, wire.NETFILTER) as kernel:
        for flow in listed:
            try:
                replies = kernel.request(GET, bytes(flow.message[:4]) + flow.name)
                now = next((_read(reply.body) for reply in replies), None)
                if now is None or now.name != flow.name or not now.unanswered:
                    continue
                errors = list(_delete(kernel, [flow]))
            except wire.NetlinkError as e:
                errors = [e]
            deleted += not errors
            refused = next((e for e in errors if e.errno != errno.ENOENT), None) or refused
    if refused is not None:
        raise refused
    return deleted


def _delete(kernel: wire.Socket, batch: Sequence[ConntrackFlow]) -> Iterator[wire.NetlinkError]:
    """Deletes flows with one datagram, in their order.

    The kernel answers with errors, and acknowledges the last one.
    """
    last = len(batch) - 1
    numbers = [kernel.next_sequence() for _ in batch]
    kernel.send(
        b"".join(
            wire.message(
                _DELETE,
                wire.REQUEST | (wire.ACK if i == last else 0),
                bytes(flow.message[:4]) + flow.name,
                numbers[i],
            )
            for i, flow in enumerate(batch)
        )
    )
    while True:
        for reply in kernel.receive():
            if reply.type != wire.ERROR:
                continue
            try:
                wire.check(reply)
            except wire.NetlinkError as e:
                yield e
            if reply.sequence == numbers[-1]:
                return
