"""Traces packets: which rules they met, and with which verdict, as the kernel reports it.

A table of our own, which the kernel deletes with the socket that made it, has one rule in the hook where the
packets enter: it marks those of one flow, a limited number per second. The kernel then sends an event for
each rule that such a packet matches, in whichever table.

The answers of the endpoints are marked in the same way, where they come in.

Empty chains of that table, at the first and last place of the hooks that follow, show how far a packet came
and where it goes. So it is seen as well what other mechanisms do between these places: routing, legacy
iptables, IPVS.

Source: linux/netfilter/nf_tables.h (enum nft_trace_attributes), net/netfilter/nf_tables_trace.c.
"""

import errno
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from msgspec import Struct

from kubeproxy.netlink import wire
from kubeproxy.netlink.namespace import Namespace
from kubeproxy.netlink.nft import expressions as x
from kubeproxy.netlink.nft import messages
from kubeproxy.netlink.nft.kernel import NftKernel
from kubeproxy.netlink.nft.messages import (
    FORWARD,
    INPUT,
    IP,
    OUTPUT,
    OWNER,
    POSTROUTING,
    PREROUTING,
    Hook,
    NftMessage,
    TableName,
)

PER_SECOND: Final = 50
"""The maximum number of packets per second that are traced: each causes about twenty events."""

_GROUP: Final = 9  # NFNLGRP_NFTRACE
_TRACE: Final = 10 << 8 | 17
_TABLE, _CHAIN, _RULE_HANDLE, _TYPE, _VERDICT, _ID = 1, 2, 3, 4, 5, 6
_NETWORK_HEADER, _TRANSPORT_HEADER, _INPUT_INTERFACE, _POLICY = 8, 9, 10, 16
_POLICY_EVENT: Final = 1
_FIRST: Final = -(1 << 31) + 1
_LAST: Final = (1 << 31) - 2
"""Priorities. Connection tracking has the very last one, at which it confirms flows."""

_BEFORE_ALL: Final = -350
_BUFFER_BYTES: Final = 8 << 20
_SYN, _SYN_ACK, _SYN_RST = b"\x02", b"\x12", b"\x06"
_RST: Final = 0x04
_FLAGS_AT: Final = 13
_TCP: Final = 6
_SLASH: Final = {IP: (12, 16, 4), messages.IP6: (8, 24, 16)}
"""Where source and destination address are in a header, and their size."""

START, ANSWER, FORWARDED, RECEIVED, DELIVERED, SENT = (
    *("trace", "answers", "forward", "input", "delivered", "sent"),
)
"""The chains of our table: where packets and answers are marked, the beginnings of hooks forward and input,
and the ends of input and postrouting."""

_CHAINS: Final = (
    (FORWARDED, FORWARD, _FIRST),
    (RECEIVED, INPUT, _FIRST),
    (DELIVERED, INPUT, _LAST),
    (SENT, POSTROUTING, _LAST),
)

FAMILIES: Final = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}


class TracedFlow(Struct, frozen=True, gc=False):
    """The packets to trace.

    Attributes:
        family: IP or IP6.
        protocol: the number of the protocol.
        source: the source address; b"" for any.
        destination: the destination address.
        port: the destination port.
        own: they are sent by processes of this host; otherwise they are received.
        endpoints: the addresses and ports whose first answers are traced, too, where this host receives them.
    """

    family: int
    protocol: int
    source: bytes
    destination: bytes
    port: int
    own: bool
    endpoints: tuple[tuple[bytes, int], ...] = ()


class TraceEvent(Struct, frozen=True, gc=False):
    """A rule, or a policy, that a packet matched; or a chain of our table that it passed.

    Attributes:
        packet: a number that all events of a packet have in common.
        family: the family of the table.
        table: its name.
        chain: the chain.
        handle: the handle of the rule; 0 for a policy.
        verdict: the verdict: messages.ACCEPT, DROP, JUMP and so on.
        target: the chain that it leads to.
        source: the source address and port of the packet; empty if the event does not have them.
        destination: the destination address and port.
        interface: the index of the interface that received the packet; 0 if the event does not have it.
        passed: the chain of our table that the packet passed; "" for a rule or policy of another table.
        reset: the packet resets its TCP connection.
        identity: bytes of the headers that no translation changes; empty if the event does not have them.
    """

    packet: int
    family: int
    table: str
    chain: str
    handle: int
    verdict: int
    target: str = ""
    source: bytes = b""
    destination: bytes = b""
    interface: int = 0
    passed: str = ""
    reset: bool = False
    identity: bytes = b""


class Tracer(wire.Closing):
    """Traces one flow until it is closed.

    Attributes:
        table: the table it made.
        losses: how often the kernel dropped events because the receive buffer was full.
    """

    def __init__(self, namespace: Namespace, flow: TracedFlow) -> None:
        """Starts it.

        Args:
            namespace: the network namespace.
            flow: the packets.

        Raises:
            OSError: the kernel refused: CAP_NET_ADMIN is missing, or it is older than 5.12.
        """
        self.table = TableName(flow.family, f"kube-proxy-explain-{os.getpid()}")
        self.losses = 0
        self._flow = flow
        self._socket: wire.Socket = wire.Socket(namespace, wire.NETFILTER, receive_buffer=_BUFFER_BYTES)
        self._kernel = NftKernel(namespace)
        try:
            self._socket.join(_GROUP)
            self._kernel.commit(list(_rules(self.table, flow)))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends it; the kernel deletes the table with its socket."""
        self._kernel.close()
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor, for an event loop to wait on."""
        return self._socket.fileno()

    def read(self) -> list[TraceEvent]:
        """The events since the last call."""
        found: list[TraceEvent] = []
        while True:
            count = len(found)
            try:
                found += [
                    _event(message, self.table.name)
                    for message in self._socket.receive(wait=False)
                    if message.type == _TRACE
                ]
            except OSError as e:
                if e.errno != errno.ENOBUFS:
                    raise
                self.losses += 1
                continue
            if len(found) == count:
                return found


def _rules(table: TableName, flow: TracedFlow) -> Iterator[NftMessage]:
    source_at, destination_at, size = _SLASH[flow.family]
    yield messages.add_table(table, "traces packets for kube-proxy explain", flags=OWNER)
    hook = OUTPUT if flow.own else PREROUTING
    yield messages.add_chain(table, START, Hook("filter", hook, _BEFORE_ALL))
    for name, passed, priority in _CHAINS:
        yield messages.add_chain(table, name, Hook("filter", passed, priority))
    mark = (x.limit(PER_SECOND), x.immediate(0, b"\1"), x.set_meta(0, x.META_TRACE))
    match = [
        x.payload(0, x.NETWORK_HEADER, destination_at, size),
        x.compare(0, flow.destination),
        x.meta(0, x.META_L4PROTO),
        x.compare(0, bytes([flow.protocol])),
        x.payload(0, x.TRANSPORT_HEADER, 2, 2),
        x.compare(0, flow.port.to_bytes(2)),
    ]
    if flow.source:
        match += [x.payload(0, x.NETWORK_HEADER, source_at, size), x.compare(0, flow.source)]
    if flow.protocol == _TCP:  # the first packets of connections
        match += [
            x.payload(0, x.TRANSPORT_HEADER, _FLAGS_AT, 1),
            x.bitwise(0, _SYN_ACK, bytes(1)),
            x.compare(0, _SYN),
        ]
    yield messages.add_rule(table, START, *match, *mark)
    if not flow.endpoints:
        return
    # After the other chain, which so sees first packets only.
    yield messages.add_chain(table, ANSWER, Hook("filter", PREROUTING, _BEFORE_ALL + 1))
    for address, port in flow.endpoints:
        yield messages.add_rule(table, ANSWER, *_answers(flow, address, port), *mark)


def _answers(flow: TracedFlow, address: bytes, port: int) -> Sequence[bytes]:
    """Matches what an endpoint answers to the first packet of a connection."""
    source_at, _, size = _SLASH[flow.family]
    match = [
        x.payload(0, x.NETWORK_HEADER, source_at, size),
        x.compare(0, address),
        x.meta(0, x.META_L4PROTO),
        x.compare(0, bytes([flow.protocol])),
        x.payload(0, x.TRANSPORT_HEADER, 0, 2),
        x.compare(0, port.to_bytes(2)),
    ]
    if flow.protocol == _TCP:
        match += [
            x.payload(0, x.TRANSPORT_HEADER, _FLAGS_AT, 1),
            x.bitwise(0, _SYN_RST, bytes(1)),
            x.compare(0, bytes(1), x.NOT_EQUAL),
        ]
    return match


def _event(message: wire.Message, ours: str) -> TraceEvent:
    a = wire.attributes(message.body[4:])
    table, chain = wire.string(a[_TABLE]), wire.string(a[_CHAIN])
    verdict, target = messages.ACCEPT, ""
    if int.from_bytes(a[_TYPE]) == _POLICY_EVENT:
        verdict = int.from_bytes(a.get(_POLICY, b"\0\0\0\1"))
    elif _VERDICT in a:
        found = wire.attributes(a[_VERDICT])
        (verdict,) = struct.unpack(">i", found[1])
        target = wire.string(found[2]) if 2 in found else ""
    network, transport = a.get(_NETWORK_HEADER, b""), a.get(_TRANSPORT_HEADER, b"")
    source, destination = _places(network, transport)
    return TraceEvent(
        int.from_bytes(a[_ID]),
        message.body[0],
        table,
        chain,
        int.from_bytes(a.get(_RULE_HANDLE, b"")),
        verdict,
        target,
        source,
        destination,
        int.from_bytes(a.get(_INPUT_INTERFACE, b"")),
        chain if table == ours else "",
        len(transport) > _FLAGS_AT and bool(transport[_FLAGS_AT] & _RST),
        _identity(network, transport) if source else b"",
    )


def _places(network: memoryview | bytes, transport: memoryview | bytes) -> tuple[bytes, bytes]:
    """Source and destination address with ports; empty if the headers are not there."""
    if len(network) < 20 or len(transport) < 4:
        return b"", b""
    source_at, destination_at, size = _SLASH[IP if network[0] >> 4 == 4 else messages.IP6]
    return (
        bytes(network[source_at : source_at + size]) + bytes(transport[:2]),
        bytes(network[destination_at : destination_at + size]) + bytes(transport[2:4]),
    )


def _identity(network: memoryview | bytes, transport: memoryview | bytes) -> bytes:
    """Of TCP sequence numbers and flags; else of IPv4 length and number, of IPv6 addresses and ports."""
    version_4 = network[0] >> 4 == 4
    if network[9 if version_4 else 6] == _TCP:
        return bytes(transport[4:14])
    return bytes(network[2:6]) if version_4 else bytes(network[8:40]) + bytes(transport[:4])
