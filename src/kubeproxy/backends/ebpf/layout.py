"""The maps of a family, and how their keys and values are packed.

    fronts     address, port, protocol of a front -> index of a word, and a tag computed from the key
    hosts      addresses of the node that serve node ports; node ports are fronts with the address 0
    words      for each Service port two words: for its ClusterIP, and for all its other fronts
    slots      endpoints; a word names a block of them
    counts     for each slot, the connections that were sent there
    timeouts   for each Service port, after how long a client's endpoint is forgotten
    members    the endpoints of each word, for Services with session affinity, with the connections of
               clients that came back
    sticky     the endpoint of each client of a Service with session affinity
    reverse    sockets of UDP: which front was asked for what came from an endpoint
    peers      sockets of TCP: which front they were connected to

A word is one aligned store of 8 bytes, so a program sees the old endpoints or the new ones:

    base 32 | count 16 | flags 16

A block is written before the word that names it, and one that is not named any more is not written again for
a while. The element of a front is written once: its index stays the same while the front exists.

The memory of a deleted element of a hash map may be used for another element while a program still reads it.
Therefore an element of `fronts` has a tag, which a program compares.
"""

import socket
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from msgspec import Struct

from kubeproxy.api.addresses import IPV4, Family, pack, unpack
from kubeproxy.api.rows import Protocol
from kubeproxy.backends.ebpf import names
from kubeproxy.linux.bpf.btf import Layout, integer
from kubeproxy.linux.bpf.maps import Kind, MapSpec

PASS, OWN, STICKY = 1, 2, 4
"""Flags of words: nftables mode decides; only for sockets of the node's own namespace; session affinity.

OWN is a flag of hosts, too.
"""

PASSING: Final = 0
"""The index of a word that always passes, for fronts that are left to nftables mode."""

FIRST: Final = 1
"""The first number of a Service port. Number n has the words 2n and 2n + 1."""

MOST_ENDPOINTS: Final = 0xFFFF
"""What fits into a word."""

LRU_ENTRIES: Final = 1 << 15

PROTOCOLS: Final[dict[Protocol, int]] = {"TCP": socket.IPPROTO_TCP, "UDP": socket.IPPROTO_UDP}
"""The protocols whose sockets are connected to endpoints."""

_order: Final = "little"
"""Words are packed for machines with this byte order alone; see `prepare`."""

_WORD, _NUMBER = integer("__u64"), integer("__u32")


class Capacity(Struct, frozen=True, gc=False):
    """How much the maps can hold.

    Attributes:
        fronts: fronts.
        ports: Service ports.
        slots: endpoints in blocks.
        members: endpoints of Services with session affinity.
        hosts: addresses of the node.
    """

    fronts: int = 4096
    ports: int = 2048
    slots: int = 16384
    members: int = 1024
    hosts: int = 256

    def holds(self, other: "Capacity") -> bool:
        """Whether it is enough for another one."""
        return (
            self.fronts >= other.fronts
            and self.ports >= other.ports
            and self.slots >= other.slots
            and self.members >= other.members
            and self.hosts >= other.hosts
        )


def grown(needed: Capacity, least: Capacity) -> Capacity:
    """Twice what is needed, as powers of two, and at least another one."""

    def more(count: int, least: int) -> int:
        return max(least, 1 << (2 * count - 1).bit_length())

    return Capacity(
        more(needed.fronts, least.fronts),
        more(needed.ports, least.ports),
        more(needed.slots, least.slots),
        more(needed.members, least.members),
        more(needed.hosts, least.hosts),
    )


class FamilyLayout(Struct, frozen=True, gc=False):
    """The maps of a family.

    Attributes:
        family: the family.
        address: the bytes of an address.
        slot: the bytes of an endpoint.
        key: the bytes of a key of `fronts`.
    """

    family: Family
    address: int
    slot: int
    key: int

    @property
    def slot_words(self) -> int:
        """The words of 8 bytes of an endpoint."""
        return self.slot // 8

    def maps(self, capacity: Capacity) -> dict[str, MapSpec]:
        """What the maps are made of, by name without the family."""
        address = (("address", "__be32" if self.family == IPV4 else "__u8[16]"),)
        port: tuple[tuple[str, str], ...] = (("port", "__be16"),)
        slot = (*address, *port, ("zero", "__u16" if self.family == IPV4 else "__u8[6]"))
        clients = (("client", "__u64"), ("number", "__u32"), ("zero", "__u32"))
        cookie: tuple[tuple[str, str], ...] = (("cookie", "__u64"),)
        front = tuple((f"front_{name}", kind) for name, kind in slot)

        def spec(name: str, kind: Kind, key: Layout, value: Layout, entries: int) -> MapSpec:
            return MapSpec(f"{names.INFIX}{name}{names.digit(self.family)}", kind, key, value, entries)

        slots = Layout("slot", slot)
        return {
            "fronts": spec(
                "fronts",
                "hash",
                Layout("front", (*address, *port, ("protocol", "__u8"), ("zero", "__u8"))),
                Layout("entry", (("index", "__u32"), ("tag", "__u32"))),
                capacity.fronts,
            ),
            "hosts": spec("hosts", "hash", Layout("host", address), _NUMBER, capacity.hosts),
            "words": spec(
                "words",
                "array",
                _NUMBER,
                Layout("word", (("base", "__u32"), ("count", "__u16"), ("flags", "__u16"))),
                2 * capacity.ports,
            ),
            "slots": spec("slots", "array", _NUMBER, slots, capacity.slots),
            "counts": spec("counts", "array", _NUMBER, _WORD, capacity.slots),
            "timeouts": spec("timeouts", "array", _NUMBER, _WORD, capacity.ports),
            "members": spec(
                "members",
                "hash",
                Layout("member", (("index", "__u32"), *address, *port, ("zero", "__u16"))),
                _WORD,
                capacity.members,
            ),
            "sticky": spec(
                "sticky",
                "lru_hash",
                Layout("client", clients),
                Layout("stuck", (*slot, ("time", "__u64"))),
                LRU_ENTRIES,
            ),
            "reverse": spec("reverse", "lru_hash", Layout("answer", (*cookie, *slot)), slots, LRU_ENTRIES),
            "peers": spec("peers", "sk_storage", _NUMBER, Layout("peer", (*front, *slot)), 0),
        }


LAYOUTS: Final[dict[Family, FamilyLayout]] = {
    "IPv4": FamilyLayout("IPv4", address=4, slot=8, key=8),
    "IPv6": FamilyLayout("IPv6", address=16, slot=24, key=20),
}


def front(address: str, protocol: Protocol, port: int, family: Family) -> bytes:
    """The key of a front; "" is the address of node ports."""
    packed = pack(address) if address else bytes(LAYOUTS[family].address)
    return packed + port.to_bytes(2) + bytes((PROTOCOLS[protocol], 0))


def entry(key: bytes, index: int) -> bytes:
    """The value of a front: index and tag."""
    return index.to_bytes(4, _order) + tag(key).to_bytes(4, _order)


def index_of(value: bytes) -> int:
    """The index in the value of a front."""
    return int.from_bytes(value[:4], _order)


def tag(key: bytes) -> int:
    """All words of a key, combined as the programs do."""
    found = 0
    for at in range(0, len(key), 4):
        found ^= int.from_bytes(key[at : at + 4], _order)
    return found


def read_front(key: bytes) -> tuple[str, Protocol, int]:
    """Address, protocol and port of a key; "" for node ports."""
    address, port, protocol = key[:-4], int.from_bytes(key[-4:-2]), key[-2]
    name: Protocol = next((name for name, number in PROTOCOLS.items() if number == protocol), "SCTP")
    return unpack(address) if any(address) else "", name, port


def word(base: int, count: int, flags: int) -> int:
    """A word."""
    return base | count << 32 | flags << 48


def parts(value: int) -> tuple[int, int, int]:
    """Base, count and flags of a word."""
    return value & 0xFFFFFFFF, value >> 32 & 0xFFFF, value >> 48


@lru_cache(maxsize=1024)
def _words(address: str) -> tuple[int, ...]:
    """The words of a slot with this address and no port; what changes often is packed once."""
    packed = pack(address)
    if len(packed) == 4:
        return (int.from_bytes(packed, _order),)
    return int.from_bytes(packed[:8], _order), int.from_bytes(packed[8:], _order), 0


@lru_cache(maxsize=1024)
def _port(number: int, shift: int) -> int:
    return int.from_bytes(number.to_bytes(2), _order) << shift


def slot(address: str, port: int) -> tuple[int, ...]:
    """The words of an endpoint."""
    found = _words(address)
    if len(found) == 1:
        return (found[0] | _port(port, 32),)
    return *found[:2], _port(port, 0)


def slot_bytes(words: Iterable[int]) -> bytes:
    """The bytes of words."""
    return b"".join([each.to_bytes(8, _order) for each in words])


def read_slot(data: bytes) -> tuple[str, int]:
    """Address and port of an endpoint."""
    if len(data) == 8:
        return unpack(data[:4]), int.from_bytes(data[4:6])
    return unpack(data[:16]), int.from_bytes(data[16:18])


def member(index: int, slot: bytes, family: Family) -> bytes:
    """The key of an endpoint of a word."""
    return index.to_bytes(4, _order) + slot[: LAYOUTS[family].address + 2] + bytes(2)
