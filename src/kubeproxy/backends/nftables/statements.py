"""The statements that rules of a family are made of.

Registers are numbered from 0, four bytes each. A front is loaded from register 0 on: address (one register,
or four), protocol, port; of a node port only the last two.
"""

import sys
from hashlib import sha256
from typing import NamedTuple

from kubeproxy.api.addresses import BITS, IPV4, pack
from kubeproxy.api.rows import Protocol
from kubeproxy.backends.nftables import packing
from kubeproxy.model.jenkins import SEED
from kubeproxy.model.node import LocalTraffic, NodeConfig
from kubeproxy.netlink.nft import expressions as x
from kubeproxy.netlink.nft.messages import IP, IP6


class Rule(NamedTuple):
    """A rule: its expressions, and its comment."""

    expressions: tuple[bytes, ...]
    comment: str = ""

    @property
    def digest(self) -> bytes:
        """Eight bytes to recognise it by."""
        return sha256(b"".join(self.expressions) + self.comment.encode()).digest()[:8]


class Statements:
    """Statements for the packets of one family on one node."""

    def __init__(self, node: NodeConfig) -> None:
        ipv4 = node.family == IPV4
        self.family = IP if ipv4 else IP6
        self.words = BITS[node.family] // 32
        """Registers an address takes."""
        self._length = 4 * self.words
        self._source_offset, self._destination_offset = (12, 16) if ipv4 else (8, 24)
        self._mark = node.masquerade_mark
        self._local = node.local_traffic
        self._counters = (x.counter(),) if node.counters else ()

    def source(self, register: int) -> bytes:
        """Loads the source address."""
        return x.payload(register, x.NETWORK_HEADER, self._source_offset, self._length)

    def destination(self, register: int) -> bytes:
        """Loads the destination address."""
        return x.payload(register, x.NETWORK_HEADER, self._destination_offset, self._length)

    def port(self, register: int) -> tuple[bytes, ...]:
        """Loads protocol and destination port."""
        return x.meta(register, x.META_L4PROTO), x.payload(register + 1, x.TRANSPORT_HEADER, 2, 2)

    def front(self) -> tuple[bytes, ...]:
        """Loads the packet's front, to register 0."""
        return self.destination(0), *self.port(self.words)

    def pick(self, name: str, count: int, *, node_port: bool = False) -> tuple[bytes, ...]:
        """Sends to one of the endpoints that a map has for the packet's front; continues if it has none."""
        front = self.port(0) if node_port else self.front()
        number = 2 if node_port else self.words + 2
        return *front, x.number(number, count), x.lookup(name, 0, 0), x.dnat(self.family, 0, self.words)

    def pick_hashed(self, protocol: Protocol, name: str, size: int, *, with_port: bool) -> tuple[bytes, ...]:
        """Sends to the endpoint that a table of Maglev hashing has for the client; continues for none.

        Args:
            protocol: the protocol of the packets; nft needs it to read what it prints.
            name: the map.
            size: the number of its slots.
            with_port: the hash is of the client's address and port, otherwise of its address.
        """
        port = (x.payload(1 + self.words, x.TRANSPORT_HEADER, 0, 2),) if with_port else ()
        return (
            x.meta(0, x.META_L4PROTO),
            x.compare(0, packing.PROTOCOLS[protocol][:1]),
            self.source(1),
            *port,
            x.jenkins(0, 1, self._length + 4 * with_port, size, SEED),
            x.lookup(name, 0, 0),
            x.dnat(self.family, 0, self.words),
        )

    def chance(self, weight: int, whole: int) -> tuple[bytes, ...]:
        """Continues with the probability that a weight has in the whole; always if it is all of it."""
        if weight == whole:
            return ()
        if whole % weight == 0:
            return x.number(0, whole // weight), x.compare(0, bytes(4))
        number = x.number(0, whole), x.to_network_order(0)
        return *number, x.compare(0, weight.to_bytes(4), x.BELOW)

    def send(self, protocol: Protocol, address: str, port: int) -> tuple[bytes, ...]:
        """Sends to one endpoint; continues only for its protocol, which nft needs to read what it prints."""
        return (
            x.meta(0, x.META_L4PROTO),
            x.compare(0, packing.PROTOCOLS[protocol][:1]),
            x.immediate(0, pack(address)),
            x.immediate(self.words, port.to_bytes(2)),
            *self._counters,
            x.dnat(self.family, 0, self.words),
        )

    def mark(self) -> tuple[bytes, ...]:
        """Marks the packet for masquerading."""
        return (
            x.meta(0, x.META_MARK),
            x.bitwise(0, _word(~self._mark), _word(self._mark)),
            x.set_meta(0, x.META_MARK),
        )

    def unmark(self) -> tuple[bytes, ...]:
        """Removes the mark; continues only if the packet has it."""
        return (
            x.meta(0, x.META_MARK),
            *_has(self._mark),
            x.meta(0, x.META_MARK),
            x.bitwise(0, _word(~0), _word(self._mark)),
            x.set_meta(0, x.META_MARK),
        )

    def new_connection(self) -> tuple[bytes, ...]:
        """Continues only for the first packets of a connection."""
        return x.ct(0, x.CT_STATE), *_has(x.CT_NEW)

    def tracked_before(self) -> tuple[bytes, ...]:
        """Continues only if an earlier packet of the connection was let through."""
        return x.ct(0, x.CT_STATUS), *_has(x.CT_CONFIRMED)

    def translated(self) -> tuple[bytes, ...]:
        """Continues only if the connection's destination was changed."""
        return x.ct(0, x.CT_STATUS), *_has(x.CT_DNAT)

    def from_this_host(self) -> tuple[bytes, ...]:
        """Continues only if the source is an address of this host."""
        return x.fib_type(0, destination=False), x.compare(0, _word(x.LOCAL))

    def to_this_host(self) -> tuple[bytes, ...]:
        """Continues only if the destination is an address of this host."""
        return x.fib_type(0, destination=True), x.compare(0, _word(x.LOCAL))

    def destination_in(self, cidr: str, *, inverted: bool = False) -> tuple[bytes, ...]:
        """Continues only if the destination is, or inverted is not, in a range."""
        return self.destination(0), *self._in_range(cidr, inverted=inverted)

    def from_local_pod(self) -> tuple[bytes, ...] | None:
        """Continues only if a local Pod sent the packet; None if that is not known."""
        return None if self._local is None else self._match(self._local, inverted=False)

    def not_from_local_pod(self) -> tuple[bytes, ...] | None:
        """Continues only if no local Pod sent the packet; None if that is not known."""
        return None if self._local is None else self._match(self._local, inverted=True)

    def _match(self, local: LocalTraffic, *, inverted: bool) -> tuple[bytes, ...]:
        if local.by == "range":
            return self.source(0), *self._in_range(local.value, inverted=inverted)
        # An interface's name is compared with its ending zero, a prefix without.
        name = local.value.encode() + (b"" if local.by == "prefix" else bytes(16 - len(local.value.encode())))
        operator = x.NOT_EQUAL if inverted else x.EQUAL
        return x.meta(0, x.META_INPUT_NAME), x.compare(0, name, operator)

    def _in_range(self, cidr: str, *, inverted: bool) -> tuple[bytes, ...]:
        network, _, length = cidr.partition("/")
        bits = 8 * self._length
        mask = ((1 << bits) - (1 << (bits - int(length)))).to_bytes(self._length)
        operator = x.NOT_EQUAL if inverted else x.EQUAL
        compare = x.compare(0, pack(network), operator)
        if int(length) == bits:
            return (compare,)
        return x.bitwise(0, mask, bytes(self._length)), compare


def _has(bits: int) -> tuple[bytes, ...]:
    """Continues only if one of some bits is set in register 0."""
    return x.bitwise(0, _word(bits), _word(0)), x.compare(0, _word(0), x.NOT_EQUAL)


def _word(value: int) -> bytes:
    """A number as the host has it in a register."""
    return (value & 0xFFFFFFFF).to_bytes(4, sys.byteorder)
