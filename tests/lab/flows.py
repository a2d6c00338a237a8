"""Tracked flows by the thousand, put into a namespace's table as if packets had made them.

The messages are written out here, so that what reads and deletes flows is tested against something else.
Numbers: <linux/netfilter/nfnetlink_conntrack.h>.
"""

import os
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

from tests.lab import netns
from tests.lab.kernel import ACK, CREATE, NETLINK_NETFILTER, REQUEST

UDP, TCP, SCTP = 17, 6, 132
NEW = 1 << 8
TUPLE_ORIG, TUPLE_REPLY, PROTOINFO, TIMEOUT, ZONE = 1, 2, 4, 7, 18
SEEN_REPLY, ASSURED, CONFIRMED = 2, 4, 8
BATCH = 500
SECONDS = 3600


class Entry(NamedTuple):
    """A flow: the client, whom it spoke to, and who answers (None: the one it spoke to).

    Its zone is that of both its directions, or (`way`) only of the one to the front. A TCP connection is established, or
    (`waiting`) in state SYN_SENT without an answer.
    """

    client: tuple[str, int]
    front: tuple[str, int]
    backend: tuple[str, int] | None = None
    protocol: int = UDP
    zone: int = 0
    way: bool = False
    waiting: bool = False


def add(name: str, entries: Iterable[Entry]) -> None:
    """Puts flows into the table of a namespace.

    Raises:
        OSError: the kernel refused one.
    """
    with netns.inside(name):
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)  # SO_RCVBUFFORCE
        todo = list(entries)
        for start in range(0, len(todo), BATCH):
            batch = todo[start : start + BATCH]
            sock.send(b"".join(_message(entry, i == len(batch) - 1) for i, entry in enumerate(batch)))
            code, sequence = 0, 0
            while sequence != 1:
                answer = sock.recv(1 << 16)
                sequence, code = (
                    struct.unpack_from("=I", answer, 8)[0],
                    struct.unpack_from("=i", answer, 16)[0],
                )
                if code:
                    raise OSError(-code, f"{batch[0]} or a later one: {os.strerror(-code)}")


def _message(entry: Entry, last: bool) -> bytes:
    backend = entry.backend or entry.front
    family = socket.AF_INET6 if ":" in entry.front[0] else socket.AF_INET
    body = struct.pack("BBH", family, 0, 0)
    body += _tuple(TUPLE_ORIG, entry.protocol, entry.client, entry.front, entry.zone if entry.way else 0)
    body += _tuple(TUPLE_REPLY, entry.protocol, backend, entry.client)
    status = CONFIRMED if entry.waiting else CONFIRMED | SEEN_REPLY | ASSURED
    body += _attribute(3, struct.pack(">I", status))
    body += _attribute(TIMEOUT, struct.pack(">I", SECONDS))
    if entry.zone and not entry.way:
        body += _attribute(ZONE, struct.pack(">H", entry.zone))
    if entry.protocol == TCP:
        state = b"\1" if entry.waiting else b"\3"  # SYN_SENT, ESTABLISHED
        body += _attribute(PROTOINFO | 0x8000, _attribute(1 | 0x8000, _attribute(1, state)))
    if entry.protocol == SCTP:
        tags = _attribute(2, b"\0\0\0\1") + _attribute(3, b"\0\0\0\2")
        body += _attribute(
            PROTOINFO | 0x8000, _attribute(3 | 0x8000, _attribute(1, b"\4") + tags)
        )  # established
    return (
        struct.pack("=IHHII", 16 + len(body), NEW, REQUEST | CREATE | (ACK if last else 0), int(last), 0)
        + body
    )


def _tuple(
    kind: int, protocol: int, source: tuple[str, int], destination: tuple[str, int], zone: int = 0
) -> bytes:
    six = ":" in source[0]
    family = socket.AF_INET6 if six else socket.AF_INET
    addresses = b"".join(
        _attribute(number, socket.inet_pton(family, address))
        for number, (address, _) in zip((3, 4) if six else (1, 2), (source, destination), strict=True)
    )
    ports = _attribute(1, bytes([protocol])) + b"".join(
        _attribute(number, struct.pack(">H", port)) for number, (_, port) in ((2, source), (3, destination))
    )
    in_zone = _attribute(3, struct.pack(">H", zone)) if zone else b""
    return _attribute(
        kind | 0x8000, _attribute(1 | 0x8000, addresses) + _attribute(2 | 0x8000, ports) + in_zone
    )


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
