"""What a journal consists of: records, each with the time it was made (Unix time, in seconds).

Objects are kept as rows, not as the API server sent them. A record says what is known of an object now, not
how it differs, so that one may be applied twice. A change after which older files cannot be read, or new ones
not by older programs, raises `frames.VERSION`.
"""

from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from kubeproxy.api.rows import NodeRow, ServiceRow, SliceRow
from kubeproxy.model.complaints import Name
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key

Reason = Literal["start", "full", "lost", "exchange"]
"""Why a segment was begun: the program started; the one before was full; records were lost because they could
not be written; the configuration or the source was exchanged."""


class Opened(Struct, frozen=True, gc=False, array_like=True, tag="open"):
    """The first record of a segment. What is known of all objects follows, up to `Whole`.

    Attributes:
        at: the time at which this was known.
        reason: why the segment was begun.
        version: the version of the program.
        node: the name of the node.
    """

    at: float
    reason: Reason
    version: str
    node: str


class Whole(Struct, frozen=True, gc=False, array_like=True, tag="whole"):
    """All objects that exist have been written; changes follow."""

    at: float


class ServiceStored(Struct, frozen=True, gc=False, array_like=True, tag="service"):
    """A Service. `row` is None if it does not exist or is not programmed by us."""

    at: float
    namespace: str
    name: str
    exists: bool
    row: ServiceRow | None


class SlicesStored(Struct, frozen=True, gc=False, array_like=True, tag="slices"):
    """An EndpointSlice, or an Endpoints object. `rows` is empty if it does not exist or names no Service."""

    at: float
    kind: str
    namespace: str
    name: str
    rows: tuple[SliceRow, ...]


class NodeStored(Struct, frozen=True, gc=False, array_like=True, tag="node"):
    """The own Node; `row` is None if it is not known."""

    at: float
    row: NodeRow | None


class RangesStored(Struct, frozen=True, gc=False, array_like=True, tag="ranges"):
    """The ranges of all ServiceCIDRs."""

    at: float
    ranges: tuple[str, ...]


class Planned(Struct, frozen=True, gc=False, array_like=True, tag="planned"):
    """What plans of one IP family are made for.

    Attributes:
        at: the time.
        mode: the mode.
        primary: the family is the primary one of the node.
        node: the node and the settings.
        addresses: the node's addresses of this family.
    """

    at: float
    mode: str
    primary: bool
    node: NodeConfig
    addresses: tuple[str, ...]


class SyncDone(Struct, frozen=True, gc=False, array_like=True, tag="sync"):
    """A sync succeeded.

    Attributes:
        at: when it ended.
        family: the IP family.
        full: everything was compared with the kernel.
        seconds: how long it took.
        waited: how many seconds before it started the first of the changes that led to it was received.
        delay: seconds from that change in the cluster to the end of the sync; -1 if that is not known.
        count: how many Services changed in the kernel.
        keys: these Services; none if they are more than `MOST_KEYS`.
    """

    at: float
    family: str
    full: bool
    seconds: float
    waited: float
    delay: float
    count: int
    keys: tuple[Key, ...]


class Refusal(Struct, frozen=True, gc=False, array_like=True, tag="refused"):
    """The kernel refuses a Service; with empty `words` it does so no more."""

    at: float
    family: str
    namespace: str
    name: str
    words: str


class TroubleSeen(Struct, frozen=True, gc=False, array_like=True, tag="trouble"):
    """Drift was detected, or a sync failed.

    Attributes:
        at: the time.
        family: the IP family.
        kind: which of the two.
        words: what was detected, or why it failed.
    """

    at: float
    family: str
    kind: Literal["drift", "failure"]
    words: str


class Ended(Struct, frozen=True, gc=False, array_like=True, tag="end"):
    """The program ended."""

    at: float


Record = (
    Opened
    | Whole
    | ServiceStored
    | SlicesStored
    | NodeStored
    | RangesStored
    | Planned
    | SyncDone
    | Refusal
    | TroubleSeen
    | Ended
)

MOST_KEYS: Final = 1000
"""So many Services a sync is recorded with."""

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final[msgspec.msgpack.Decoder[list[Record]]] = msgspec.msgpack.Decoder(list[Record])
_ARRAY32: Final = b"\xdd"


def encode(record: Record) -> bytes:
    """One record as MessagePack."""
    return _ENCODER.encode(record)


def joined(encoded: list[bytes]) -> bytes:
    """Encoded records as one MessagePack array."""
    return b"".join((_ARRAY32, len(encoded).to_bytes(4, "big"), *encoded))


def decode(data: bytes) -> list[Record]:
    """The records of an array.

    Raises:
        ValueError: it is none.
    """
    return _DECODER.decode(data)


def of_object(at: float, name: Name, rows: tuple[Any, ...] | None) -> Record:
    """The record of an object as `Hub.follow` reports it."""
    kind, namespace, own = name
    first = rows[0] if rows else None
    match kind:
        case "Service":
            return ServiceStored(at, namespace, own, rows is not None, first)
        case "Node":
            return NodeStored(at, first)
        case "ServiceCIDR":
            return RangesStored(at, rows or ())
        case _:
            return SlicesStored(at, kind, namespace, own, rows or ())
