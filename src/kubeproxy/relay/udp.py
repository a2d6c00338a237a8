"""UDP flows: the packets of one client to one address, and the answers.

Each flow has its own socket to its target, so that answers can be assigned to their client. A flow ends after
some time without packets: after a short time if it was a query and its answer, after a longer time if it
lasted more than two seconds, as in connection tracking. Answers are sent from the address that the client
sent to. Packets that cannot be sent are dropped.
"""

import contextlib
import logging
import os
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any, Final

from kubeproxy.netlink import route
from kubeproxy.relay import origin
from kubeproxy.relay.loop import IN
from kubeproxy.relay.shared import Shared
from kubeproxy.relay.sockets import IP_PKTINFO
from kubeproxy.relay.values import Listener, Target

ANSWER_SECONDS: Final = 10.0
STREAM_SECONDS: Final = 120.0
STREAM_AFTER_SECONDS: Final = 2.0

_ROUNDS: Final = 32
_LARGEST: Final = 65536
_buffer = memoryview(bytearray(_LARGEST))

Peer = tuple[str, int] | tuple[str, int, int, int]
"""A client's address and port.

A link-local address also has the number of the interface, which is needed to send an answer.
"""

Client = tuple[Peer, bytes]
"""A client, and our address that it sends to."""


class UDPServer:
    """A UDP socket that clients send to."""

    def __init__(self, sock: socket.socket, listener: Listener, shared: Shared) -> None:
        self.sock = sock
        self.shared = shared
        self.flows: dict[Client, UDPFlow] = {}
        self._ipv6 = sock.family == socket.AF_INET6
        self._queries: origin.Flows | None = None
        self.listener = listener
        self.balancer = shared.balancer(listener)
        shared.loop.add(sock.fileno(), IN, self)

    def change(self, listener: Listener) -> None:
        """Changes how new flows are served, and ends the flows to targets that were removed."""
        before, self.listener = self.balancer, listener
        self.balancer = self.shared.balancer(listener)
        before.close()
        for flow in [f for f in self.flows.values() if f.target not in self.balancer.targets]:
            flow.end()

    def close(self) -> None:
        """Ends all flows and closes the socket."""
        for flow in list(self.flows.values()):
            flow.end()
        self.balancer.close()
        self.shared.loop.remove(self.sock.fileno())
        self.shared.loop.close(self.sock)
        if self._queries is not None:
            self._queries.close()

    def ready(self, descriptor: int, events: int) -> None:  # noqa: ARG002 see Handler
        """Packets of clients arrived."""
        for peer, control, data in packets(self.sock):
            self.take((peer, control), data)

    def take(self, client: Client, data: memoryview) -> None:
        """Sends a packet of a client to its target."""
        flow = self.flows.get(client) or self._open(client)
        if flow is not None:
            flow.send(data)

    def answer(self, data: memoryview, client: Client) -> None:
        """Sends an answer of the target to the client."""
        peer, own = client
        control = []
        if own:
            # The interface is chosen by routing, except for a link-local source address. Of struct in_pktinfo
            # only the source address is set.
            control = (
                [
                    (
                        socket.IPPROTO_IPV6,
                        socket.IPV6_PKTINFO,
                        own if route.is_link_local6(own[:16]) else own[:16] + bytes(4),
                    )
                ]
                if self._ipv6
                else [(socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=i4s4s", 0, own[4:8], bytes(4)))]
            )
        with contextlib.suppress(OSError):
            self.sock.sendmsg([data], control, 0, peer)

    def _open(self, client: Client) -> "UDPFlow | None":
        """Opens a flow; None if the client is refused or there is no descriptor left."""
        peer, _ = client
        front = self._origin(peer) if self.listener.translated else self._reached(client)
        candidates = self.balancer.candidates(peer[0], peer[1]) if front else ()
        if not candidates or front is None:
            self.shared.counts.refused += 1
            return None
        if not self.shared.admit(1):
            return None
        try:
            flow = UDPFlow(self, client, front, list(candidates))
        except OSError as e:
            self.shared.slots.give_back(1)
            self.shared.short(e)
            return None
        self.flows[client] = flow
        self.shared.counts.flows += 1
        self.shared.counts.open_flows += 1
        return flow

    def _reached(self, client: Client) -> Target:
        """Our address and port that a client sends to."""
        _, own = client
        address, port = self.sock.getsockname()[:2]
        if not own:
            return address, port
        # struct in6_pktinfo begins with the address; struct in_pktinfo ends with it.
        return socket.inet_ntop(self.sock.family, own[:16] if self._ipv6 else own[8:12]), port

    def _origin(self, peer: Peer) -> Target | None:
        """The front that a client sent to; None if the destination of its packets was not translated."""
        if self._queries is None:
            try:
                self._queries = origin.Flows()
            except OSError as e:
                self.shared.report(
                    logging.ERROR,
                    f"UDP is not served, because connection tracking cannot be queried: {e.strerror}",
                    "conntrack",
                )
                return None
        address, port = self.sock.getsockname()[:2]
        return self._queries.destination(peer[:2], (address, port))


def packets(sock: socket.socket) -> Iterator[tuple[Peer, bytes, memoryview]]:
    """The next packets that have arrived: the sender, the data of the control message, and the contents.

    The contents are valid until the next packet.
    """
    for _ in range(_ROUNDS):
        try:
            size, ancillary, _, peer = sock.recvmsg_into([_buffer], 64)
        except OSError:
            return
        yield _peer(peer), ancillary[0][2] if ancillary else b"", _buffer[:size]


def _peer(address: tuple[Any, ...]) -> Peer:
    """The part of a socket address that identifies a client."""
    interface = address[3] if len(address) > 2 else 0
    return (address[0], address[1], 0, interface) if interface else (address[0], address[1])


class UDPFlow:
    """One client's flow to a target."""

    __slots__ = (
        "_candidates",
        "_client",
        "_counts",
        "_front",
        "_last",
        "_server",
        "_sock",
        "_started",
        "target",
    )

    def __init__(self, server: UDPServer, client: Client, front: Target, candidates: list[Target]) -> None:
        """Opens a flow to the first candidate that can be sent to.

        Raises:
            OSError: no socket can be opened.
        """
        self._server = server
        self._client = client
        self._front = front
        self._candidates = candidates
        self._started = self._last = time.monotonic()
        self._sock: socket.socket | None = None
        self._connect()
        self._server.shared.loop.after(ANSWER_SECONDS, self._look)

    def _connect(self) -> None:
        """Opens a socket to the next candidate."""
        server = self._server
        self._disconnect()
        self.target = self._candidates.pop(0)
        self._counts = server.shared.tallies.of(server.listener.group, self.target)
        sock = socket.socket(server.sock.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            if server.shared.mark:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, server.shared.mark)
            code = sock.connect_ex(self.target)
        except OSError:
            sock.close()
            raise
        if code:
            self._refused(os.strerror(code))
        server.balancer.reached(self._client[0][0], self.target)
        self._counts.began()
        server.shared.loop.add(sock.fileno(), IN, self)
        self._sock = sock

    @property
    def group(self) -> str:
        """The group of its listener."""
        return self._counts.group

    def client(self) -> Target:
        """Address and port of its client."""
        return self._client[0][0], self._client[0][1]

    def front(self) -> Target:
        """Address and port that its client sent to."""
        return self._front

    def send(self, data: memoryview) -> None:
        """Sends a packet to the target, or to the next one if the target refused an earlier packet (ICMP)."""
        self._last = time.monotonic()
        while self._sock is not None:
            try:
                self._counts.moved(self._sock.send(data), 0)
            except BlockingIOError:
                return
            except OSError as e:
                self._refused(os.strerror(e.errno or 0))
                if not self._candidates:
                    self.end()
                    return
                self._connect()
            else:
                return

    def ready(self, descriptor: int, events: int) -> None:  # noqa: ARG002 see Handler
        """Answers of the target arrived, or an error: the target refuses packets."""
        for _ in range(_ROUNDS):
            if self._sock is None:
                return
            try:
                size = self._sock.recv_into(_buffer)
            except BlockingIOError:
                return
            except OSError as e:
                self._refused(os.strerror(e.errno or 0))
                if self._candidates:
                    self._connect()  # the packet is lost; clients of UDP retransmit
                else:
                    self.end()
                return
            self._last = time.monotonic()
            self._counts.moved(0, size)
            self._server.answer(_buffer[:size], self._client)

    def end(self) -> None:
        """Ends the flow."""
        if self._server.flows.get(self._client) is self:
            del self._server.flows[self._client]
            self._server.shared.slots.give_back(1)
            self._server.shared.counts.open_flows -= 1
        self._disconnect()

    def _disconnect(self) -> None:
        if self._sock is not None:
            self._server.shared.loop.close(self._sock)
            self._sock = None
            self._counts.ended()

    def _refused(self, why: str) -> None:
        self._server.balancer.failed(self._client[0][0], self.target)
        self._server.shared.counts.failures += 1
        self._counts.reset()
        name, (address, port) = self._server.listener.name, self.target
        self._server.shared.report(
            logging.INFO, f"{name}: {address} port {port} takes no packets: {why}", (name, self.target)
        )

    def _look(self) -> None:
        """Ends the flow if it has had no packets for long enough."""
        if self._sock is None:
            return
        stream = self._last - self._started > STREAM_AFTER_SECONDS
        left = self._last + (STREAM_SECONDS if stream else ANSWER_SECONDS) - time.monotonic()
        if left <= 0:
            self.end()
        else:
            self._server.shared.loop.after(left, self._look)
