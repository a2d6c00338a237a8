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
from array import array
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache, partial
from operator import attrgetter
from typing import Final

from msgspec import Struct

from kubeproxy.api.addresses import IPV4, IPV6, Family, unpack
from kubeproxy.api.rows import Protocol
from kubeproxy.backends.ebpf import names
from kubeproxy.linux.bpf.btf import Layout, integer
from kubeproxy.linux.bpf.maps import Kind, MapSpec
from kubeproxy.model.select import Endpoint

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

_U32: Final = "I"
"""The type code of `array` with 4 bytes."""

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


_PACKS: Final[dict[Family, Callable[[str], bytes]]] = {
    IPV4: socket.inet_aton,
    IPV6: partial(socket.inet_pton, socket.AF_INET6),
}
"""Canonical address to bytes; `addresses.pack` finds out the family first, which takes longer."""


@lru_cache(maxsize=1024)
def _behind(protocol: Protocol, port: int) -> bytes:
    """What follows the address in the key of a front."""
    return port.to_bytes(2) + bytes((PROTOCOLS[protocol], 0))


def front(address: str, protocol: Protocol, port: int, family: Family) -> bytes:
    """The key of a front; "" is the address of node ports."""
    packed = _PACKS[family](address) if address else bytes(LAYOUTS[family].address)
    return packed + _behind(protocol, port)


def entries(keys: Sequence[bytes], indexes: Sequence[int]) -> dict[bytes, bytes]:
    """The elements of fronts: index and tag, all words of the key combined as the programs do."""
    if not keys:
        return {}
    words = array(_U32, b"".join(keys))
    step = len(keys[0]) // words.itemsize
    tags = 0
    for at in range(step):
        tags ^= int.from_bytes(words[at::step].tobytes(), _order)
    values = array(_U32, bytes(8 * len(keys)))
    values[0::2] = array(_U32, indexes)
    values[1::2] = array(_U32, tags.to_bytes(4 * len(keys), _order))
    data = values.tobytes()
    return dict(zip(keys, [data[at : at + 8] for at in range(0, len(data), 8)], strict=True))


def entry(key: bytes, index: int) -> bytes:
    """The value of a front."""
    return entries([key], [index])[key]


def index_of(value: bytes) -> int:
    """The index in the value of a front."""
    return int.from_bytes(value[:4], _order)


def read_front(key: bytes) -> tuple[str, Protocol, int]:
    """Address, protocol and port of a key; "" for node ports."""
    address, port, protocol = key[:-4], int.from_bytes(key[-4:-2]), key[-2]
    name: Protocol = next((name for name, number in PROTOCOLS.items() if number == protocol), "SCTP")
    return unpack(address) if any(address) else "", name, port


ONE: Final = 1 << 32
"""One endpoint in the count of a word."""

FLAGS: Final = 48
"""Above so many bits of a word are its flags."""

BASE, COUNT, BLOCK = ONE - 1, 0xFFFF << 32, (1 << FLAGS) - 1
"""The bits of a word that say where its block is, how many endpoints that has, and both."""


def word(base: int, count: int, flags: int) -> int:
    """A word."""
    return base | count << 32 | flags << 48


def parts(value: int) -> tuple[int, int, int]:
    """Base, count and flags of a word."""
    return value & 0xFFFFFFFF, value >> 32 & 0xFFFF, value >> 48


_ADDRESS: Final = attrgetter("address")


@lru_cache(maxsize=1024)
def _after_address(port: int, family: Family) -> bytes:
    """What follows the address in a slot."""
    return port.to_bytes(2) + bytes(LAYOUTS[family].slot - LAYOUTS[family].address - 2)


def block(endpoints: Collection[Endpoint], family: Family) -> bytes:
    """The slots of endpoints. Nearly always all have the same port; then it is packed once."""
    if not endpoints:
        return b""
    pack = _PACKS[family]
    ports = {each.port for each in endpoints}
    if len(ports) == 1:
        after = _after_address(*ports, family)
        return after.join(map(pack, map(_ADDRESS, endpoints))) + after
    return b"".join([pack(each.address) + _after_address(each.port, family) for each in endpoints])


def cell(endpoint: Endpoint) -> int:
    """The slot of an endpoint of IPv4 as a word."""
    return int.from_bytes(socket.inet_aton(endpoint.address) + _after_address(endpoint.port, IPV4), _order)


def read_slot(data: bytes) -> tuple[str, int]:
    """Address and port of an endpoint."""
    if len(data) == 8:
        return unpack(data[:4]), int.from_bytes(data[4:6])
    return unpack(data[:16]), int.from_bytes(data[16:18])


def member(index: int, slot: bytes, family: Family) -> bytes:
    """The key of an endpoint of a word."""
    return index.to_bytes(4, _order) + slot[: LAYOUTS[family].address + 2] + bytes(2)
