"""Addresses and routes of this host, notifications about changes of addresses, and dummy interfaces.

Source: linux/rtnetlink.h, linux/if_addr.h, linux/if_link.h.
"""

import errno
import socket
import struct
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from kubeproxy.netlink import wire
from kubeproxy.netlink.namespace import Namespace, Sockets

NEW_ADDRESS, DELETE_ADDRESS, GET_ADDRESS = 20, 21, 22
GET_ROUTE = 26
GROUP_IPV4_ADDRESSES, GROUP_IPV6_ADDRESSES = 5, 9
GROUP_IPV4_SETTINGS, GROUP_IPV6_SETTINGS = 24, 25

_ADDRESS, _LOCAL = 1, 2
_IFADDRMSG = struct.Struct("=BBBBI")
_NEW_LINK, _DELETE_LINK = 16, 17
_GET_LINK = 18
_NAME, _MTU, _PARENT, _LINK_INFO = 3, 4, 5, 18
_KIND, _DATA, _VXLAN_LINK = 1, 2, 3
_UP = 1
_IFINFOMSG = struct.Struct("=BxHiII")
_RTMSG = struct.Struct("=BBBBBBBBI")
_DESTINATION, _OUT_INTERFACE, _PREFERRED_SOURCE = 1, 4, 7
_LOCAL_ROUTE = 2


_SOMEWHERE: Final[Mapping[int, str]] = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses for documentation (RFC 5737, RFC 3849), which are routed like those of any remote host."""


class Address(NamedTuple):
    """An address of an interface: 4 or 16 bytes in network order, prefix length, index of the interface."""

    packed: bytes
    prefix: int
    interface: int


def addresses(namespace: Namespace) -> list[Address]:
    """All addresses of this host, on all interfaces.

    Raises:
        OSError: the kernel refused.
    """
    with wire.Socket(namespace, wire.ROUTE) as kernel:
        for _ in range(10):
            try:
                return list(_addresses(kernel))
            except wire.NetlinkError as e:
                if e.errno != errno.EINTR:
                    raise
        raise OSError(errno.EINTR, "the host's addresses change faster than they can be listed")


def _addresses(kernel: wire.Socket) -> Iterator[Address]:
    for reply in kernel.dump(GET_ADDRESS, _IFADDRMSG.pack(0, 0, 0, 0, 0)):
        _, prefix, _, _, index = _IFADDRMSG.unpack_from(reply.body)
        found = wire.attributes(reply.body[8:])
        packed = found.get(_LOCAL, found.get(_ADDRESS))
        if packed is not None:
            yield Address(bytes(packed), prefix, index)


def source_address(sockets: Sockets, domain: int, remote: str = "") -> str:
    """The source address of packets to a remote host, without its zone. No packet is sent for this.

    Args:
        sockets: makes sockets in the network namespace.
        domain: socket.AF_INET or AF_INET6.
        remote: the address of the remote host; "" for any.

    Returns:
        The address, "" if there is no route to the host.
    """
    try:
        with sockets.socket(domain, socket.SOCK_DGRAM) as probe:
            probe.connect((remote or _SOMEWHERE[domain], 9))
            return str(probe.getsockname()[0]).partition("%")[0]
    except OSError:
        return ""


class Route(NamedTuple):
    """The route of packets to an address.

    Attributes:
        interface: the index of the outgoing interface.
        source: the source address of packets that a process of this host sends; "" if the kernel reports
            none.
        local: the address is one of this host.
    """

    interface: int
    source: str
    local: bool


def route_to(namespace: Namespace, address: str) -> Route | None:
    """The route to an address; None if there is none. No packet is sent for this.

    Raises:
        OSError: the kernel refused, or `address` is not an IP address.
    """
    domain = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(domain, address)
    body = _RTMSG.pack(domain, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0) + wire.attribute(_DESTINATION, packed)
    with wire.Socket(namespace, wire.ROUTE) as kernel:
        try:
            replies = kernel.request(GET_ROUTE, body, 0)
        except wire.NetlinkError as e:
            if e.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL}:
                return None
            raise
    for reply in replies:
        found = wire.attributes(reply.body[_RTMSG.size :])
        source = found.get(_PREFERRED_SOURCE)
        return Route(
            int.from_bytes(bytes(found.get(_OUT_INTERFACE, b"")), sys.byteorder),
            "" if source is None else socket.inet_ntop(domain, bytes(source)),
            reply.body[7] == _LOCAL_ROUTE,
        )
    return None


class Link(NamedTuple):
    """An interface.

    Attributes:
        number: its index.
        name: its name.
        kind: the kernel's name of its kind, e.g. "bridge", "veth" or "vxlan"; "" for hardware and loopback.
        mtu: the size of the largest packet, in bytes.
        parent: the index of the interface it sends through, e.g. of a tunnel; 0 for none.
        up: it is set up.
    """

    number: int
    name: str
    kind: str
    mtu: int
    parent: int
    up: bool


def links(namespace: Namespace) -> list[Link]:
    """All interfaces.

    Raises:
        OSError: the kernel refused.
    """
    found = []
    with wire.Socket(namespace, wire.ROUTE) as kernel:
        for reply in kernel.dump(_GET_LINK, _IFINFOMSG.pack(0, 0, 0, 0, 0)):
            _, _, index, flags, _ = _IFINFOMSG.unpack_from(reply.body)
            a = wire.attributes(reply.body[_IFINFOMSG.size :])
            info = wire.attributes(a[_LINK_INFO]) if _LINK_INFO in a else {}
            kind = wire.string(info[_KIND]) if _KIND in info else ""
            data = wire.attributes(info[_DATA]) if _DATA in info and kind == "vxlan" else {}
            parent = data[_VXLAN_LINK] if _VXLAN_LINK in data else a.get(_PARENT)
            found.append(
                Link(
                    index,
                    wire.string(a[_NAME]),
                    kind,
                    int.from_bytes(a[_MTU], sys.byteorder) if _MTU in a else 0,
                    int.from_bytes(parent, sys.byteorder) if parent is not None else 0,
                    bool(flags & _UP),
                )
            )
    return found


def is_link_local6(packed: bytes) -> bool:
    """Whether an address is a link-local IPv6 address (fe80::/10), which is unique only on its interface."""
    return len(packed) == 16 and packed[0] == 0xFE and packed[1] & 0xC0 == 0x80


def socket_address(
    own: Callable[[], Iterable[Address]], address: str, port: int
) -> tuple[str, int] | tuple[str, int, int, int]:
    """The socket address for an address of this host; that of a link-local IPv6 address has its interface.

    Args:
        own: returns this host's addresses.
        address: an IPv4 or IPv6 address without a zone.
        port: a port.

    Raises:
        OSError: it is not an IP address, or the addresses of this host cannot be read.
    """
    if ":" not in address:
        return address, port
    packed = socket.inet_pton(socket.AF_INET6, address)
    if not is_link_local6(packed):
        return address, port
    interface = next((found.interface for found in own() if found.packed == packed), 0)
    return address, port, 0, interface


def monitor(namespace: Namespace) -> wire.Socket:
    """A socket that becomes readable when an address is added or removed."""
    return wire.Socket(namespace, wire.ROUTE, (GROUP_IPV4_ADDRESSES, GROUP_IPV6_ADDRESSES))


def settings_monitor(namespace: Namespace) -> wire.Socket:
    """A socket that becomes readable when a network setting of an interface changes, e.g. IP forwarding."""
    return wire.Socket(namespace, wire.ROUTE, (GROUP_IPV4_SETTINGS, GROUP_IPV6_SETTINGS))


def concerns(message: wire.Message, interface: int) -> bool:
    """Whether a monitor's message is about an address of an interface."""
    return bool(_IFADDRMSG.unpack_from(message.body)[4] == interface)


def address_of(message: wire.Message) -> bytes:
    """The address in a notification of a monitor."""
    found = wire.attributes(message.body[8:])
    return bytes(found.get(_LOCAL, found.get(_ADDRESS, b"")))


def ensure_dummy(namespace: Namespace, name: str) -> int:
    """Creates a dummy interface if there is no interface of that name; returns its index.

    The interface is not set up. Its addresses are addresses of the host nevertheless, and are not announced
    by ARP.

    Raises:
        OSError: the kernel does not support dummy interfaces, or we lack CAP_NET_ADMIN.
    """
    with wire.Socket(namespace, wire.ROUTE) as kernel:
        body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + wire.text(_NAME, name)
        body += wire.nested(_LINK_INFO, wire.attribute(_KIND, b"dummy"))
        try:
            kernel.request(_NEW_LINK, body, wire.CREATE | wire.EXCL)
        except wire.NetlinkError as e:
            if e.errno != errno.EEXIST:
                raise
    return namespace.interface(name)


def delete_interface(namespace: Namespace, name: str) -> bool:
    """Deletes an interface; returns whether it existed.

    Raises:
        OSError: the kernel refused.
    """
    index = namespace.interface(name)
    if index:
        with wire.Socket(namespace, wire.ROUTE) as kernel:
            kernel.request(_DELETE_LINK, _IFINFOMSG.pack(0, 0, index, 0, 0))
    return bool(index)


def add_addresses(
    namespace: Namespace, interface: int, packed: Collection[bytes]
) -> dict[bytes, wire.NetlinkError]:
    """Adds host addresses (/32, /128) to an interface; returns those that were refused.

    Existing ones are ignored.

    Raises:
        OSError: the requests could not be sent.
    """
    refused = _change(namespace, NEW_ADDRESS, wire.CREATE | wire.EXCL, interface, packed)
    return {address: e for address, e in refused.items() if e.errno != errno.EEXIST}


def delete_addresses(
    namespace: Namespace, interface: int, packed: Collection[bytes]
) -> dict[bytes, wire.NetlinkError]:
    """Removes host addresses from an interface; returns those that were refused. Missing ones are ignored.

    Raises:
        OSError: the requests could not be sent.
    """
    refused = _change(namespace, DELETE_ADDRESS, 0, interface, packed)
    return {address: e for address, e in refused.items() if e.errno != errno.EADDRNOTAVAIL}


def _change(
    namespace: Namespace, kind: int, flags: int, interface: int, packed: Collection[bytes]
) -> dict[bytes, wire.NetlinkError]:
    addresses = list(packed)
    if not addresses:
        return {}
    requests = [
        wire.Request(
            kind,
            flags,
            _IFADDRMSG.pack(
                socket.AF_INET if len(address) == 4 else socket.AF_INET6, 8 * len(address), 0, 0, interface
            )
            + wire.attribute(_LOCAL, address)
            + wire.attribute(_ADDRESS, address),
        )
        for address in addresses
    ]
    with wire.Socket(namespace, wire.ROUTE) as kernel:
        return {addresses[at]: error for at, error in kernel.submit(requests).items()}
