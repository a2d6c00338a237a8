"""Addresses of this host, and word of their changes.

Source: linux/rtnetlink.h, linux/if_addr.h.
"""

import errno
import struct
from collections.abc import Iterator
from typing import NamedTuple

from kubeproxy.netlink import wire

NEW_ADDRESS, DELETE_ADDRESS, GET_ADDRESS = 20, 21, 22
GROUP_IPV4_ADDRESSES, GROUP_IPV6_ADDRESSES = 5, 9

_ADDRESS, _LOCAL = 1, 2
_IFADDRMSG = struct.Struct("=BBBBI")


class Address(NamedTuple):
    """An address of an interface: 4 or 16 bytes in network order, its prefix length, the interface's index."""

    packed: bytes
    prefix: int
    interface: int


def addresses() -> list[Address]:
    """Every address this host has, on every interface.

    Raises:
        OSError: the kernel refused.
    """
    with wire.Socket(wire.ROUTE) as kernel:
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


def monitor() -> wire.Socket:
    """A socket that becomes readable when an address comes or goes."""
    return wire.Socket(wire.ROUTE, (GROUP_IPV4_ADDRESSES, GROUP_IPV6_ADDRESSES))
