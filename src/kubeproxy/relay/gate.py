"""Gates: sockets that have the clients of many listeners, which the kernel steers to them (see `steering`).

A client of TCP has the address and port that it asked for as the local end of its connection. A packet of UDP
has them in a control message, but an answer is sent from the port of the socket that sends it. So a listener
of UDP has a socket of its own while it has flows.
"""

import logging
import os
import socket
import struct
from typing import Final

from kubeproxy.relay.loop import IN
from kubeproxy.relay.shared import Shared
from kubeproxy.relay.sockets import reusing
from kubeproxy.relay.tcp import Acceptor, TCPPort, refuse
from kubeproxy.relay.udp import ANSWER_SECONDS, Client, UDPServer, packets
from kubeproxy.relay.values import Listener, Target

_IN4, _IN6 = struct.Struct("!2xH4s"), struct.Struct("!2xH4x16s")
"""Port and address of struct sockaddr_in and sockaddr_in6."""

_FLOWLESS_SECONDS: Final = ANSWER_SECONDS


class TCPGate:
    """A listening socket that has the clients of many listeners."""

    def __init__(self, sock: socket.socket, shared: Shared) -> None:
        self._shared = shared
        self._ports: dict[Target, TCPPort] = {}
        self._acceptor = Acceptor(sock, shared, self._take)

    def begin(self) -> None:
        """Accepts clients from now on."""
        self._acceptor.resume()

    def open(self, at: Target, listener: Listener) -> "TCPBehind":
        """Adds a listener."""
        self._ports[at] = port = TCPBehind(self, at, listener, self._shared)
        return port

    def remove(self, at: Target) -> None:
        """Accepts the clients that are waiting, then removes a listener."""
        self._acceptor.drain()
        del self._ports[at]

    def _take(self, client: socket.socket, peer: Target) -> None:
        port = self._ports.get(client.getsockname()[:2])
        if port is None:
            refuse(self._shared, client)
        else:
            port.take(client, peer)


class TCPBehind(TCPPort):
    """A listener behind a gate."""

    def __init__(self, gate: TCPGate, at: Target, listener: Listener, shared: Shared) -> None:
        super().__init__(listener, shared)
        self._gate = gate
        self._at = at

    def close(self) -> None:
        """See `TCPServer`."""
        self._gate.remove(self._at)
        super().close()


class UDPGate:
    """A UDP socket that has the packets for many listeners."""

    def __init__(self, sock: socket.socket, shared: Shared) -> None:
        self._sock = sock
        self._shared = shared
        self._ports: dict[Target, UDPBehind] = {}

    def begin(self) -> None:
        """Receives packets from now on."""
        self._shared.loop.add(self._sock.fileno(), IN, self)

    def open(self, at: Target, listener: Listener) -> "UDPBehind":
        """Adds a listener."""
        self._ports[at] = port = UDPBehind(self, at, listener, self._shared)
        return port

    def remove(self, at: Target) -> None:
        """Removes a listener."""
        del self._ports[at]

    def ready(self, descriptor: int, events: int) -> None:  # noqa: ARG002 see Handler
        """Packets of clients arrived."""
        for peer, control, data in packets(self._sock):
            port = self._ports.get(_destination(control))
            if port is None:
                self._shared.counts.refused += 1
            else:
                port.take((peer, b""), data)


class UDPBehind:
    """A listener behind a gate."""

    def __init__(self, gate: UDPGate, at: Target, listener: Listener, shared: Shared) -> None:
        self._gate = gate
        self._at = at
        self._listener = listener
        self._shared = shared
        self._server: UDPServer | None = None

    def change(self, listener: Listener) -> None:
        """See `UDPServer`."""
        self._listener = listener
        if self._server is not None:
            self._server.change(listener)

    def close(self) -> None:
        """See `UDPServer`."""
        self._gate.remove(self._at)
        self._end()

    def take(self, client: Client, data: memoryview) -> None:
        """Sends a packet of a client to its target."""
        server = self._server or self._begin()
        if server is not None:
            server.take(client, data)

    def _begin(self) -> UDPServer | None:
        """Opens a socket for answers; None if that fails."""
        if not self._shared.admit(1):
            return None
        try:
            sock = reusing(socket, *self._at, udp=True)
        except OSError as e:
            self._shared.slots.give_back(1)
            self._shared.short(e)
            self._shared.report(
                logging.WARNING,
                f"{self._listener.name}: cannot answer: {os.strerror(e.errno or 0)}",
                self._listener.name,
            )
            return None
        self._server = UDPServer(sock, self._listener, self._shared)
        self._shared.loop.after(_FLOWLESS_SECONDS, self._look)
        return self._server

    def _look(self) -> None:
        """Closes the socket if there are no flows."""
        if self._server is None:
            return
        if self._server.flows:
            self._shared.loop.after(_FLOWLESS_SECONDS, self._look)
        else:
            self._end()

    def _end(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            self._shared.slots.give_back(1)


def _destination(control: bytes) -> Target:
    """Where a packet was sent to."""
    if len(control) < _IN6.size:
        port, address = _IN4.unpack_from(control)
        return socket.inet_ntop(socket.AF_INET, address), port
    port, address = _IN6.unpack_from(control)
    return socket.inet_ntop(socket.AF_INET6, address), port
