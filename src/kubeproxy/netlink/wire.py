"""Netlink messages, attributes and sockets.

A message is a 16-byte header and a payload; a payload is a fixed header of its family and attributes: length,
type, value, padded to four bytes. Lengths and types are in host order, most nfnetlink numbers inside in
network order. The kernel does not report a wrong length inside a nested attribute as an error, but stops
reading there. So encoders are tested by writing objects, listing them and comparing.

Sources: linux/netlink.h, RFC 3549, Documentation/userspace-api/netlink.
"""

import errno
import logging
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Self

from kubeproxy.log import V7
from kubeproxy.netlink.namespace import Sockets

log = logging.getLogger(__name__)

ROUTE: Final = 0
NETFILTER: Final = 12
GENERIC: Final = 16

REQUEST: Final = 0x1
ACK: Final = 0x4
DUMP: Final = 0x300
REPLACE: Final = 0x100
EXCL: Final = 0x200
CREATE: Final = 0x400
APPEND: Final = 0x800

NOOP, ERROR, DONE, OVERRUN = 1, 2, 3, 4

NESTED: Final = 0x8000
_TYPE_MASK: Final = 0x3FFF
_DUMP_INTERRUPTED: Final = 0x10
_CAPPED: Final = 0x100
_ACK_TLVS: Final = 0x200

HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_MESSAGES_AT_ONCE = 1000
_SOL_NETLINK = 270
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE, _SO_ATTACH_FILTER = 32, 33, 26
_ADD_MEMBERSHIP, _DROP_MEMBERSHIP, _CAP_ACK, _EXT_ACK = 1, 2, 10, 11

PORT_PROCESS: Final = (1 << 22) - 1
"""The bits of a numbered port that contain the process ID, as in libnl."""

PORT_NUMBER: Final = 0xFFFFFFFF ^ PORT_PROCESS
"""The other bits: a number above 0.

Ports that the kernel assigns are a process ID, or are above 0xFFFF0000.
"""

_MOST_NUMBERED = 1000


class NetlinkError(OSError):
    """The kernel refused a message.

    Attributes:
        errno: the reason.
        detail: the kernel's error text (extended acknowledgement); "" if there is none.
        sequence: the sequence number of the refused message.
        offset: the offset of the refused attribute in the message; 0 if it is not known.
    """

    def __init__(self, code: int, detail: str = "", sequence: int = 0, offset: int = 0) -> None:
        super().__init__(code, f"{os.strerror(code)}{f' ({detail})' if detail else ''}")
        self.detail = detail
        self.sequence = sequence
        self.offset = offset


class Message(NamedTuple):
    """A received message. `body` starts after the netlink header."""

    type: int
    flags: int
    sequence: int
    port: int
    body: memoryview


Attributes = dict[int, memoryview]
"""Values by attribute type."""


class Request(NamedTuple):
    """A message to be sent: its type, its flags except REQUEST, its body padded to four bytes."""

    type: int
    flags: int
    body: bytes


def attribute(kind: int, value: bytes) -> bytes:
    """An attribute with its padding."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) & 3)


def nested(kind: int, *values: bytes) -> bytes:
    """An attribute that contains attributes."""
    value = b"".join(values)
    return _ATTRIBUTE.pack(4 + len(value), kind | NESTED) + value


def text(kind: int, value: str) -> bytes:
    """A string attribute, terminated by NUL."""
    return attribute(kind, value.encode() + b"\0")


def be32(kind: int, value: int) -> bytes:
    """A 32-bit number in network order."""
    return attribute(kind, struct.pack(">I", value & 0xFFFFFFFF))


def be64(kind: int, value: int) -> bytes:
    """A 64-bit number in network order."""
    return attribute(kind, struct.pack(">Q", value))


def attributes(data: memoryview | bytes) -> Attributes:
    """The attributes of a payload by type; the last one if a type is repeated."""
    return dict(attribute_list(data))


def attribute_list(data: memoryview | bytes) -> Iterator[tuple[int, memoryview]]:
    """The attributes of a payload in their order."""
    view = memoryview(data)
    offset, end = 0, len(view)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(view, offset)
        if length < 4 or offset + length > end:
            raise ValueError(f"attribute {kind & _TYPE_MASK} at {offset} claims {length} of {end} bytes")
        yield kind & _TYPE_MASK, view[offset + 4 : offset + length]
        offset += length + 3 & ~3


def string(value: memoryview) -> str:
    """The text of a string attribute."""
    return bytes(value).rstrip(b"\0").decode(errors="replace")


def message(kind: int, flags: int, body: bytes, sequence: int = 0) -> bytes:
    """A whole message; its body must be padded to four bytes."""
    return HEADER.pack(16 + len(body), kind, flags, sequence, 0) + body


class Closing:
    """An object with a socket, which `close` or the end of a `with` block closes."""

    _socket: "socket.socket | Socket"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()


class Socket(Closing):
    """A netlink socket.

    The kernel handles requests inside `send`: when it returns, the work is done, and the answer can be read.
    So all requests are blocking code; only notifications need an event loop.
    """

    def __init__(
        self,
        namespace: Sockets,
        protocol: int,
        groups: tuple[int, ...] = (),
        *,
        receive_buffer: int = 1 << 20,
        numbered: bool = False,
    ) -> None:
        """Opens a socket.

        Args:
            namespace: the network namespace.
            protocol: ROUTE, NETFILTER or GENERIC.
            groups: multicast groups whose notifications are to be received.
            receive_buffer: the size of the receive buffer in bytes.
            numbered: give it a port from which its process can be recognised, even if the process has several
                sockets.
        """
        self._socket: socket.socket = namespace.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        )
        if numbered:
            self._bind_numbered()
        else:
            self._socket.bind((0, 0))
        self.port: int = self._socket.getsockname()[0]
        self._sequence = 0
        for option in (_CAP_ACK, _EXT_ACK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        enlarge_receive_buffer(self._socket, receive_buffer)
        for group in groups:
            self.join(group)

    def join(self, group: int) -> None:
        """Subscribes to a multicast group."""
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    def leave(self, group: int) -> None:
        """Unsubscribes."""
        self._socket.setsockopt(_SOL_NETLINK, _DROP_MEMBERSHIP, group)

    def set_filter(self, program: bytes) -> None:
        """Installs a filter in the kernel for the messages that are received.

        Args:
            program: struct sock_fprog, classic BPF.
        """
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    def fileno(self) -> int:
        """The descriptor, to be polled by an event loop."""
        return self._socket.fileno()

    def next_sequence(self) -> int:
        """A sequence number not used before."""
        self._sequence += 1
        return self._sequence

    def send(self, data: bytes) -> None:
        """Sends messages in one datagram of any size."""
        log.log(
            V7,
            "netlink port %(netlinkPort)d: sending %(bytes)d bytes",
            {"netlinkPort": self.port, "bytes": len(data)},
        )
        try:
            self._socket.send(data)
        except OSError as e:
            if e.errno != errno.EMSGSIZE:
                raise
            _enlarge(self._socket, _SO_SNDBUFFORCE, socket.SO_SNDBUF, 2 * len(data))
            self._socket.send(data)

    def receive(self, *, wait: bool = True) -> Iterator[Message]:
        """The messages of the next datagram; none if there is no datagram and `wait` is False.

        Raises:
            OSError: ENOBUFS if the kernel had to drop notifications.
        """
        try:
            data = self._socket.recv(1 << 20, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        view = memoryview(data)
        offset = 0
        while offset + 16 <= len(view):
            length, kind, flags, sequence, port = HEADER.unpack_from(view, offset)
            if length < 16 or offset + length > len(view):
                raise ValueError(f"message {kind} at {offset} claims {length} of {len(view)} bytes")
            yield Message(kind, flags, sequence, port, view[offset + 16 : offset + length])
            offset += length + 3 & ~3

    def discard(self, most: int) -> None:
        """Discards received datagrams, at most so many."""
        for _ in range(most):
            try:
                self._socket.recv(1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:  # the kernel dropped more notifications
                continue

    def request(self, kind: int, body: bytes, flags: int = 0) -> list[Message]:
        """Sends one request; returns the answers before its acknowledgement.

        Raises:
            NetlinkError: the kernel refused it.
        """
        sequence = self.next_sequence()
        self.send(message(kind, REQUEST | ACK | flags, body, sequence))
        replies: list[Message] = []
        while True:
            for reply in self.receive():
                if reply.sequence != sequence:
                    continue
                if reply.type == ERROR:
                    check(reply)
                    return replies
                replies.append(reply)

    def submit(self, requests: Sequence[Request]) -> dict[int, NetlinkError]:
        """Sends many requests that have no answers except errors; each is executed or refused independently.

        Returns:
            The errors, by index of the request.
        """
        refused: dict[int, NetlinkError] = {}
        for start in range(0, len(requests), _MESSAGES_AT_ONCE):
            piece = requests[start : start + _MESSAGES_AT_ONCE]
            first = self._sequence + 1
            parts = [message(r.type, REQUEST | r.flags, r.body, self.next_sequence()) for r in piece[:-1]]
            # Errors are always reported. The acknowledgement of the last request means that all have been
            # handled.
            last = piece[-1]
            parts.append(message(last.type, REQUEST | ACK | last.flags, last.body, self.next_sequence()))
            self.send(b"".join(parts))
            self._collect(first, start, refused)
        return refused

    def _collect(self, first: int, start: int, refused: dict[int, NetlinkError]) -> None:
        """Reads the answers to the requests from a sequence number on."""
        while True:
            for reply in self.receive():
                if reply.type != ERROR or not first <= reply.sequence <= self._sequence:
                    continue
                try:
                    check(reply)
                except NetlinkError as e:
                    refused[start + reply.sequence - first] = e
                if reply.sequence == self._sequence:
                    return

    def dump(self, kind: int, body: bytes) -> Iterator[Message]:
        """Lists objects. If a change interrupted the dump, it is read to its end and an error is raised.

        The caller may retry.

        Raises:
            NetlinkError: the kernel refused it; EINTR if the objects were changed during the dump.
        """
        sequence = self.next_sequence()
        self.send(message(kind, REQUEST | DUMP, body, sequence))
        interrupted = False
        while True:
            for reply in self.receive():
                if reply.sequence != sequence:
                    continue
                interrupted = interrupted or bool(reply.flags & _DUMP_INTERRUPTED)
                if reply.type == ERROR:
                    check(reply)
                elif reply.type == DONE:
                    code = struct.unpack_from("=i", reply.body)[0] if len(reply.body) >= 4 else 0
                    if code < 0:
                        raise NetlinkError(-code)
                    if interrupted:
                        raise NetlinkError(errno.EINTR)
                    return
                else:
                    yield reply

    def _bind_numbered(self) -> None:
        process = os.getpid() & PORT_PROCESS
        for number in range(1, _MOST_NUMBERED + 1):
            try:
                self._socket.bind((number << PORT_PROCESS.bit_length() | process, 0))
            except OSError as e:
                if e.errno != errno.EADDRINUSE or number == _MOST_NUMBERED:
                    raise
            else:
                return


def enlarge_receive_buffer(sock: socket.socket, size: int) -> None:
    """Sets the size of a socket's receive buffer, beyond the limit of the system if we have CAP_NET_ADMIN."""
    _enlarge(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF, size)


def _enlarge(sock: socket.socket, force: int, plain: int, size: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, force, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, plain, size)


def check(reply: Message) -> None:
    """Raises the error of an ERROR message. Code 0 is an acknowledgement and raises nothing.

    Raises:
        NetlinkError: the message is an error.
    """
    (code,) = struct.unpack_from("=i", reply.body)
    if code == 0:
        return
    detail, offset = "", 0
    if reply.flags & _ACK_TLVS:
        skip = 20 if reply.flags & _CAPPED else 4 + HEADER.unpack_from(reply.body, 4)[0]
        extended = attributes(reply.body[skip + 3 & ~3 :])
        detail = string(extended[1]) if 1 in extended else ""
        offset = struct.unpack("=I", extended[2])[0] if 2 in extended else 0
    raise NetlinkError(-code, detail, reply.sequence, offset)
