r"""The format of a segment, one file of a journal: a header, then frames.

    header   b"kube-proxy journal\n", the version of the format (2 bytes, little-endian)
    frame    length of the payload, CRC-32 of length and payload (4 bytes each, little-endian), payload
    payload  zlib of a MessagePack array of records

A frame is written by one call and never changed. If the program or the system ends while one is written, it
is incomplete, and only that one is lost.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct

from kubeproxy.journal.records import Record, decode

MAGIC: Final = b"kube-proxy journal\n"
VERSION: Final = 1
HEADER: Final = MAGIC + VERSION.to_bytes(2, "little")

LARGEST_FRAME: Final = 64 * 2**20
"""Bytes of a frame's payload, compressed or not; what is larger was not written by us."""

_NUMBER: Final = 4
_LEVEL: Final = 1


class NewerError(Exception):
    """The file was written by a newer program, and cannot be read by this one; the message says so."""


class RecordFrame(Struct, frozen=True, gc=False):
    """The records of one frame, and where it ends in the file."""

    records: list[Record]
    end: int


class Damage(Struct, frozen=True, gc=False):
    """Why a segment cannot be read to its end.

    Attributes:
        kind: the last frame is incomplete (torn), as after a crash; or its content cannot be right (damaged).
        offset: the byte from which on nothing is used.
        words: what is wrong.
    """

    kind: Literal["torn", "damaged"]
    offset: int
    words: str


def pack(payload: bytes) -> bytes:
    """A frame."""
    packed = zlib.compress(payload, _LEVEL)
    length = len(packed).to_bytes(_NUMBER, "little")
    return b"".join((length, _checksum(length, packed), packed))


def read(path: Path) -> Iterator[RecordFrame | Damage]:
    """Reads a segment; the last item may be a Damage.

    Raises:
        NewerError: it has a newer format.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        header = file.read(len(HEADER))
        if not header.startswith(MAGIC) or len(header) < len(HEADER):
            torn = HEADER.startswith(header)
            yield Damage("torn" if torn else "damaged", 0, "it is not the beginning of a journal")
            return
        version = int.from_bytes(header[len(MAGIC) :], "little")
        if version > VERSION:
            raise NewerError(
                f"{path} was written by a newer kube-proxy: its format is {version}, this one reads up to {VERSION};"
                " use the program that wrote it"
            )
        offset = len(HEADER)
        while offset < size:
            head = file.read(2 * _NUMBER)
            length = int.from_bytes(head[:_NUMBER], "little")
            if len(head) < 2 * _NUMBER or length > size - offset - len(head):
                yield Damage("torn", offset, "the last frame is incomplete")
                return
            if length > LARGEST_FRAME:
                yield Damage(
                    "damaged", offset, f"a frame of {length} bytes is larger than any that is written"
                )
                return
            packed = file.read(length)
            end = offset + len(head) + length
            if _checksum(head[:_NUMBER], packed) != head[_NUMBER:]:
                # After a power failure the file may have its length, but not its content.
                torn = end == size or not length
                yield Damage("torn" if torn else "damaged", offset, "the checksum of a frame is wrong")
                return
            records = _unpack(packed)
            if isinstance(records, str):
                yield Damage("damaged", offset, records)
                return
            yield RecordFrame(records, end)
            offset = end


def _unpack(packed: bytes) -> list[Record] | str:
    """The records of a frame, or what is wrong with it."""
    unpacking = zlib.decompressobj()
    try:
        data = unpacking.decompress(packed, LARGEST_FRAME)
        if not unpacking.eof:
            return "a frame is larger than any that is written"
        return decode(data)
    except (zlib.error, msgspec.MsgspecError, ValueError) as e:
        return f"a frame cannot be decoded: {e}"


def _checksum(length: bytes, packed: bytes) -> bytes:
    return zlib.crc32(packed, zlib.crc32(length)).to_bytes(_NUMBER, "little")
