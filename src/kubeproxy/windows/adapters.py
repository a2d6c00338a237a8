"""Network interfaces of Windows, their addresses, and notifications of changes of addresses (iphlpapi.dll).

Windows calls back on a thread of its own when an address changes.

Source: iptypes.h, netioapi.h; IP_ADAPTER_ADDRESSES_LH as of Windows Vista, in a 64-bit process.
"""

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from ctypes import POINTER, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Any, Final, NamedTuple, Protocol

from kubeproxy.windows.dll import SystemLibrary, callback, error, load
from kubeproxy.windows.text import narrow

IPV4_FAMILY: Final = 2
IPV6_FAMILY: Final = 23
"""AF_INET and AF_INET6 of Windows; socket.AF_INET6 has another number on Linux."""

_NO_ANYCAST_MULTICAST_DNS: Final = 0x2 | 0x4 | 0x8
_OK, _BUFFER_OVERFLOW, _NO_DATA = 0, 111, 232
_FIRST_SIZE: Final = 16 * 1024
_TRIES: Final = 10
_OPERATIONAL: Final = 1
_LOOPBACK: Final = 24
"""IF_TYPE_SOFTWARE_LOOPBACK"""


class SocketAddress(ctypes.Structure):
    """SOCKET_ADDRESS: a pointer to a sockaddr, and its length."""

    _fields_ = (("sockaddr", c_void_p), ("length", ctypes.c_int32))


class UnicastAddress(ctypes.Structure):
    """IP_ADAPTER_UNICAST_ADDRESS_LH."""

    _fields_ = (
        ("length", c_uint32),
        ("flags", c_uint32),
        ("next", c_void_p),
        ("address", SocketAddress),
        ("prefix_origin", c_uint32),
        ("suffix_origin", c_uint32),
        ("dad_state", c_uint32),
        ("valid_lifetime", c_uint32),
        ("preferred_lifetime", c_uint32),
        ("lease_lifetime", c_uint32),
        ("prefix", c_uint8),
    )


class AdapterAddresses(ctypes.Structure):
    """The beginning of IP_ADAPTER_ADDRESSES_LH, as far as it is read."""

    _fields_ = (
        ("length", c_uint32),
        ("index", c_uint32),
        ("next", c_void_p),
        ("adapter_name", c_void_p),
        ("first_unicast", c_void_p),
        ("first_anycast", c_void_p),
        ("first_multicast", c_void_p),
        ("first_dns_server", c_void_p),
        ("dns_suffix", c_void_p),
        ("description", c_void_p),
        ("friendly_name", c_void_p),
        ("physical_address", c_uint8 * 8),
        ("physical_address_length", c_uint32),
        ("flags", c_uint32),
        ("mtu", c_uint32),
        ("kind", c_uint32),
        ("status", c_uint32),
        ("index6", c_uint32),
    )


class Adapter(NamedTuple):
    """An interface.

    Attributes:
        number: its index; IPv4 and IPv6 have the same, unless one is 0.
        name: its name, e.g. "vEthernet (Ethernet)".
        mac: its hardware address as HNS writes it, e.g. "00-15-5D-00-00-01"; "" if it has none.
        mtu: the size of the largest packet, in bytes.
        loopback: it is the loopback interface.
        up: it can send.
        addresses: its addresses, 4 or 16 bytes in network order, with their prefix lengths.
    """

    number: int
    name: str
    mac: str
    mtu: int
    loopback: bool
    up: bool
    addresses: tuple[tuple[bytes, int], ...]


class Adapters(Protocol):
    """The interfaces of a host."""

    def list(self) -> list[Adapter]:
        """All interfaces.

        Raises:
            OSError: Windows refused.
        """

    def watch(self, changed: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
        """Calls back, on another thread, when an address is added, removed or changed, until the block ends.

        Raises:
            OSError: Windows refused.
        """


class IPHelper:
    """See `Adapters`."""

    def __init__(self, library: SystemLibrary | None = None) -> None:
        """Loads the library.

        Args:
            library: its functions; None for those of this host.

        Raises:
            OSError: it cannot be loaded.
        """
        library = library or load("iphlpapi.dll")
        self._list = library.function(
            "GetAdaptersAddresses", c_uint32, c_uint32, c_uint32, c_void_p, c_void_p, POINTER(c_uint32)
        )
        self._notify = library.function(
            "NotifyUnicastIpAddressChange", c_uint32, c_uint16, c_void_p, c_void_p, c_uint8, POINTER(c_void_p)
        )
        self._cancel = library.function("CancelMibChangeNotify2", c_uint32, c_void_p)

    def list(self) -> list[Adapter]:
        """See `Adapters`."""
        size = c_uint32(_FIRST_SIZE)
        for _ in range(_TRIES):  # interfaces may be added between two calls
            memory = (c_uint64 * (size.value // 8 + 1))()
            code = self._list(
                0, _NO_ANYCAST_MULTICAST_DNS, None, ctypes.cast(memory, c_void_p), ctypes.byref(size)
            )
            if code == _NO_DATA:
                return []
            if code == _OK:
                return list(_adapters(ctypes.addressof(memory)))
            if code != _BUFFER_OVERFLOW:
                break
        raise error(code, "GetAdaptersAddresses")

    @contextlib.contextmanager
    def watch(self, changed: Callable[[], None]) -> Iterator[None]:
        """See `Adapters`."""

        def called(_context: int, _row: int, _kind: int) -> None:
            changed()

        function: Any = callback(None, c_void_p, c_void_p, c_uint32)(called)
        handle = c_void_p()
        code = self._notify(0, ctypes.cast(function, c_void_p), None, 0, ctypes.byref(handle))
        if code != _OK:
            raise error(code, "NotifyUnicastIpAddressChange")
        try:
            yield
        finally:
            self._cancel(handle)  # returns when no callback runs any more


def _adapters(address: int | None) -> Iterator[Adapter]:
    """The interfaces of a linked list in memory."""
    while address:
        found = AdapterAddresses.from_address(address)
        mac = bytes(found.physical_address)[: found.physical_address_length]
        yield Adapter(
            found.index or found.index6,
            narrow(found.friendly_name),
            "-".join(f"{byte:02X}" for byte in mac),
            found.mtu,
            found.kind == _LOOPBACK,
            found.status == _OPERATIONAL,
            tuple(_addresses(found.first_unicast)),
        )
        address = found.next


def _addresses(address: int | None) -> Iterator[tuple[bytes, int]]:
    """The addresses of a linked list in memory; of families other than IPv4 and IPv6 none."""
    while address:
        found = UnicastAddress.from_address(address)
        sockaddr = found.address.sockaddr
        family = c_uint16.from_address(sockaddr).value if sockaddr else 0
        if family == IPV4_FAMILY:
            yield ctypes.string_at(sockaddr + 4, 4), found.prefix
        elif family == IPV6_FAMILY:
            yield ctypes.string_at(sockaddr + 8, 16), found.prefix
        address = found.next
