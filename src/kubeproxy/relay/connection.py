"""A connection between a client and a target: bytes are forwarded in both directions.

Bytes are moved from socket to pipe to socket by splice(2), so they are not copied to user space. A direction
has a pipe only while it has bytes to forward, so an idle connection needs two descriptors and about a
kilobyte. If the receiver does not read, bytes stay in the only pipe of the direction, and nothing more is
read from the sender until the pipe is empty.

The end of one direction is passed on (half-close); a reset of one side resets the other side.
"""

import contextlib
import socket
import struct
from typing import Final

from kubeproxy.relay import origin
from kubeproxy.relay.loop import ERROR, HANGUP, IN, OUT
from kubeproxy.relay.pipes import SIZE, Copy, Pipe, Pool
from kubeproxy.relay.shared import Shared
from kubeproxy.relay.tallies import TargetCounts
from kubeproxy.relay.values import Target

DESCRIPTORS: Final = 2
"""A connection has two sockets."""

_ROUNDS: Final = 8
_LITTLE: Final = SIZE // 4
"""After a smaller read, the source probably has no more bytes now, so no further read is tried."""

_GONE: Final = -1
_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: close with a reset


class Direction:
    """One direction of a connection.

    Attributes:
        source: the descriptor to read from.
        sink: the socket to write to.
        pipe: has the bytes that were read and not yet written; None if there are none.
        ended: the source has reached its end.
        finished: the sink was shut down for writing.
        moved: bytes that were read and not yet counted.
    """

    __slots__ = ("ended", "finished", "moved", "pipe", "sink", "source")

    def __init__(self, source: int, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.pipe: Pipe | Copy | None = None
        self.ended = False
        self.finished = False
        self.moved = 0

    def move(self, pool: Pool) -> None:
        """Moves the bytes that can be moved now.

        Raises:
            OSError: the connection of one side failed.
        """
        pipe = self.pipe
        if pipe is None:
            if self.ended:
                return
            pipe = self.pipe = pool.lend()
        sink, count = self.sink.fileno(), SIZE
        with contextlib.suppress(BlockingIOError):
            for _ in range(_ROUNDS):
                if not pipe.held:
                    if self.ended:
                        break
                    count = pipe.fill(self.source)
                    if not count:
                        self.ended = True
                        break
                    self.moved += count
                pipe.drain(sink)
                if pipe.held or count < _LITTLE:
                    break
        if pipe.held:
            return
        self.pipe = None
        pool.give_back(pipe)
        if self.ended:
            self.finished = True
            self.sink.shutdown(socket.SHUT_WR)

    def drop(self, pool: Pool) -> None:
        """Gives back the pipe; the bytes in it are lost."""
        if self.pipe is not None:
            pool.give_back(self.pipe)
            self.pipe = None


class Connection:
    """A client and a target that are connected."""

    __slots__ = ("_client", "_client_mask", "_counts", "_down", "_server", "_server_mask", "_shared", "_up")

    def __init__(
        self, shared: Shared, client: socket.socket, server: socket.socket, counts: TargetCounts
    ) -> None:
        """Takes over both sockets; the server's socket is in the loop already, with another handler.

        Args:
            shared: what all listeners share.
            client: the socket to the client.
            server: the socket to the target.
            counts: those of the target, which count the connection already.
        """
        self._shared = shared
        self._counts = counts
        self._client = client
        self._server = server
        self._up = Direction(client.fileno(), server)
        self._down = Direction(server.fileno(), client)
        self._client_mask = self._server_mask = IN
        counts.carried.add(self)
        shared.counts.connections += 1
        shared.counts.open_connections += 1
        shared.loop.hand_over(server.fileno(), IN, self)
        shared.loop.add(client.fileno(), IN, self)

    def ready(self, descriptor: int, events: int) -> None:
        """One side can be read from or written to, or has failed."""
        of_client = descriptor == self._up.source
        outgoing, incoming = (self._down, self._up) if of_client else (self._up, self._down)
        pool = self._shared.pool
        try:
            if events & OUT:
                outgoing.move(pool)
            if events & (IN | ERROR | HANGUP):
                incoming.move(pool)
        except OSError:
            self._failed()
            return
        if self._up.moved or self._down.moved:
            self._count()
        if events & ERROR:
            self._failed()
        elif self._up.finished and self._down.finished:
            self._end()
        else:
            self._wait(descriptor if events & HANGUP else _GONE)

    @property
    def group(self) -> str:
        """The group of its listener."""
        return self._counts.group

    @property
    def target(self) -> Target:
        """Its target."""
        return self._counts.target

    def client(self) -> Target:
        """Address and port of its client.

        Raises:
            OSError: the client has reset it.
        """
        address, port = self._client.getpeername()[:2]
        return address, port

    def front(self) -> Target:
        """Address and port that its client connected to.

        Raises:
            OSError: the client has reset it.
        """
        return front_of(self._client)

    def lost_target(self) -> None:
        """See `Carried`."""
        self.reset()

    def reset(self) -> None:
        """Ends it by a reset, so that both sides detect that it failed."""
        will_reset(self._client)
        will_reset(self._server)
        self._end()

    def _failed(self) -> None:
        """One side has reset its connection."""
        self._counts.reset()
        self.reset()

    def _count(self) -> None:
        up, down = self._up, self._down
        self._counts.moved(up.moved, down.moved)
        up.moved = down.moved = 0

    def _end(self) -> None:
        shared = self._shared
        self._count()
        self._counts.ended()
        self._counts.carried.discard(self)
        self._up.drop(shared.pool)
        self._down.drop(shared.pool)
        shared.loop.close(self._client)
        shared.loop.close(self._server)
        shared.slots.give_back(DESCRIPTORS)
        shared.counts.open_connections -= 1

    def _wait(self, hung_up: int) -> None:
        """Sets the events to wait for on each side: a side is not read from while its bytes wait in a pipe.

        Args:
            hung_up: a descriptor both of whose directions are closed. epoll reports this in every round, so
                the descriptor is removed from the loop unless there is something to read or write.
        """
        up, down = self._up, self._down
        wanted = _mask(up, down)
        if wanted != self._client_mask or (hung_up == up.source and not wanted):
            self._client_mask = self._set(up.source, self._client_mask, wanted, out=hung_up == up.source)
        wanted = _mask(down, up)
        if wanted != self._server_mask or (hung_up == down.source and not wanted):
            self._server_mask = self._set(down.source, self._server_mask, wanted, out=hung_up == down.source)

    def _set(self, descriptor: int, mask: int, wanted: int, *, out: bool) -> int:
        """Changes the events to wait for.

        Returns the new mask, or _GONE for a descriptor that is not in the loop.
        """
        loop = self._shared.loop
        if mask == _GONE:
            if not wanted:
                return _GONE
            loop.add(descriptor, wanted, self)
        elif out and not wanted:
            loop.remove(descriptor)
            return _GONE
        else:
            loop.change(descriptor, wanted)
        return wanted


def _mask(incoming: Direction, outgoing: Direction) -> int:
    """The events to wait for on one side."""
    mask = 0 if incoming.ended or incoming.pipe is not None else IN
    return mask if outgoing.pipe is None else mask | OUT


def front_of(client: socket.socket) -> Target:
    """The address and port that a client connected to.

    Raises:
        OSError: the client has reset the connection.
    """
    address, port = client.getsockname()[:2]
    return origin.of_connection(client) or (address, port)


def will_reset(sock: socket.socket) -> None:
    """Makes closing this socket reset its connection."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
