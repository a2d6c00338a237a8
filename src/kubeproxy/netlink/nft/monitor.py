"""Notifications about all changes that other processes make to tables.

The kernel sends notifications about all changes of all tables, including our own: a first sync alone causes
100,000 messages. So the messages of this process, and of a program that it runs, are dropped by a filter in
the kernel (classic BPF on the sender's port number in the message header). The remaining messages are read
here. Those of one transaction arrive together, whatever tables they are about, and the last one has the
number of the resulting rule set.
"""

import ctypes
import os
import socket
import struct
from typing import Final, NamedTuple

from kubeproxy.netlink import wire
from kubeproxy.netlink.namespace import Namespace
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

TABLE_ADDED: Final = "table added"
RULE_DELETED: Final = "rule deleted"

_GROUP = 7  # NFNLGRP_NFTABLES
_VERBS: Final = {
    NEWTABLE: TABLE_ADDED,
    DELTABLE: "table deleted",
    NEWCHAIN: "chain added",
    DELCHAIN: "chain deleted",
    NEWRULE: "rule added",
    DELRULE: RULE_DELETED,
    NEWSET: "set added",
    DELSET: "set deleted",
    NEWSETELEM: "element added",
    DELSETELEM: "element deleted",
}
_OF = {NEWCHAIN: 3, DELCHAIN: 3, NEWRULE: 2, DELRULE: 2, NEWSET: 2, DELSET: 2, NEWSETELEM: 2, DELSETELEM: 2}
"""The attribute that names the chain or set a message is about."""

_GEN_NUMBER, _GEN_PROCESS, _GEN_NAME = 1, 2, 3

_MOST_KEPT = 500
"""If notifications were lost, only this many are decoded, because reading the tables is faster then."""


_MOST_DISCARDED = 1 << 17
"""Datagrams; several times as many as the receive buffer can hold."""


class TableEvent(NamedTuple):
    """A change of a table.

    Attributes:
        family: IP or IP6.
        table: its name.
        what: e.g. "rule deleted".
        where: the chain or set; "" for the table itself.
        port: the netlink port from which it was sent; usually the process ID.
        body: the message, if a rule was deleted.
    """

    family: int
    table: str
    what: str
    where: str
    port: int
    body: bytes


class Done(NamedTuple):
    """A transaction of another process.

    Attributes:
        events: its changes.
        whole: whether these are all changes of this transaction and of no other; False after notifications
            were lost.
        program: the program that made it; "" if the kernel does not report it.
        generation: the number of the resulting rule set, see `kernel.NftKernel.generation`.
    """

    events: list[TableEvent]
    whole: bool
    program: str
    generation: int


class Monitor(wire.Closing):
    """A subscription to notifications; `fileno` can be polled.

    It receives nothing before `join` is called.
    """

    def __init__(self, namespace: Namespace) -> None:
        """Opens a socket.

        Raises:
            OSError: the kernel refuses.
        """
        self._socket: wire.Socket = wire.Socket(namespace, wire.NETFILTER, receive_buffer=8 << 20)
        self.ignore(_NO_PORT)
        self._events: list[TableEvent] = []
        self._whole = True

    def ignore(self, port: int) -> None:
        """Ignores changes from a netlink port, which is the process ID if a process has only one socket.

        The port that was ignored before is not ignored any more. May be called from any thread.
        """
        program = ctypes.create_string_buffer(_others(port))
        steps = len(program.raw) // _STEP.size
        self._socket.set_filter(struct.pack("HL", steps, ctypes.addressof(program)))

    def join(self) -> None:
        """Starts to receive. While any process does, large transactions take the kernel twice as long."""
        self._socket.join(_GROUP)

    def leave(self) -> None:
        """Stops receiving; what has arrived can still be read."""
        self._socket.leave(_GROUP)

    def fileno(self) -> int:
        """The descriptor, to be polled by an event loop."""
        return self._socket.fileno()

    def forget(self) -> None:
        """Discards the events of a transaction whose last message has not arrived and may have been lost."""
        self._events, self._whole = [], True

    def read(self) -> list[Done]:
        """The transactions of other processes that were completed since the last call.

        Raises:
            OSError: ENOBUFS if notifications were lost, so that anything may have changed. Those that arrived
                before are discarded, because the kernel sends none until all of them have been read.
        """
        done: list[Done] = []
        while True:
            seen = False
            try:
                for message in self._socket.receive(wait=False):
                    seen = True
                    kind = message.type & 0xFF
                    if kind == NEWGEN:
                        done.append(Done(self._events, self._whole, *_generation(message.body)))
                        self._events, self._whole = [], True
                    elif kind in _VERBS and (self._whole or len(self._events) < _MOST_KEPT):
                        self._events.append(_event(kind, message))
            except OSError:
                self._socket.discard(_MOST_DISCARDED)
                self._events, self._whole = [], False
                raise
            if not seen:
                return done


_STEP = struct.Struct("HBBI")  # struct sock_filter


_NO_PORT = 0xFFFFFFFF


def _others(ignored: int) -> bytes:
    """A BPF program that drops datagrams of this process and of one more port, and accepts all others.

    It checks the sender's port, the word at offset 12 of a netlink header, which BPF loads in network order.
    """
    mine, number = socket.ntohl(wire.PORT_PROCESS & os.getpid()), socket.ntohl(wire.PORT_NUMBER)
    steps = (
        (0x20, 0, 0, 12),  # load the port
        (0x15, 6, 0, socket.ntohl(ignored)),  # the ignored one: drop
        (0x54, 0, 0, socket.ntohl(wire.PORT_PROCESS)),  # the bits of the process ID
        (0x15, 0, 3, mine),  # not ours: accept
        (0x20, 0, 0, 12),
        (0x54, 0, 0, number),  # the other bits
        (0x15, 0, 1, 0),  # not 0: of this process, not of one with the same ID in another PID namespace: drop
        (0x06, 0, 0, 0xFFFFFFFF),
        (0x06, 0, 0, 0),
    )
    return b"".join(_STEP.pack(*step) for step in steps)


def _event(kind: int, message: wire.Message) -> TableEvent:
    found = wire.attributes(message.body[4:])
    where = wire.string(found[_OF[kind]]) if kind in _OF and _OF[kind] in found else ""
    body = bytes(message.body) if kind == DELRULE else b""
    return TableEvent(message.body[0], wire.string(found[1]), _VERBS[kind], where, message.port, body)


def _generation(body: memoryview) -> tuple[str, int]:
    """The name and ID of the process that made a generation, and the generation's number."""
    found = wire.attributes(body[4:])
    name = wire.string(found[_GEN_NAME]) if _GEN_NAME in found else ""
    if name and _GEN_PROCESS in found:
        name = f"{name} (process {int.from_bytes(found[_GEN_PROCESS])})"
    return name, int.from_bytes(found[_GEN_NUMBER])
