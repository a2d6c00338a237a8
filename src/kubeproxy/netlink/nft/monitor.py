"""Word of every change that somebody else makes to a table.

The kernel tells all changes of all tables, our own among them, and a first sync alone makes 100,000 messages. So those of
this process, and of a program it runs, are left out by a filter in the kernel (classic BPF on the sender's port number in
the message header). What is left is looked at here: the messages of one transaction come together, whatever tables they are about, and last the
number of the rule set that it led to.
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

_ENOUGH = 500
"""Where not all is told anyway, no more than this is listened to: to understand it takes longer than to look."""


_MOST_DISCARDED = 1 << 17
"""Datagrams; some times what the receive buffer holds."""


class TableEvent(NamedTuple):
    """Something that was done to a table.

    Attributes:
        family: IP or IP6.
        table: its name.
        what: e.g. "rule deleted".
        where: the chain or set, "" for the table itself.
        port: the netlink port it was sent from; mostly the number of the process.
        body: of a deleted rule, all that was told of it.
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
        events: what it did.
        whole: whether that is all, and of this transaction alone: it is not after more was done than could be told.
        program: the program that did it; "" if that is not told.
        generation: the number of the rule set it led to, see `kernel.NftKernel.generation`.
    """

    events: list[TableEvent]
    whole: bool
    program: str
    generation: int


class Monitor(wire.Closing):
    """A subscription, to be waited on by `fileno`. It hears nothing before `join`."""

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
        """Hears nothing of what is sent from a netlink port: the number of its process, for one that has one socket.

        It takes the place of the one ignored before. May be called from any thread.
        """
        program = ctypes.create_string_buffer(_others(port))
        steps = len(program.raw) // _STEP.size
        self._socket.set_filter(struct.pack("HL", steps, ctypes.addressof(program)))

    def join(self) -> None:
        """From now on it hears. While anybody does, a large transaction takes the kernel twice the time."""
        self._socket.join(_GROUP)

    def leave(self) -> None:
        """It hears no more; what it heard stays to be read."""
        self._socket.leave(_GROUP)

    def fileno(self) -> int:
        """The descriptor, for an event loop to wait on."""
        return self._socket.fileno()

    def forget(self) -> None:
        """What was heard of a transaction whose end is missing is of one that is over: the end may be what was lost."""
        self._events, self._whole = [], True

    def read(self) -> list[Done]:
        """What others did since the last call, and have done with.

        Raises:
            OSError: ENOBUFS when more was done than could be told: anything may have happened. What was told before that
                is thrown away: the kernel tells nothing more until all of it has been read.
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
                    elif kind in _VERBS and (self._whole or len(self._events) < _ENOUGH):
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
    """Keeps datagrams whose sender's port, the word at 12 of a netlink header, is none of `process_port`'s, nor this one.

    BPF takes the word for one in network order.
    """
    mine, number = socket.ntohl(wire.PORT_PROCESS & os.getpid()), socket.ntohl(wire.PORT_NUMBER)
    steps = (
        (0x20, 0, 0, 12),  # load it
        (0x15, 6, 0, socket.ntohl(ignored)),  # that one: leave it out
        (0x54, 0, 0, socket.ntohl(wire.PORT_PROCESS)),  # keep what tells the process
        (0x15, 0, 3, mine),  # not ours: take it whole
        (0x20, 0, 0, 12),
        (0x54, 0, 0, number),
        (0x15, 0, 1, 0),  # numbered: of this process, not of one of the same number in another PID namespace
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
    """The name and number of the process a generation is of, and the generation's number."""
    found = wire.attributes(body[4:])
    name = wire.string(found[_GEN_NAME]) if _GEN_NAME in found else ""
    if name and _GEN_PROCESS in found:
        name = f"{name} (process {int.from_bytes(found[_GEN_PROCESS])})"
    return name, int.from_bytes(found[_GEN_NUMBER])
