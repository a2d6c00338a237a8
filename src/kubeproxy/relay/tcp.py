"""TCP connections: connected to a target, then carried both ways.

Bytes go from socket to pipe to socket by splice(2) and never through this program. A direction has a pipe only while bytes are
on their way, so a connection that is silent costs two descriptors and about a kilobyte. What a reader does not take stays in
its direction's pipe, of which there is one, and the sender is not read from until it is gone.

The end of one direction is passed on as such (half-close); a reset of one side resets the other one. A target that does not
answer in time, or refuses, is passed over for the next one: 0.25, 0.5, 1 and 2 seconds are waited for the first, second, third
and fourth that is silent. The client hears nothing of this, and nothing it sends is read before a target is connected.
"""

import contextlib
import errno
import logging
import os
import socket
import struct
from collections.abc import Sequence
from typing import Final

from kubeproxy.relay import origin, sockets
from kubeproxy.relay.balancer import Balancer
from kubeproxy.relay.header import header
from kubeproxy.relay.loop import ERROR, HANGUP, IN, OUT, Loop, Timer
from kubeproxy.relay.pipes import SIZE, Copy, Pipe, Pool
from kubeproxy.relay.shared import Shared
from kubeproxy.relay.slots import is_shortage
from kubeproxy.relay.values import Listener, Target

PATIENCE: Final = (0.25, 0.5, 1.0, 2.0)
"""Seconds to wait for a target's answer, for each one that gave none."""

DESCRIPTORS: Final = 2
"""A connection has two sockets."""

_ROUNDS: Final = 8
_LITTLE: Final = SIZE // 4
"""Who sends less at a time has probably no more to send now."""

_GONE: Final = -1
_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: close with a reset


class Entrance:
    """A listening socket."""

    def __init__(self, sock: socket.socket, listener: Listener, shared: Shared) -> None:
        self._sock = sock
        self._shared = shared
        self._loop: Loop = shared.loop
        self.change(listener)
        self._open = self._closed = False
        self.resume()

    def change(self, listener: Listener) -> None:
        """New connections are treated otherwise now."""
        self._listener = listener
        self._balancer = Balancer(listener, self._shared.clients(listener.group))

    def resume(self) -> None:
        """Accepts."""
        if not self._open and not self._closed:
            self._open = True
            self._loop.add(self._sock.fileno(), IN, self)

    def pause(self) -> None:
        """Accepts no more until there is room: who connects waits."""
        self._shared.slots.when_free(self.resume)
        self._stop()

    def close(self) -> None:
        """Accepts who is waiting, and nobody afterwards."""
        while self._open and self._accept():
            pass
        self._stop()
        self._closed = True
        self._loop.close(self._sock)

    def _stop(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove(self._sock.fileno())

    def ready(self, descriptor: int, events: int) -> None:  # noqa: ARG002 see Handler
        """Somebody connects."""
        self._accept()

    def _accept(self) -> bool:
        """Takes one connection; returns whether there may be more."""
        if not self._shared.admit(DESCRIPTORS):
            self.pause()
            return False
        try:
            client, peer = self._sock.accept()
        except OSError as e:
            self._shared.slots.give_back(DESCRIPTORS)
            if is_shortage(e):
                self._shared.short(e)
                self.pause()
            return e.errno == errno.ECONNABORTED
        client.setblocking(False)
        target = (peer[0], peer[1])
        reached: Target | None = client.getsockname()[:2]
        if self._listener.translated:
            reached = origin.of_connection(client)
        candidates = self._balancer.candidates(peer[0]) if reached else ()
        if not candidates or reached is None:
            _refuse(self._shared, client)
            return True
        greeting = header(target, reached) if self._listener.header else b""
        Dialing(self._shared, self._listener.name, self._balancer, client, peer[0], candidates, greeting)
        return True


class Dialing:
    """A client for which a target is sought."""

    def __init__(
        self,
        shared: Shared,
        name: str,
        balancer: Balancer,
        client: socket.socket,
        address: str,
        candidates: Sequence[Target],
        greeting: bytes,
    ) -> None:
        self._shared = shared
        self._name = name
        self._balancer = balancer
        self._client = client
        self._address = address
        self._candidates = list(candidates)
        self._greeting = greeting
        self._silent = 0
        self._server: socket.socket | None = None
        self._timer: Timer | None = None
        self._target = self._candidates[0]
        self._next()

    def ready(self, descriptor: int, events: int) -> None:  # noqa: ARG002 see Handler
        """The target answered."""
        assert self._server is not None
        code = self._server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._failed(os.strerror(code))
            self._next()
            return
        server, self._server = self._server, None
        assert self._timer is not None
        self._timer.cancel()
        self._balancer.reached(self._address, self._target)
        if self._greeting:
            with contextlib.suppress(OSError):  # the connection will find out
                server.send(self._greeting)  # so little always fits into a new socket
        Connection(self._shared, self._client, server)

    def reset(self) -> None:
        """Gives up."""
        self._candidates.clear()
        self._failed("the relay ends")
        _refuse(self._shared, self._client)

    def _next(self) -> None:
        """Tries the next candidate that does not fail at once."""
        while self._candidates:
            self._target = self._candidates.pop(0)
            try:
                self._server = server = self._socket()
            except OSError as e:
                self._shared.short(e)
                break
            code = server.connect_ex(self._target)
            if code in {0, errno.EINPROGRESS}:
                self._shared.loop.add(server.fileno(), OUT, self)
                self._timer = self._shared.loop.after(PATIENCE[self._silent], self._timeout)
                return
            self._failed(os.strerror(code))
        self._shared.say(
            logging.WARNING, f"{self._name}: no endpoint can be connected, clients are reset", self._name
        )
        _refuse(self._shared, self._client)

    def _socket(self) -> socket.socket:
        sock = socket.socket(self._client.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sockets.patient(sock)
        if self._shared.mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._shared.mark)
        return sock

    def _timeout(self) -> None:
        """The target is silent. It may be asked again, after the others."""
        seconds = PATIENCE[self._silent]
        self._silent += 1
        if self._silent < len(PATIENCE):
            self._candidates.append(self._target)
        else:
            self._candidates.clear()
        self._failed(f"no answer within {seconds} s")
        self._next()

    def _failed(self, why: str) -> None:
        """The target is passed over."""
        assert self._server is not None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._shared.loop.close(self._server)
        self._server = None
        self._balancer.failed(self._address, self._target)
        address, port = self._target
        self._shared.say(
            logging.INFO,
            f"{self._name}: {address} port {port} cannot be connected: {why}",
            (self._name, self._target),
        )


class Stream:
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
        self._up = Stream(client.fileno(), server)
        self._down = Stream(server.fileno(), client)
        self._client_mask = self._server_mask = IN
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
        _reset(self._client)
        _reset(self._server)
        self._end()

    def _end(self) -> None:
        shared = self._shared
        self._up.drop(shared.pool)
        self._down.drop(shared.pool)
        shared.loop.close(self._client)
        shared.loop.close(self._server)
        shared.slots.give_back(DESCRIPTORS)

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


def _mask(incoming: Stream, outgoing: Stream) -> int:
    """What is waited for of a side."""
    mask = 0 if incoming.ended or incoming.pipe is not None else IN
    return mask if outgoing.pipe is None else mask | OUT


def _refuse(shared: Shared, client: socket.socket) -> None:
    """Resets a client that has no connection yet."""
    _reset(client)
    shared.loop.close(client)
    shared.slots.give_back(DESCRIPTORS)


def _reset(sock: socket.socket) -> None:
    """Closing this socket will reset its connection."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
