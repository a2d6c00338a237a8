"""A connected client and target: bytes carried both ways.

Bytes go from socket to pipe to socket by splice(2) and never through this program. A direction has a pipe only while bytes are on
their way, so a connection that is silent costs two descriptors and about a kilobyte. What a reader does not take stays in
its direction's pipe, of which there is one, and the sender is not read from until it is gone.

The end of one direction is passed on as such (half-close); a reset of one side resets the other one.
"""

import contextlib
import socket
import struct
from typing import Final

from kubeproxy.relay.loop import ERROR, HANGUP, IN, OUT
from kubeproxy.relay.pipes import SIZE, Copy, Pipe, Pool
from kubeproxy.relay.shared import Shared

DESCRIPTORS: Final = 2
"""A connection has two sockets."""

_ROUNDS: Final = 8
_LITTLE: Final = SIZE // 4
"""Who sends less at a time has probably no more to send now."""

_GONE: Final = -1
_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: close with a reset


class Direction:
    """One direction of a connection.

    Attributes:
        source: the descriptor it comes from.
        sink: the socket it goes to.
        pipe: holds what has been read and not yet been written; None for nothing.
        ended: the source has said that nothing will follow.
        finished: the sink has been told so.
    """

    __slots__ = ("ended", "finished", "pipe", "sink", "source")

    def __init__(self, source: int, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.pipe: Pipe | Copy | None = None
        self.ended = False
        self.finished = False

    def move(self, pool: Pool) -> None:
        """Moves what can be moved now.

        Raises:
            OSError: a side is broken.
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
        """Gives back the pipe, and what is in it up."""
        if self.pipe is not None:
            pool.give_back(self.pipe)
            self.pipe = None


class Connection:
    """A client and a target that are connected."""

    __slots__ = ("_client", "_client_mask", "_down", "_server", "_server_mask", "_shared", "_up")

    def __init__(self, shared: Shared, client: socket.socket, server: socket.socket) -> None:
        """Takes over both sockets; the server's is in the loop, with another handler."""
        self._shared = shared
        self._client = client
        self._server = server
        self._up = Direction(client.fileno(), server)
        self._down = Direction(server.fileno(), client)
        self._client_mask = self._server_mask = IN
        shared.counts.connections += 1
        shared.counts.open_connections += 1
        shared.loop.hand_over(server.fileno(), IN, self)
        shared.loop.add(client.fileno(), IN, self)

    def ready(self, descriptor: int, events: int) -> None:
        """A side can be read from or written to, or is broken."""
        of_client = descriptor == self._up.source
        outgoing, incoming = (self._down, self._up) if of_client else (self._up, self._down)
        pool = self._shared.pool
        try:
            if events & OUT:
                outgoing.move(pool)
            if events & (IN | ERROR | HANGUP):
                incoming.move(pool)
        except OSError:
            self.reset()
            return
        if events & ERROR:
            self.reset()
        elif self._up.finished and self._down.finished:
            self._end()
        else:
            self._wait(descriptor if events & HANGUP else _GONE)

    def reset(self) -> None:
        """Ends it so that both sides see that it broke."""
        will_reset(self._client)
        will_reset(self._server)
        self._end()

    def _end(self) -> None:
        shared = self._shared
        self._up.drop(shared.pool)
        self._down.drop(shared.pool)
        shared.loop.close(self._client)
        shared.loop.close(self._server)
        shared.slots.give_back(DESCRIPTORS)
        shared.counts.open_connections -= 1

    def _wait(self, hung_up: int) -> None:
        """Waits for what each side can do next: a sender whose bytes are not taken is not read from.

        Args:
            hung_up: a descriptor both of whose directions are closed. That is told over and over, so it is taken out
                unless there is something to do with it.
        """
        up, down = self._up, self._down
        wanted = _mask(up, down)
        if wanted != self._client_mask or (hung_up == up.source and not wanted):
            self._client_mask = self._set(up.source, self._client_mask, wanted, out=hung_up == up.source)
        wanted = _mask(down, up)
        if wanted != self._server_mask or (hung_up == down.source and not wanted):
            self._server_mask = self._set(down.source, self._server_mask, wanted, out=hung_up == down.source)

    def _set(self, descriptor: int, mask: int, wanted: int, *, out: bool) -> int:
        """Changes what is waited for; returns the mask, _GONE for a descriptor that is not in the loop."""
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
    """What is waited for of a side."""
    mask = 0 if incoming.ended or incoming.pipe is not None else IN
    return mask if outgoing.pipe is None else mask | OUT


def will_reset(sock: socket.socket) -> None:
    """Closing this socket will reset its connection."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
