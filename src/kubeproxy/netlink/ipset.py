"""IP sets, in which iptables rules look up addresses and ports.

A message adds or deletes many elements; adding one that exists, or deleting one that does not, is no error.
The maximum size of a set is fixed when it is created: if it needs more elements, a larger set is filled under
another name, and both are swapped.

Source: linux/netfilter/ipset/ip_set.h, net/netfilter/ipset/ip_set_core.c.
"""

import errno
import struct
from collections.abc import Collection, Iterable, Iterator
from socket import AF_INET, AF_UNSPEC
from typing import Final, NamedTuple

from kubeproxy.netlink import wire
from kubeproxy.netlink.namespace import Namespace

HASH_IP: Final = "hash:ip"
HASH_IP_PORT: Final = "hash:ip,port"
HASH_IP_PORT_IP: Final = "hash:ip,port,ip"
HASH_IP_PORT_NET: Final = "hash:ip,port,net"
BITMAP_PORT: Final = "bitmap:port"

REVISIONS: Final = {HASH_IP: 5, HASH_IP_PORT: 6, HASH_IP_PORT_IP: 6, HASH_IP_PORT_NET: 8, BITMAP_PORT: 3}
"""The revisions to request if the kernel supports them: the latest that all ipset versions can print."""

NAME_SIZE: Final = 31
"""The maximum length of a name."""

_SUBSYSTEM = 6 << 8
_CREATE, _DESTROY, _SWAP, _LIST, _ADD, _DELETE, _TYPE = 2, 3, 6, 7, 9, 10, 13
_PROTOCOL = 6
_A_PROTOCOL, _A_NAME, _A_TYPE, _A_REVISION, _A_FAMILY, _A_FLAGS, _A_DATA, _A_ELEMENTS, _A_LINE = range(1, 10)
_A_OTHER_NAME = 3
_IP, _PORT, _PORT_TO, _PROTO, _IP2, _CIDR2 = 1, 4, 5, 7, 20, 21
_HASH_SIZE, _LIMIT, _COUNT, _REFERENCES = 18, 19, 24, 25
_HEADER_ONLY = 1 << 2
_NETWORK_ORDER = 0x4000
_ELEMENTS_BYTES = 60_000
_WORDS: Final = {
    4097: "protocol error",
    4098: "the kernel does not know this type of set",
    4099: "there are as many sets as the kernel allows",
    4100: "the set is in use",
    4102: "the sets' types differ",
    4103: "the element is there",
    4104: "the prefix length is invalid",
    4106: "the address family is invalid",
    4352: "the set is full",
}


class Element(NamedTuple):
    """An element of a set; fields that its type does not have are empty.

    Attributes:
        address: 4 or 16 bytes in network order.
        protocol: the number of the protocol of the port.
        port: the port.
        other: the second address, or the network's.
        prefix: the network's prefix length.
    """

    address: bytes = b""
    protocol: int = 0
    port: int = 0
    other: bytes = b""
    prefix: int = 0


class Header(NamedTuple):
    """A set without its elements.

    Attributes:
        type: its type.
        family: AF_INET, AF_INET6, or AF_UNSPEC if elements have no address.
        limit: the maximum number of elements; 0 if the type determines it.
        size: the number of elements; -1 if the kernel does not report it.
        references: how many rules and sets refer to it.
    """

    type: str
    family: int
    limit: int
    size: int
    references: int


class Sets(wire.Closing):
    """The kernel's IP sets in one network namespace."""

    def __init__(self, namespace: Namespace) -> None:
        """Opens a socket.

        Raises:
            OSError: the kernel has no nfnetlink.
        """
        self._socket: wire.Socket = wire.Socket(namespace, wire.NETFILTER)

    def revision(self, kind: str, family: int) -> int:
        """The latest revision of a type of sets that the kernel supports.

        Raises:
            OSError: the kernel does not support IP sets or this type.
        """
        body = wire.text(_A_TYPE, kind) + _byte(_A_FAMILY, family)
        for reply in self._request(_TYPE, body):
            return wire.attributes(reply.body[4:])[_A_REVISION][0]
        raise OSError(errno.ENOTSUP, f"no type {kind}")

    def create(self, name: str, kind: str, family: int, limit: int = 65536) -> None:
        """Creates a set, unless an equal one exists.

        Args:
            name: its name.
            kind: its type.
            family: AF_INET or AF_INET6.
            limit: for a hash, the maximum number of elements.

        Raises:
            OSError: the kernel refused; EEXIST if a different set has this name.
        """
        if kind == BITMAP_PORT:
            family = AF_UNSPEC
            data = _be16(_PORT, 0) + _be16(_PORT_TO, 65535)
        else:
            data = _be32(_HASH_SIZE, 1024) + _be32(_LIMIT, limit)
        revision = min(REVISIONS[kind], self.revision(kind, family))
        body = wire.text(_A_NAME, name) + wire.text(_A_TYPE, kind)
        body += _byte(_A_REVISION, revision) + _byte(_A_FAMILY, family) + wire.nested(_A_DATA, data)
        self._request(_CREATE, body, wire.CREATE)

    def destroy(self, name: str) -> None:
        """Deletes a set, if it exists.

        Raises:
            OSError: a rule refers to it.
        """
        try:
            self._request(_DESTROY, wire.text(_A_NAME, name))
        except wire.NetlinkError as e:
            if e.errno != errno.ENOENT:  # the error of older kernels
                raise

    def swap(self, one: str, other: str) -> None:
        """Swaps two sets of one type: rules that refer to one of them use the elements of the other at once.

        Raises:
            OSError: the kernel refused.
        """
        self._request(_SWAP, wire.text(_A_NAME, one) + wire.text(_A_OTHER_NAME, other))

    def add(self, name: str, elements: Collection[Element]) -> dict[Element, wire.NetlinkError]:
        """Adds elements; returns those that were refused, with the errors."""
        return self._change(_ADD, name, elements)

    def delete(self, name: str, elements: Collection[Element]) -> dict[Element, wire.NetlinkError]:
        """Deletes elements; returns those that were refused, with the errors."""
        return self._change(_DELETE, name, elements)

    def headers(self) -> dict[str, Header]:
        """All sets, including those of other programs.

        Raises:
            OSError: the kernel refused.
        """
        body = _be32(_A_FLAGS, _HEADER_ONLY)
        return {wire.string(a[_A_NAME]): _header(a) for a in self._dump(body)}

    def elements(self, name: str) -> set[Element]:
        """The elements of a set.

        Raises:
            OSError: ENOENT when there is none of that name.
        """
        return {
            _read(wire.attributes(data))
            for attributes in self._dump(wire.text(_A_NAME, name))
            for _, data in wire.attribute_list(attributes.get(_A_ELEMENTS, b""))
        }

    def _change(
        self, command: int, name: str, elements: Collection[Element]
    ) -> dict[Element, wire.NetlinkError]:
        if not elements:
            return {}
        requests = [_message(command, name, piece) for piece in _pieces(elements)]
        if not self._socket.submit(requests):
            return {}
        # An element was refused, and the kernel did not read those after it in the message. So send each
        # element by itself.
        alone = list(elements)
        refused = self._socket.submit([_message(command, name, [_data(e)]) for e in alone])
        return {alone[at]: _explained(error) for at, error in refused.items()}

    def _request(self, command: int, body: bytes, flags: int = 0) -> list[wire.Message]:
        try:
            return self._socket.request(_SUBSYSTEM | command, _header_of(body), flags)
        except wire.NetlinkError as e:
            raise _explained(e) from None

    def _dump(self, body: bytes) -> Iterator[dict[int, memoryview]]:
        try:
            for reply in self._socket.dump(_SUBSYSTEM | _LIST, _header_of(body)):
                yield wire.attributes(reply.body[4:])
        except wire.NetlinkError as e:
            raise _explained(e) from None


def _header_of(body: bytes) -> bytes:
    return struct.pack(">BBH", AF_INET, 0, 0) + _byte(_A_PROTOCOL, _PROTOCOL) + body


def _explained(error: wire.NetlinkError) -> wire.NetlinkError:
    """Adds the text of the error, because IP sets have their own error numbers."""
    words = _WORDS.get(error.errno or 0)
    return wire.NetlinkError(error.errno or 0, words) if words else error


def _pieces(elements: Iterable[Element]) -> Iterator[list[bytes]]:
    """Elements in the kernel's format, in groups that fit into an attribute."""
    piece: list[bytes] = []
    size = 0
    for element in elements:
        data = _data(element)
        if size + len(data) > _ELEMENTS_BYTES:
            yield piece
            piece, size = [], 0
        piece.append(data)
        size += len(data)
    yield piece


def _message(command: int, name: str, elements: Iterable[bytes]) -> wire.Request:
    body = wire.text(_A_NAME, name) + _be32(_A_LINE, 0) + wire.nested(_A_ELEMENTS, *elements)
    return wire.Request(_SUBSYSTEM | command, 0, _header_of(body))


def _data(element: Element) -> bytes:
    address, protocol, port, other, prefix = element
    parts = []
    if address:
        parts.append(_ip(_IP, address))
    if protocol or not address:  # an element without an address is a port in a bitmap
        parts.append(_be16(_PORT, port))
    if protocol:
        parts.append(_byte(_PROTO, protocol))
    if other:
        parts.append(_ip(_IP2, other))
    if prefix:
        parts.append(_byte(_CIDR2, prefix))
    return wire.nested(_A_DATA, *parts)


def _read(data: dict[int, memoryview]) -> Element:
    return Element(
        _packed(data[_IP]) if _IP in data else b"",
        data[_PROTO][0] if _PROTO in data else 0,
        int.from_bytes(data[_PORT]) if _PORT in data else 0,
        _packed(data[_IP2]) if _IP2 in data else b"",
        data[_CIDR2][0] if _CIDR2 in data else 0,
    )


def _header(attributes: dict[int, memoryview]) -> Header:
    data = wire.attributes(attributes.get(_A_DATA, b""))
    return Header(
        wire.string(attributes[_A_TYPE]),
        attributes[_A_FAMILY][0],
        int.from_bytes(data[_LIMIT]) if _LIMIT in data else 0,
        int.from_bytes(data[_COUNT]) if _COUNT in data else -1,
        int.from_bytes(data[_REFERENCES]) if _REFERENCES in data else 0,
    )


def _packed(value: memoryview) -> bytes:
    """The address in a nested attribute."""
    for _, address in wire.attribute_list(value):
        return bytes(address)
    return b""


def _ip(kind: int, address: bytes) -> bytes:
    return wire.nested(kind, wire.attribute((1 if len(address) == 4 else 2) | _NETWORK_ORDER, address))


def _byte(kind: int, value: int) -> bytes:
    return wire.attribute(kind, bytes([value]))


def _be16(kind: int, value: int) -> bytes:
    return wire.attribute(kind | _NETWORK_ORDER, value.to_bytes(2))


def _be32(kind: int, value: int) -> bytes:
    return wire.attribute(kind | _NETWORK_ORDER, value.to_bytes(4))
