"""Notifications of connection tracking: each new flow, and each one that ends.

The kernel sends them only while a socket receives them, so they cost nothing when no socket receives them. A
flow that ends is reported with its last state, and with its bytes if `nf_conntrack_acct` was 1 when it began.
Flows whose destination was not translated lead to no Service; a filter in the kernel (classic BPF) drops the
notifications about those of IPv4 and IPv6 without a zone, so that a busy node does not send all its flows
here.

Source: net/netfilter/nf_conntrack_netlink.c, ctnetlink_conntrack_event.
"""

import ctypes
import struct
from typing import Final, NamedTuple

from kubeproxy.netlink import wire
from kubeproxy.netlink.conntrack import SEEN_REPLY, STATUS, decode
from kubeproxy.netlink.flow_values import FlowReader
from kubeproxy.netlink.namespace import Namespace

_NEW_GROUP, _DESTROY_GROUP = 1, 3  # NFNLGRP_CONNTRACK_NEW, NFNLGRP_CONNTRACK_DESTROY
_DESTROY = 2  # IPCTNL_MSG_CT_DELETE
_CLOSE = 8
_V4_PLACE = 6
_BUFFER = 16 << 20
_MOST_AT_ONCE = 20_000
"""So many datagrams are read by one call."""


class FlowEvent(NamedTuple):
    """A flow began or ended.

    Attributes:
        ended: it ended; otherwise it began.
        protocol: its number.
        destination: the place to which the client sends.
        source: the place from which the answers are sent.
        unanswered: it ended, and there was never an answer.
        reset: it was a TCP connection that had been answered, and ended by a reset (its last state was
            CLOSE).
        sent: bytes of the client, with headers; None if the kernel did not count them.
        received: bytes of the answers.
        name: its original tuple as the kernel writes it, which begins with addresses and ports of its client.
    """

    ended: bool
    protocol: int
    destination: bytes
    source: bytes
    unanswered: bool = False
    reset: bool = False
    sent: int | None = None
    received: int | None = None
    name: bytes = b""


class FlowEvents(wire.Closing):
    """A subscription to the notifications.

    Attributes:
        losses: how many times the kernel had more notifications than could be received.
    """

    def __init__(
        self, namespace: Namespace, *, new: bool = True, ended: bool = True, program: bytes = b""
    ) -> None:
        """Starts to receive.

        Args:
            namespace: the network namespace.
            new: receive those of flows that begin.
            ended: receive those of flows that end.
            program: the filter, classic BPF: `UNANSWERED` or one of `to_endpoint`. Empty for all translated
                flows.

        Raises:
            OSError: the kernel has no ctnetlink, or we lack CAP_NET_ADMIN.
        """
        self.losses = 0
        self._values = FlowReader()
        self._socket: wire.Socket = wire.Socket(namespace, wire.NETFILTER, receive_buffer=_BUFFER)
        steps = program or _TRANSLATED
        kept = ctypes.create_string_buffer(steps)
        self._socket.set_filter(struct.pack("HL", len(steps) // _STEP.size, ctypes.addressof(kept)))
        try:
            for group, wanted in ((_NEW_GROUP, new), (_DESTROY_GROUP, ended)):
                if wanted:
                    self._socket.join(group)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The descriptor, to be polled by an event loop."""
        return self._socket.fileno()

    def read(self) -> list[FlowEvent]:
        """What was reported since the last call."""
        found: list[FlowEvent] = []
        for _ in range(_MOST_AT_ONCE):
            seen = False
            try:
                for message in self._socket.receive(wait=False):
                    seen = True
                    if event := self._event(message):
                        found.append(event)
            except OSError:
                self.losses += 1
                continue
            if not seen:
                break
        return found

    def _event(self, message: wire.Message) -> FlowEvent | None:
        body = message.body
        flow = decode(body)
        if flow is None or flow.destination == flow.source:
            return None
        if message.type & 0xFF != _DESTROY:
            return FlowEvent(False, flow.protocol, flow.destination, flow.source, name=flow.original)
        answered = self._values.is_answered(body)
        sent, received = self._values.counted(body) or (None, None)
        return FlowEvent(
            True,
            flow.protocol,
            flow.destination,
            flow.source,
            not answered,
            answered and self._values.state(body) == _CLOSE,
            sent,
            received,
            flow.original,
        )


_STEP: Final = struct.Struct("HBBI")  # struct sock_filter
_FIRST = 20
"""Where in a datagram the attributes start: behind the headers of netlink and nfnetlink."""

_LOAD, _LOAD_BYTE, _LOAD_HALF = 0x20, 0x30, 0x28
_TO_X, _COMPARE_X, _COMPARE, _TEST = 0x07, 0x1D, 0x15, 0x45
_RETURN = 0x06
_DROP, _ACCEPT = (_RETURN, 0, 0, 0), (_RETURN, 0, 0, 0xFFFFFFFF)
_STATUS_HEADER: Final = int.from_bytes(struct.pack("=HH", 8, STATUS))


def _program(*, unanswered: bool = False) -> bytes:
    """Accepts a flow unless it has the layout of `conntrack` and answers come from where the client sends.

    Args:
        unanswered: do not accept flows that were answered either, if their status is at its usual place.
    """
    drop, accept = _DROP, _ACCEPT
    blocks = []
    for family, (destination, port, source, source_port, words) in _OFFSETS.items():
        pairs = [(destination + 4 * i, source + 4 * i) for i in range(words)]
        body: list[tuple[int, int, int, int]] = []
        steps = [(_LOAD, a, b) for a, b in pairs] + [(_LOAD_HALF, port, source_port)]
        length = 4 * len(steps)
        for number, (load, a, b) in enumerate(steps):
            left = length - 4 * number - 4  # steps behind this one, before "drop"
            body += [(load, 0, 0, a), (_TO_X, 0, 0, 0), (load, 0, 0, b), (_COMPARE_X, 0, left + 1, 0)]
        body.append(drop)
        if unanswered:
            at = _STATUS_OFFSETS[family]
            body += [(_LOAD, 0, 0, at), (_COMPARE, 0, 3, _STATUS_HEADER)]
            body += [(_LOAD, 0, 0, at + 4), (_TEST, 0, 1, SEEN_REPLY), drop]
        blocks.append((family, [*body, accept]))
    out: list[tuple[int, int, int, int]] = [(_LOAD_BYTE, 0, 0, 16)]
    (first, one), (second, two) = blocks
    out += [(_COMPARE, 0, len(one), first), *one, (_COMPARE, 0, len(two), second), *two, accept]
    return b"".join(_STEP.pack(*step) for step in out)


_OFFSETS: Final = {
    # destination, its port, source of the answers, its port, words of an address; see `conntrack._LAYOUTS`
    2: (_FIRST + 20, _FIRST + 48, _FIRST + 64, _FIRST + 92, 1),
    10: (_FIRST + 32, _FIRST + 72, _FIRST + 88, _FIRST + 140, 4),
}
_STATUS_OFFSETS: Final = {2: _FIRST + 2 * 52 + 8, 10: _FIRST + 2 * 76 + 8}
"""Where the attribute with the status is: behind both tuples and the ID."""

_TRANSLATED: Final = _program()

UNANSWERED: Final = _program(unanswered=True)
"""Of flows that end: only translated ones without an answer."""


def to_endpoint(place: bytes) -> bytes:
    """A filter for the flows whose answers are sent from one place, in the layout of `conntrack`."""
    family = 2 if len(place) == _V4_PLACE else 10
    _, _, source, source_port, words = _OFFSETS[family]
    tests = [(_LOAD_BYTE, 16, family), (_LOAD_HALF, source_port, int.from_bytes(place[-2:]))]
    tests += [(_LOAD, source + 4 * i, int.from_bytes(place[4 * i : 4 * i + 4])) for i in range(words)]
    out: list[tuple[int, int, int, int]] = []
    for number, (load, at, value) in enumerate(tests):
        left = 2 * (len(tests) - number - 1)  # steps behind this test, before "accept"
        out += [(load, 0, 0, at), (_COMPARE, 0, left + 1, value)]
    return b"".join(_STEP.pack(*step) for step in (*out, _ACCEPT, _DROP))
