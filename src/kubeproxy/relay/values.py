"""The messages between the daemon and its relay process: MessagePack, each preceded by its length.

A listening socket is sent with the first bytes of its `Open` or `OpenGate` message (SCM_RIGHTS, unix(7)). The
kernel keeps the order of both, so the n-th socket that is received belongs to the n-th of these messages.
"""

import struct
from collections.abc import Iterator

import msgspec
from msgspec import Struct

Target = tuple[str, int]
"""Address and port."""


class Division(Struct, frozen=True, gc=False, array_like=True):
    """How clients are divided among targets, if not in turn with equal shares.

    Attributes:
        weights: the weight of each target; none if all are equal. A table has them already.
        least: the target with the fewest connections in proportion to its weight is used; otherwise one after
            the other.
        table: slots of Maglev hashing, each the number of a target as 16 bits in the byte order of the host:
            a client gets the target of the slot of its hash. Empty for another method.
        by_port: the hash is of the client's address and port, otherwise of its address.
        preferred: the numbers of the targets that are used as long as one of them has fewer connections than
            `bound`.
        bound: see there; 0 if none are preferred.
    """

    weights: tuple[int, ...] = ()
    least: bool = False
    table: bytes = b""
    by_port: bool = False
    preferred: tuple[int, ...] = ()
    bound: int = 0


class Choice(Struct, frozen=True, gc=False, array_like=True):
    """The targets for some clients.

    Attributes:
        targets: the targets.
        clients: the ranges of the clients; none for all clients.
        division: how clients are divided among the targets; None: in turn, with equal shares.
    """

    targets: tuple[Target, ...]
    clients: tuple[str, ...] = ()
    division: Division | None = None


class Listener(Struct, frozen=True, gc=False, array_like=True):
    """How the clients of a socket are served.

    Attributes:
        name: the Service port, for messages.
        group: listeners of one group share the targets of clients with affinity.
        udp: it is a UDP socket.
        choices: the first one whose ranges contain the client has its targets; a client in none of them is
            refused.
        admitted: ranges of clients; others are refused. Empty for all clients.
        affinity: seconds a client keeps its target; 0 for no affinity.
        translated: only clients whose destination was translated by a rule are served, those that connected
            to a front.
        kept: UDP flows to these targets stay, in addition to those to targets of choices.
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
    """A new listener; its socket is sent with the message, unless it is behind a gate.

    Attributes:
        number: its number.
        listener: how its clients are served.
        behind: the gate of its protocol has its clients: those of this address and port.
    """

    number: int
    listener: Listener
    behind: Target | None = None


class Update(Struct, frozen=True, gc=False, array_like=True, tag=1):
    """New connections of a listener are to be served in another way."""

    number: int
    listener: Listener


class Close(Struct, frozen=True, gc=False, array_like=True, tag=2):
    """A listener is closed; its TCP connections stay."""

    number: int


class LogLine(Struct, frozen=True, gc=False, array_like=True, tag=3):
    """A message of the process for the daemon's log."""

    level: int
    text: str


class Counts(Struct, gc=False, array_like=True, tag=4):
    """What the process has done since it started, and its open connections and flows.

    Attributes:
        connections: TCP clients that were connected to a target.
        flows: UDP clients whose packets were sent to a target.
        open_connections: TCP clients that are connected now.
        open_flows: UDP flows that are open now.
        refused: clients that are not served, and those for which no target answered.
        failures: failed attempts to reach a target.
        ended: connections that were ended because their target was removed.
    """

    connections: int = 0
    flows: int = 0
    open_connections: int = 0
    open_flows: int = 0
    refused: int = 0
    failures: int = 0
    ended: int = 0


class Mark(Struct, frozen=True, gc=False, array_like=True, tag=5):
    """The process sends it back when it has handled all messages before it."""

    number: int


class OpenGate(Struct, frozen=True, gc=False, array_like=True, tag=6):
    """A socket that has the clients of many listeners; it is sent with the message.

    A client that no listener is there for is refused, so that none is accepted before the next `Mark`.
    """

    udp: bool


class Tally(Struct, frozen=True, gc=False, array_like=True):
    """Connections of a group of listeners to a target. Of UDP a flow counts as a connection.

    Attributes:
        group: the group, see `Listener`.
        target: the target.
        connections: clients that were connected to it.
        open: those that are connected now.
        waiting: attempts to connect that have no answer now.
        sent: bytes of clients, without headers of packets.
        received: bytes of the target.
        unanswered: attempts that had no answer in time.
        resets: connections that one side has reset, and attempts and packets that the target has refused.
    """

    group: str
    target: Target
    connections: int = 0
    open: int = 0
    waiting: int = 0
    sent: int = 0
    received: int = 0
    unanswered: int = 0
    resets: int = 0


class AskTallies(Struct, frozen=True, gc=False, array_like=True, tag=7):
    """The daemon asks for the tallies of all targets that have changed since it asked last."""

    number: int


class Tallied(Struct, frozen=True, gc=False, array_like=True, tag=8):
    """A part of the answer.

    Attributes:
        number: that of the question.
        tallies: what was counted since the question before; `open` and `waiting` are those of now.
        more: another part follows.
    """

    number: int
    tallies: tuple[Tally, ...]
    more: bool = False


class CarriedFlow(Struct, frozen=True, gc=False, array_like=True):
    """A client that has a target.

    Attributes:
        client: its address and port.
        target: its target.
        connected: the target has answered; a flow of UDP is always connected.
    """

    client: Target
    target: Target
    connected: bool = True


class AskFlows(Struct, frozen=True, gc=False, array_like=True, tag=9):
    """The daemon asks for the clients of a front that have a target now.

    Attributes:
        number: the number of the question.
        group: the group of the listeners.
        front: the address and port that the clients connected to.
        clients: their addresses; none for all.
        most: the number of clients at most.
    """

    number: int
    group: str
    front: Target
    clients: tuple[str, ...]
    most: int


class ListedFlows(Struct, frozen=True, gc=False, array_like=True, tag=10):
    """A part of the answer.

    Attributes:
        number: that of the question.
        flows: the clients.
        more: another part follows.
    """

    number: int
    flows: tuple[CarriedFlow, ...]
    more: bool = False


class Presence(Struct, frozen=True, gc=False, array_like=True, tag=11):
    """Which targets of a group have not been removed.

    Attributes:
        group: the group.
        targets: the targets; connections to those that were among them before are ended. None: connections
            to removed targets stay from now on.
    """

    group: str
    targets: tuple[Target, ...] | None


Message = (
    Open
    | Update
    | Close
    | LogLine
    | Counts
    | Mark
    | OpenGate
    | AskTallies
    | Tallied
    | AskFlows
    | ListedFlows
    | Presence
)

_LENGTH = struct.Struct("<I")


def encode(message: Message) -> bytes:
    """The bytes of a message."""
    body = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Decodes messages from a stream of bytes."""

    def __init__(self) -> None:
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Adds bytes; yields the messages that are complete now."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield self._decoder.decode(body)
