"""Values of tracked flows beside their places: the TCP state, whether there was an answer, bytes.

The daemon does not need them; commands read them of all flows to Services. So they are read at fixed places
of the message, which are searched once for each length of a message.

Source: linux/netfilter/nfnetlink_conntrack.h, linux/netfilter/nf_conntrack_common.h.
"""

import errno
import struct
from collections.abc import Iterator
from typing import NamedTuple

from kubeproxy.netlink import wire
from kubeproxy.netlink.conntrack import (
    GET,
    NFGENMSG,
    PROTOCOL_INFO,
    SEEN_REPLY,
    STATUS,
    STATUS_MASK,
    TCP_INFO,
    TCP_STATE,
    decode,
)
from kubeproxy.netlink.namespace import Namespace

_DNAT = 32
_ATTRIBUTE = struct.Struct("=HH")
_COUNTERS_ORIGINAL, _COUNTERS_REPLY, _COUNTED_BYTES = 9, 10, 2
_PLACE_PATHS = (
    (STATUS,),
    (PROTOCOL_INFO, TCP_INFO, TCP_STATE),
    (_COUNTERS_ORIGINAL, _COUNTED_BYTES),
    (_COUNTERS_REPLY, _COUNTED_BYTES),
)
_PLACE_HEADERS = ((8, STATUS), (5, TCP_STATE), (12, _COUNTED_BYTES), (12, _COUNTED_BYTES))
"""The attributes of `FlowPlaces`, and their headers: length and type."""


class TranslatedFlow(NamedTuple):
    """A tracked flow whose destination was translated.

    Attributes:
        protocol: its number.
        destination: the place to which the client sends.
        source: the place from which the answers are sent.
        state: of a TCP connection its state (enum tcp_conntrack); None for others.
        answered: whether there was an answer.
    """

    protocol: int
    destination: bytes
    source: bytes
    state: int | None
    answered: bool


def translated(namespace: Namespace, family: int, *, marked: bool = True) -> Iterator[TranslatedFlow]:
    """Lists the flows of a family whose destination was translated, by rules of Services or by other rules.

    The kernel selects them (since Linux 5.15; earlier ones are listed whole, and the others are left out
    here). Ten thousand flows take about 30 ms.

    Flows that are added or removed at the same time may be missing or listed twice.

    Args:
        namespace: the network namespace.
        family: AF_INET or AF_INET6.
        marked: only those that rules have translated. IPVS translates without the mark by which the kernel
            selects them, so all are listed then, and selected here.

    Raises:
        OSError: the kernel has no ctnetlink, or we lack CAP_NET_ADMIN.
    """
    selected = NFGENMSG.pack(family, 0, 0)
    if marked:
        selected += wire.be32(STATUS, _DNAT) + wire.be32(STATUS_MASK, _DNAT)
    values = FlowReader()
    with wire.Socket(namespace, wire.NETFILTER) as kernel:
        try:
            for reply in kernel.dump(GET, selected):
                message = reply.body
                flow = decode(message)
                if flow is None or flow.destination == flow.source:
                    continue
                yield TranslatedFlow(
                    flow.protocol,
                    flow.destination,
                    flow.source,
                    values.state(message),
                    values.is_answered(message),
                )
        except wire.NetlinkError as e:
            if e.errno != errno.EINTR:
                raise


class FlowPlaces(NamedTuple):
    """Where in the message of a flow some values are; 0 for those that it does not have.

    Attributes:
        status: its status bits, four bytes.
        state: the TCP state, one byte.
        sent: bytes of the client, eight bytes.
        received: bytes of the answers, eight bytes.
    """

    status: int
    state: int
    sent: int
    received: int

    def match(self, message: memoryview) -> bool:
        """Whether the values are there in another message of the same length."""
        for place, header in zip(self, _PLACE_HEADERS, strict=True):
            if place and _ATTRIBUTE.unpack_from(message, place - 4) != header:
                return False
        return True


class FlowReader:
    """Reads values of flows. Messages of one length nearly always have one layout, which is searched once."""

    def __init__(self) -> None:
        self._known: dict[int, FlowPlaces] = {}

    def places(self, message: memoryview) -> FlowPlaces:
        """Where the values are."""
        size = len(message)
        found = self._known.get(size)
        if found is None or not found.match(message):
            found = self._known[size] = FlowPlaces(
                *(_nested(message, *path) for path in _PLACE_PATHS),
            )
        return found

    def is_answered(self, message: memoryview) -> bool:
        """Whether there was an answer."""
        status = self.places(message).status
        return bool(status and message[status + 3] & SEEN_REPLY)

    def state(self, message: memoryview) -> int | None:
        """The state of a TCP connection (enum tcp_conntrack); None for others."""
        state = self.places(message).state
        return message[state] if state else None

    def counted(self, message: memoryview) -> tuple[int, int] | None:
        """The bytes of the client and of the answers; None if they were not counted."""
        places = self.places(message)
        if not places.sent or not places.received:
            return None
        sent, received = places.sent, places.received
        return int.from_bytes(message[sent : sent + 8]), int.from_bytes(message[received : received + 8])


def _nested(message: memoryview, *kinds: int) -> int:
    """Where the value of an attribute inside of others begins; 0 if there is none."""
    at, end = 4, len(message)
    for kind in kinds:
        at, end = _value(message, at, end, kind)
    return at


def _value(message: memoryview, at: int, end: int, kind: int) -> tuple[int, int]:
    """Where the value of an attribute begins and ends; (0, 0) if there is none."""
    while at and at + 4 <= end:
        length, found = _ATTRIBUTE.unpack_from(message, at)
        if found & ~wire.NESTED == kind:
            return at + 4, at + length
        at += max(length, 4) + 3 & ~3
    return 0, 0
