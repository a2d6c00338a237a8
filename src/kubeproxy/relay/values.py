"""What passes between the daemon and its relay process: messages in MessagePack, each behind its length.

A listening socket travels beside the first bytes of the message that opens it (SCM_RIGHTS, unix(7)). The kernel keeps the
order of both, so the n-th socket received belongs to the n-th `Open`.
"""

import struct
from collections.abc import Iterator

import msgspec
from msgspec import Struct

Target = tuple[str, int]
"""Address and port."""


class Choice(Struct, frozen=True, gc=False, array_like=True):
    """Where some clients may go. `clients` are ranges; none means all."""

    targets: tuple[Target, ...]
    clients: tuple[str, ...] = ()


class Listener(Struct, frozen=True, gc=False, array_like=True):
    """What to do with what comes in on a socket.

    Attributes:
        name: the Service port, for messages.
        group: listeners of one group share what they remember of clients.
        udp: it is a UDP socket.
        choices: the first that has the client says where it may go; a client that none has is refused.
        admitted: ranges of clients; others are refused. None means all.
        affinity: seconds a client stays with its target; 0 for not at all.
        translated: only clients whose destination was translated on its way here are served: those that came by a front.
        kept: UDP flows to these targets stay, besides those to targets of choices.
        header: each connection to a target starts with a PROXY protocol header, version 2.
    """

    name: str
    group: str
    udp: bool = False
    choices: tuple[Choice, ...] = ()
    admitted: tuple[str, ...] = ()
    affinity: int = 0
    translated: bool = False
    kept: tuple[Target, ...] = ()
    header: bool = False


class Open(Struct, frozen=True, gc=False, array_like=True, tag=0):
    """A new listener; its socket comes with the message."""

    number: int
    listener: Listener


class Update(Struct, frozen=True, gc=False, array_like=True, tag=1):
    """A listener is to do something else with new connections."""

    number: int
    listener: Listener


class Close(Struct, frozen=True, gc=False, array_like=True, tag=2):
    """A listener goes; its connections stay."""

    number: int


class Said(Struct, frozen=True, gc=False, array_like=True, tag=3):
    """What the process has to say, for the daemon's log."""

    level: int
    text: str


class Counts(Struct, gc=False, array_like=True, tag=4):
    """What the process has done since it started, and what it does now.

    Attributes:
        connections: TCP clients that were connected to a target.
        flows: UDP clients whose packets went to a target.
        open_connections: those of them that still are.
        open_flows: likewise.
        refused: clients nobody serves, and those for whom no target answered.
        failures: tries to reach a target that failed.
    """

    connections: int = 0
    flows: int = 0
    open_connections: int = 0
    open_flows: int = 0
    refused: int = 0
    failures: int = 0


class Mark(Struct, frozen=True, gc=False, array_like=True, tag=5):
    """The process sends it back when all that was ordered before is done."""

    number: int


Message = Open | Update | Close | Said | Counts | Mark

_LENGTH = struct.Struct("<I")


def encode(message: Message) -> bytes:
    """A message as it is sent."""
    body = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Finds messages in a stream."""

    def __init__(self) -> None:
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yields the messages that are complete with these bytes."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield self._decoder.decode(body)
