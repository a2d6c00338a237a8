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
from kubeproxy.netlink.conntrack import decode
from kubeproxy.netlink.flow_values import FlowReader
from kubeproxy.netlink.namespace import Namespace

_NEW_GROUP, _DESTROY_GROUP = 1, 3  # NFNLGRP_CONNTRACK_NEW, NFNLGRP_CONNTRACK_DESTROY
_DESTROY = 2  # IPCTNL_MSG_CT_DELETE
_CLOSE = 8
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
    """

    ended: bool
    protocol: int
    destination: bytes
    source: bytes
    unanswered: bool = False
    reset: bool = False
    sent: int | None = None
    received: int | None = None


class FlowEvents(wire.Closing):
    """A subscription to the notifications.

    Attributes:
        losses: how many times the kernel had more notifications than could be received.
    """

    def __init__(self, namespace: Namespace, *, new: bool = True) -> None:
        """Starts to receive.

        Args:
            namespace: the network namespace.
            new: receive those of flows that begin, too.

        Raises:
            OSError: the kernel has no ctnetlink, or we lack CAP_NET_ADMIN.
        """
        self.losses = 0
        self._values = FlowReader()
        self._socket: wire.Socket = wire.Socket(namespace, wire.NETFILTER, receive_buffer=_BUFFER)
        program = ctypes.create_string_buffer(_TRANSLATED)
        self._socket.set_filter(struct.pack("HL", len(_TRANSLATED) // _STEP.size, ctypes.addressof(program)))
        try:
            for group in (_NEW_GROUP, _DESTROY_GROUP) if new else (_DESTROY_GROUP,):
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
            return FlowEvent(False, flow.protocol, flow.destination, flow.source)
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
        )


_STEP: Final = struct.Struct("HBBI")  # struct sock_filter
_FIRST = 20
"""Where in a datagram the attributes start: behind the headers of netlink and nfnetlink."""

_LOAD, _LOAD_BYTE, _LOAD_HALF = 0x20, 0x30, 0x28
_TO_X, _COMPARE_X, _COMPARE = 0x07, 0x1D, 0x15
_RETURN = 0x06


def _program() -> bytes:
    """Accepts a flow unless it has the layout of `conntrack` and answers come from where the client sends."""
    drop, accept = (_RETURN, 0, 0, 0), (_RETURN, 0, 0, 0xFFFFFFFF)
    blocks = []
    for family, (destination, port, source, source_port, words) in _OFFSETS.items():
        pairs = [(destination + 4 * i, source + 4 * i) for i in range(words)]
        body: list[tuple[int, int, int, int]] = []
        steps = [(_LOAD, a, b) for a, b in pairs] + [(_LOAD_HALF, port, source_port)]
        length = 4 * len(steps)
        for number, (load, a, b) in enumerate(steps):
            left = length - 4 * number - 4  # steps behind this one, before "drop"
            body += [(load, 0, 0, a), (_TO_X, 0, 0, 0), (load, 0, 0, b), (_COMPARE_X, 0, left + 1, 0)]
        blocks.append((family, [*body, drop, accept]))
    out: list[tuple[int, int, int, int]] = [(_LOAD_BYTE, 0, 0, 16)]
    (first, one), (second, two) = blocks
    out += [(_COMPARE, 0, len(one), first), *one, (_COMPARE, 0, len(two), second), *two, accept]
    return b"".join(_STEP.pack(*step) for step in out)


_OFFSETS: Final = {
    # destination, its port, source of the answers, its port, words of an address; see `conntrack._LAYOUTS`
    2: (_FIRST + 20, _FIRST + 48, _FIRST + 64, _FIRST + 92, 1),
    10: (_FIRST + 32, _FIRST + 72, _FIRST + 88, _FIRST + 140, 4),
}
_TRANSLATED: Final = _program()
