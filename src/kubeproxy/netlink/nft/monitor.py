"""Word of every change that somebody else makes to a table.

The kernel tells all changes of all tables, our own among them, and a first sync alone makes 100,000 messages. So our own
are left out by a filter in the kernel (classic BPF on the sender's port number in the message header), and what is left
is looked at here: one message a datagram tells which table it is about.
"""

import ctypes
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, Self

from kubeproxy.netlink import wire
from kubeproxy.netlink.nft.messages import (
    DELCHAIN,
    DELRULE,
    DELSET,
    DELSETELEM,
    DELTABLE,
    NEWCHAIN,
    NEWGEN,
    NEWRULE,
    NEWSET,
    NEWSETELEM,
    NEWTABLE,
)

_GROUP = 7  # NFNLGRP_NFTABLES
_VERBS: Final = {
    NEWTABLE: "table added",
    DELTABLE: "table deleted",
    NEWCHAIN: "chain added",
    DELCHAIN: "chain deleted",
    NEWRULE: "rule added",
    DELRULE: "rule deleted",
    NEWSET: "set added",
    DELSET: "set deleted",
    NEWSETELEM: "element added",
    DELSETELEM: "element deleted",
}
_OF = {NEWCHAIN: 3, DELCHAIN: 3, NEWRULE: 2, DELRULE: 2, NEWSET: 2, DELSET: 2, NEWSETELEM: 2, DELSETELEM: 2}
"""The attribute that names the chain or set a message is about."""

_GEN_PROCESS, _GEN_NAME = 2, 3


class Event(NamedTuple):
    """Something that was done to a table.

    Attributes:
        family: IP or IP6.
        table: its name.
        what: e.g. "rule deleted".
        where: the chain or set, "" for the table itself.
    """

    family: int
    table: str
    what: str
    where: str


class Monitor:
    """A subscription, to be waited on by `fileno`."""

    def __init__(self, ours: Iterable[int]) -> None:
        """Subscribes.

        Args:
            ours: port numbers of the sockets whose changes are our own.

        Raises:
            OSError: the kernel refuses.
        """
        self._socket = wire.Socket(wire.NETFILTER, receive_buffer=4 << 20)
        self._leave_out(list(ours))
        self._socket.join(_GROUP)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor, for an event loop to wait on."""
        return self._socket.fileno()

    def read(self) -> tuple[list[Event], str]:
        """What others did since the last call, and which program did it last.

        Raises:
            OSError: ENOBUFS when more was done than could be told: anything may have happened.
        """
        events: list[Event] = []
        program = ""
        while True:
            seen = False
            for message in self._socket.receive(wait=False):
                seen = True
                kind = message.type & 0xFF
                if kind == NEWGEN:
                    program = _program(message.body) or program
                elif kind in _VERBS:
                    events.append(_event(kind, message.body))
            if not seen:
                return events, program

    def _leave_out(self, ports: list[int]) -> None:
        """Drops in the kernel what these ports have sent: the word at 12 of a netlink header."""
        steps: list[bytes] = [_step(0x20, 0, 0, 12)]  # load it; BPF takes it for network order
        for i, port in enumerate(ports):
            steps.append(_step(0x15, len(ports) - i, 0, socket.ntohl(port)))  # equal: to the last step
        steps += [_step(0x06, 0, 0, 0xFFFFFFFF), _step(0x06, 0, 0, 0)]  # take it whole; drop it
        program = ctypes.create_string_buffer(b"".join(steps))
        self._socket.set_filter(struct.pack("HL", len(steps), ctypes.addressof(program)))


def _step(code: int, true: int, false: int, value: int) -> bytes:
    """Struct sock_filter."""
    return struct.pack("HBBI", code, true, false, value)


def _event(kind: int, body: memoryview) -> Event:
    found = wire.attributes(body[4:])
    where = wire.string(found[_OF[kind]]) if kind in _OF and _OF[kind] in found else ""
    return Event(body[0], wire.string(found[1]), _VERBS[kind], where)


def _program(body: memoryview) -> str:
    """The name and number of the process a generation is of."""
    found = wire.attributes(body[4:])
    name = wire.string(found[_GEN_NAME]) if _GEN_NAME in found else ""
    return (
        f"{name} (process {int.from_bytes(found[_GEN_PROCESS])})" if name and _GEN_PROCESS in found else name
    )


def events_about(events: Iterable[Event], family: int, table: str) -> Iterator[Event]:
    """Those that are about a table."""
    return (event for event in events if event.family == family and event.table == table)
