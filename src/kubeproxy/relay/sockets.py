"""Listening sockets.

Accepted connections inherit the TCP options that are set here. UDP sockets report the destination address of
each packet, so that the answer can be sent from it.
"""

import contextlib
import errno
import random
import socket
from collections.abc import Iterable
from weakref import WeakKeyDictionary, WeakValueDictionary

from kubeproxy.machine.base import Machine
from kubeproxy.netlink import route, wire
from kubeproxy.netlink.namespace import Sockets

BACKLOG = 4096
UDP_BUFFER_BYTES = 4 << 20
"""Opening a new flow takes some time, and packets of clients arrive in bursts.

This is enough for about 5,000 small packets.
"""

IP_PKTINFO, _IPV6_RECVPKTINFO = 8, 49
KEEPALIVE_IDLE_SECONDS = 120

_LEVEL = {socket.AF_INET: socket.IPPROTO_IP, socket.AF_INET6: socket.IPPROTO_IPV6}
_PACKET_INFO = {socket.AF_INET: IP_PKTINFO, socket.AF_INET6: _IPV6_RECVPKTINFO}
_DESTINATION = {socket.AF_INET: 20, socket.AF_INET6: 74}
"""Options that report the destination of each packet: address and interface, or address and port
(IP_RECVORIGDSTADDR, IPV6_RECVORIGDSTADDR)."""

Span = tuple[int, int]
"""First and last port; (0, 0) for any port."""


def bind(machine: Machine, address: str, ports: Span, *, udp: bool) -> socket.socket:
    """Makes a socket that listens, or receives, on an address and one free port of a span.

    Raises:
        OSError: the address is not one of this host (EADDRNOTAVAIL), no port is free (EADDRINUSE), or a
            privilege is missing.
    """
    domain = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = machine.socket(domain, (socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) | socket.SOCK_NONBLOCK)
    try:
        if domain == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if udp:
            wire.enlarge_receive_buffer(sock, UDP_BUFFER_BYTES)
            sock.setsockopt(_LEVEL[domain], _PACKET_INFO[domain], 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            set_tcp_options(sock)
        _bind(machine, sock, address, ports)
        if not udp:
            sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def gate(machine: Machine, address: str, *, udp: bool) -> socket.socket:
    """Makes a socket that packets for many ports of an address can be steered to.

    Raises:
        OSError: it cannot be made.
    """
    sock = bind(machine, address, (0, 0), udp=udp)
    if udp:
        sock.setsockopt(_LEVEL[sock.family], _PACKET_INFO[sock.family], 0)
        sock.setsockopt(_LEVEL[sock.family], _DESTINATION[sock.family], 1)
    return sock


def reusing(namespace: Sockets, address: str, port: int, *, udp: bool) -> socket.socket:
    """Makes a socket at an address and port whose packets are steered to another socket; it does not listen.

    Several may be at the same port, so that two relays can answer from it, but none beside a socket of
    another program that listens there, or receives and does not permit it.

    Raises:
        OSError: it cannot be made; EADDRINUSE: another program has the port.
    """
    domain = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
    sock = namespace.socket(domain, kind | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if domain == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
    except OSError:
        sock.close()
        raise
    return sock


class Bound:
    """The sockets at given addresses that the relays of a network namespace listen on.

    When a driver replaces another one, both have a relay for some time. If the address of a listener is
    fixed, they share its socket: a new connection is accepted by the one or the other, and none is lost when
    one closes.
    """

    def __init__(self) -> None:
        self._sockets: WeakValueDictionary[tuple[str, int, bool], socket.socket] = WeakValueDictionary()
        self._owners: WeakKeyDictionary[socket.socket, object] = WeakKeyDictionary()

    def bind(self, owner: object, machine: Machine, address: str, port: int, *, udp: bool) -> socket.socket:
        """A socket at an address: that of another owner, if one has it. See `bind`.

        Raises:
            OSError: it cannot be opened.
        """
        found = self._sockets.get((address, port, udp))
        if found is not None and self._owners[found] is not owner and found.fileno() >= 0:
            sock = found.dup()
        else:
            sock = bind(machine, address, (port, port), udp=udp)
        self._sockets[address, port, udp] = sock
        self._owners[sock] = owner
        return sock


def set_tcp_options(sock: socket.socket) -> None:
    """Makes a TCP socket send without delay, and detect a dead peer by keep-alive probes."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS)


def _bind(machine: Machine, sock: socket.socket, address: str, ports: Span) -> None:
    for port in _candidates(ports):
        try:
            sock.bind(route.socket_address(machine.addresses, address, port))
        except OSError as e:
            if e.errno != errno.EADDRINUSE or ports[0] == ports[1]:
                raise
        else:
            return
    raise OSError(errno.EADDRINUSE, f"no port of {ports[0]}-{ports[1]} is free")


def _candidates(ports: Span) -> Iterable[int]:
    """Each port of a span once, starting at a random one."""
    first, last = ports
    start = random.randint(first, last)  # noqa: S311 no secret
    return (*range(start, last + 1), *range(first, start))


def raise_limit() -> int:
    """Raises the limit of open files to the hard limit; returns the new limit."""
    import resource  # not on Windows, where modules that import this one must load

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    if soft == resource.RLIM_INFINITY:
        return 1 << 20
    return soft
