"""IPVS, the kernel's layer 4 load balancer: virtual servers and the real servers behind them.

Changes are sent over generic netlink, any number in one datagram. The complete state of the kernel is read
from /proc/net/ip_vs, because netlink lists the real servers of only one virtual server at a time.

Source: linux/ip_vs.h, net/netfilter/ipvs/ip_vs_ctl.c.
"""

import struct
import sys
from collections.abc import Collection, Iterator, Sequence
from socket import AF_INET, AF_INET6
from typing import Final, NamedTuple

from kubeproxy import protocols
from kubeproxy.netlink import generic, wire
from kubeproxy.netlink.namespace import Namespace

SCTP, TCP, UDP = protocols.SCTP, protocols.TCP, protocols.UDP

PERSISTENT: Final = 0x1
SCHEDULER_1: Final = 0x8
SCHEDULER_2: Final = 0x10
"""Flags that depend on the scheduler: with the second one, `sh` and `mh` also use the source port."""

_SETTABLE: Final = PERSISTENT | 0x4 | SCHEDULER_1 | SCHEDULER_2 | 0x20

_NEW_SERVICE, _SET_SERVICE, _DELETE_SERVICE, _GET_SERVICE = 1, 2, 3, 4
_NEW_DEST, _SET_DEST, _DELETE_DEST, _GET_DEST = 5, 6, 7, 8
_SET_CONFIG, _GET_CONFIG = 12, 13
_SERVICE, _DEST, _TCP_TIMEOUT, _FIN_TIMEOUT, _UDP_TIMEOUT = 1, 2, 4, 5, 6
_STATISTICS, _STATISTICS64, _SCHEDULED = 10, 12, 1
_VERSION = 1
_MASQUERADE = 0

_TABLE: Final = "ip_vs"
_CONNECTIONS: Final = "ip_vs_conn"
_PROTOCOLS: Final = {b"TCP": TCP, b"UDP": UDP, b"SCTP": SCTP}


class Virtual(NamedTuple):
    """The key of a virtual server: protocol, address (4 or 16 bytes, network order) and port."""

    protocol: int
    address: bytes
    port: int


class Settings(NamedTuple):
    """How a virtual server chooses a real server.

    Attributes:
        scheduler: the name of the scheduler.
        flags: PERSISTENT, SCHEDULER_1, SCHEDULER_2.
        timeout: with PERSISTENT, seconds a client keeps its real server.
    """

    scheduler: str
    flags: int = 0
    timeout: int = 0


class Real(NamedTuple):
    """The key of a real server: address (4 or 16 bytes, network order) and port."""

    address: bytes
    port: int


class Load(NamedTuple):
    """A real server's weight and the number of its connections, established and in other states."""

    weight: int
    active: int = 0
    inactive: int = 0


class Timeouts(NamedTuple):
    """Seconds after which idle connections are removed; in a request, 0 keeps the kernel's value."""

    tcp: int = 0
    tcp_fin: int = 0
    udp: int = 0


class IPVSSocket(wire.Closing):
    """The kernel's IPVS in one network namespace."""

    def __init__(self, namespace: Namespace) -> None:
        """Opens a socket.

        Raises:
            OSError: the kernel has no IPVS.
        """
        self._socket: wire.Socket = wire.Socket(namespace, wire.GENERIC)
        try:
            self._family = generic.family(self._socket, "IPVS")
        except OSError:
            self._socket.close()
            raise

    def add(self, virtual: Virtual, settings: Settings) -> wire.Request:
        """The request that adds a virtual server; EEXIST if it exists."""
        return self._request(_NEW_SERVICE, _service(virtual, settings))

    def edit(self, virtual: Virtual, settings: Settings) -> wire.Request:
        """The request that changes the settings of a virtual server; ESRCH if it does not exist."""
        return self._request(_SET_SERVICE, _service(virtual, settings))

    def delete(self, virtual: Virtual) -> wire.Request:
        """The request that deletes a virtual server with its real servers; ESRCH if it does not exist."""
        return self._request(_DELETE_SERVICE, _service(virtual))

    def add_real(self, virtual: Virtual, real: Real, weight: int = 1, limit: int = 0) -> wire.Request:
        """The request that adds a real server, which is reached by address translation.

        EEXIST if it exists.
        """
        return self._request(_NEW_DEST, _service(virtual) + _real(real, weight, limit))

    def edit_real(self, virtual: Virtual, real: Real, weight: int, limit: int = 0) -> wire.Request:
        """The request that changes the weight and limit of a real server; ENOENT if it does not exist."""
        return self._request(_SET_DEST, _service(virtual) + _real(real, weight, limit))

    def delete_real(self, virtual: Virtual, real: Real) -> wire.Request:
        """The request that deletes a real server; ENOENT if it does not exist."""
        return self._request(_DELETE_DEST, _service(virtual) + _real(real, None))

    def submit(self, requests: Sequence[wire.Request]) -> dict[int, wire.NetlinkError]:
        """Executes requests, each independently; returns the errors by index of the request."""
        return self._socket.submit(requests)

    def virtuals(self) -> dict[Virtual, Settings]:
        """All virtual servers except those for firewall marks.

        Raises:
            OSError: the kernel refused.
        """
        found = {}
        for attributes in self._dump(_GET_SERVICE, b"", _SERVICE):
            if 2 in attributes:
                virtual = Virtual(_u16(attributes[2]), _address(attributes), _be16(attributes[4]))
                flags = struct.unpack_from("=I", attributes[7])[0] & _SETTABLE
                timeout = struct.unpack("=I", attributes[8])[0] if flags & PERSISTENT else 0
                found[virtual] = Settings(wire.string(attributes[6]), flags, timeout)
        return found

    def reals(self, virtual: Virtual) -> dict[Real, Load]:
        """The real servers of one virtual server; none if there is no such virtual server.

        Raises:
            OSError: the kernel refused.
        """
        found = {}
        for attributes in self._dump(_GET_DEST, _service(virtual), _DEST):
            weight, active, inactive = (struct.unpack("=I", attributes[kind])[0] for kind in (4, 7, 8))
            found[_real_of(attributes, virtual)] = Load(weight, active, inactive)
        return found

    def connections(self, virtual: Virtual) -> dict[Real, int]:
        """The connections that each real server of a virtual server was given since it was added.

        Raises:
            OSError: the kernel refused.
        """
        reals = self._dump(_GET_DEST, _service(virtual), _DEST)
        return {_real_of(attributes, virtual): _scheduled(attributes) for attributes in reals}

    def all_connections(self) -> dict[Virtual, int]:
        """The connections that each virtual server was given since it was added.

        Raises:
            OSError: the kernel refused.
        """
        return {
            Virtual(_u16(attributes[2]), _address(attributes), _be16(attributes[4])): _scheduled(attributes)
            for attributes in self._dump(_GET_SERVICE, b"", _SERVICE)
            if 2 in attributes
        }

    def timeouts(self) -> Timeouts:
        """The current timeouts.

        Raises:
            OSError: the kernel refused.
        """
        for reply in self._socket.request(self._family, generic.header(_GET_CONFIG)):
            attributes = wire.attributes(reply.body[generic.HEADER_SIZE :])
            seconds = (
                struct.unpack("=I", attributes[kind])[0]
                for kind in (_TCP_TIMEOUT, _FIN_TIMEOUT, _UDP_TIMEOUT)
            )
            return Timeouts(*seconds)
        return Timeouts()

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Sets those timeouts that are not 0.

        Raises:
            OSError: the kernel refused.
        """
        kinds = (_TCP_TIMEOUT, _FIN_TIMEOUT, _UDP_TIMEOUT)
        body = b"".join(_u32(kind, seconds) for kind, seconds in zip(kinds, timeouts, strict=True))
        self._socket.request(self._family, generic.header(_SET_CONFIG) + body)

    def _request(self, command: int, body: bytes) -> wire.Request:
        return wire.Request(self._family, 0, generic.header(command, _VERSION) + body)

    def _dump(self, command: int, body: bytes, kind: int) -> Iterator[dict[int, memoryview]]:
        for reply in self._socket.dump(self._family, generic.header(command, _VERSION) + body):
            attributes = wire.attributes(reply.body[generic.HEADER_SIZE :])
            if kind in attributes:
                yield wire.attributes(attributes[kind])


def fingerprint(namespace: Namespace) -> int:
    """A number that changes if any virtual server, real server or weight changes, but not with connections.

    Raises:
        OSError: the kernel has no IPVS, or its module is not loaded.
    """
    with namespace.net(_TABLE) as file:
        return hash_table(file.read())


def hash_table(text: bytes) -> int:
    """The number for the text of /proc/net/ip_vs, without parsing: its last two columns are 10 wide each."""
    lines = text.split(b"\n")
    return hash(b"".join([line[:-22] if line.startswith(b"  -> ") else line for line in lines]))


def table(namespace: Namespace) -> dict[Virtual, dict[Real, Load]]:
    """All virtual servers and their real servers, except those for firewall marks.

    Raises:
        OSError: the kernel has no IPVS, or its module is not loaded.
    """
    with namespace.net(_TABLE) as file:
        return read_table(file.read())


def read_table(text: bytes) -> dict[Virtual, dict[Real, Load]]:
    """Parses the text of /proc/net/ip_vs."""
    found: dict[Virtual, dict[Real, Load]] = {}
    reals: dict[Real, Load] = {}
    for line in text.splitlines()[3:]:
        if line.startswith(b"  -> "):
            _, at, _, weight, active, inactive = line.split()
            reals[Real(*_endpoint(at))] = Load(int(weight), int(active), int(inactive))
            continue
        protocol, at, *_ = line.split()
        reals = {}
        if protocol in _PROTOCOLS:
            found[Virtual(_PROTOCOLS[protocol], *_endpoint(at))] = reals
    return found


def remembers(namespace: Namespace, virtuals: Collection[Virtual]) -> bool:
    """Whether IPVS still has an entry of a connection to one of these, including connections that have ended.

    Raises:
        OSError: the kernel has no IPVS, or its module is not loaded.
    """
    with namespace.net(_CONNECTIONS) as file:
        next(file)
        for line in file:
            protocol, _, _, address, port, *_ = line.split()
            if protocol in _PROTOCOLS:
                virtual = Virtual(_PROTOCOLS[protocol], *_endpoint(address + b":" + port))
                if virtual in virtuals:
                    return True
    return False


def _endpoint(text: bytes) -> tuple[bytes, int]:
    """Address and port of "0A600001:0050" or "[2001:0db8:...:0001]:0050"."""
    address, _, port = text.rpartition(b":")
    digits = address.strip(b"[]").replace(b":", b"")
    return bytes.fromhex(digits.decode()), int(port, 16)


def _service(virtual: Virtual, settings: Settings | None = None) -> bytes:
    ipv4 = len(virtual.address) == 4
    parts = [
        _half(1, AF_INET if ipv4 else AF_INET6),
        _half(2, virtual.protocol),
        wire.attribute(3, virtual.address.ljust(16, b"\0")),
        wire.attribute(4, virtual.port.to_bytes(2)),
    ]
    if settings is not None:
        # With persistence, each client address counts separately: a mask of all ones, which for IPv6 is a
        # prefix length.
        netmask = b"\xff" * 4 if ipv4 else struct.pack("=I", 128)
        parts += [
            wire.text(6, settings.scheduler),
            wire.attribute(7, struct.pack("=II", settings.flags, _SETTABLE)),
            _u32(8, settings.timeout),
            wire.attribute(9, netmask),
        ]
    return wire.nested(_SERVICE, *parts)


def _real(real: Real, weight: int | None, limit: int = 0) -> bytes:
    """The attributes of a real server: with a weight all of them, without one only its key.

    With `limit` connections it gets no more, until it has fewer; 0 for no limit.
    """
    parts = [
        wire.attribute(1, real.address.ljust(16, b"\0")),
        wire.attribute(2, real.port.to_bytes(2)),
        _half(11, AF_INET if len(real.address) == 4 else AF_INET6),
    ]
    if weight is not None:
        parts += [_u32(3, _MASQUERADE), _u32(4, weight), _u32(5, limit), _u32(6, limit)]
    return wire.nested(_DEST, *parts)


def _real_of(attributes: dict[int, memoryview], virtual: Virtual) -> Real:
    """The real server of a virtual server that attributes are of."""
    family = _u16(attributes[11]) if 11 in attributes else None
    size = len(virtual.address) if family is None else 4 if family == AF_INET else 16
    return Real(bytes(attributes[1])[:size], _be16(attributes[2]))


def _scheduled(attributes: dict[int, memoryview]) -> int:
    """The connections in the statistics of a server."""
    statistics = attributes.get(_STATISTICS64, attributes.get(_STATISTICS, b""))  # the former since Linux 4.1
    return int.from_bytes(wire.attributes(statistics).get(_SCHEDULED, b""), sys.byteorder)


def _half(kind: int, value: int) -> bytes:
    return wire.attribute(kind, struct.pack("=H", value))


def _u32(kind: int, value: int) -> bytes:
    return wire.attribute(kind, struct.pack("=I", value))


def _u16(value: memoryview) -> int:
    return int(struct.unpack("=H", value)[0])


def _be16(value: memoryview) -> int:
    return int.from_bytes(value)


def _address(attributes: dict[int, memoryview]) -> bytes:
    return bytes(attributes[3])[: 4 if _u16(attributes[1]) == AF_INET else 16]
