"""Accepts TCP clients and connects each to a target.

If a target refuses or does not answer in time, the next one is tried: the relay waits 0.25, 0.5, 1 and 2
seconds for the first, second, third and fourth target that does not answer. The client does not notice this,
because nothing that it sends is read before a target is connected.
"""

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Final

from kubeproxy.relay import origin, sockets
from kubeproxy.relay.balancer import Balancer
from kubeproxy.relay.connection import DESCRIPTORS, Connection, front_of, will_reset
from kubeproxy.relay.header import header
from kubeproxy.relay.loop import IN, OUT, Timer
from kubeproxy.relay.shared import Shared
from kubeproxy.relay.slots import is_shortage
from kubeproxy.relay.values import Listener, Target

PATIENCE: Final = (0.25, 0.5, 1.0, 2.0)
"""Seconds to wait for a target's answer, depending on how many targets have not answered."""

_REFUSALS: Final = frozenset({errno.ECONNREFUSED, errno.ECONNRESET})
_SYN_SENT: Final = 2
"""TCP_SYN_SENT of linux/tcp_states.h: the other side has not answered yet."""


class TCPPort:
    """Serves the clients of a listener."""

    def __init__(self, listener: Listener, shared: Shared) -> None:
        self._shared = shared
        self._listener = listener
        self._balancer = shared.balancer(listener)

    def change(self, listener: Listener) -> None:
        """Changes how new connections are served."""
        before, self._listener = self._balancer, listener
        self._balancer = self._shared.balancer(listener)
        before.close()

    def take(self, client: socket.socket, peer: Target) -> None:
        """Serves a client that was accepted."""
        reached: Target | None = client.getsockname()[:2]
        if self._listener.translated:
            reached = origin.of_connection(client)
        candidates = self._balancer.candidates(*peer) if reached else ()
        if not candidates or reached is None:
            refuse(self._shared, client)
            return
        greeting = header(peer, reached) if self._listener.header else b""
        Dialing(self._shared, self._listener, self._balancer, client, peer[0], candidates, greeting)

    def close(self) -> None:
        """No clients are served any more."""
        self._balancer.close()


class Acceptor:
    """Accepts clients at a listening socket."""

    def __init__(
        self, sock: socket.socket, shared: Shared, take: Callable[[socket.socket, Target], None]
    ) -> None:
        """Prepares it; `resume` begins.

        Args:
            sock: the socket.
            shared: what listeners share.
            take: gets each client with its address and port.
        """
        self._sock = sock
        self._shared = shared
        self._take = take
        self._open = self._closed = False

    def resume(self) -> None:
        """Starts to accept connections."""
        if not self._open and not self._closed:
            self._open = True
            self._shared.loop.add(self._sock.fileno(), IN, self)

    def pause(self) -> None:
        """Stops accepting until descriptors are free; clients that connect wait in the kernel."""
        self._shared.slots.when_free(self.resume)
        self._stop()

    def drain(self) -> None:
        """Accepts the clients that are waiting."""
        while self._open and self._accept():
            pass

    def close(self) -> None:
        """Accepts the clients that are waiting, then closes the socket."""
        self.drain()
        self._stop()
        self._closed = True
        self._shared.loop.close(self._sock)

    def _stop(self) -> None:
        if self._open:
            self._open = False
            self._shared.loop.remove(self._sock.fileno())

    def ready(self, descriptor: int, events: int) -> None:  # noqa: ARG002 see Handler
        """A client connects."""
        self._accept()

    def _accept(self) -> bool:
        """Accepts one connection; returns whether there may be more."""
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
        self._take(client, (peer[0], peer[1]))
        return True


class TCPServer(TCPPort):
    """A listening socket with one listener."""

    def __init__(self, sock: socket.socket, listener: Listener, shared: Shared) -> None:
        super().__init__(listener, shared)
        self._acceptor = Acceptor(sock, shared, self.take)
        self._acceptor.resume()

    def close(self) -> None:
        """Accepts the clients that are waiting, then closes the socket."""
        self._acceptor.close()
        super().close()


class Dialing:
    """A client whose targets are being tried."""

    def __init__(
        self,
        shared: Shared,
        listener: Listener,
        balancer: Balancer,
        client: socket.socket,
        address: str,
        candidates: Sequence[Target],
        greeting: bytes,
    ) -> None:
        self._shared = shared
        self._listener = listener
        self._balancer = balancer
        self._client = client
        self._address = address
        self._candidates = list(candidates)
        self._greeting = greeting
        self._silent = 0
        self._server: socket.socket | None = None
        self._timer: Timer | None = None
        self._target = self._candidates[0]
        self._counts = shared.tallies.of(listener.group, self._target)
        self._next()

    def ready(self, descriptor: int, events: int) -> None:  # noqa: ARG002 see Handler
        """The target answered."""
        assert self._server is not None
        code = self._server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._refused(code)
            self._next()
            return
        server, self._server = self._server, None
        assert self._timer is not None
        self._timer.cancel()
        self._balancer.reached(self._address, self._target)
        if self._greeting:
            with contextlib.suppress(OSError):  # an error is reported again when the connection is read
                server.send(self._greeting)  # the send buffer of a new socket is large enough
        self._counts.reached(self)
        Connection(self._shared, self._client, server, self._counts)

    @property
    def group(self) -> str:
        """The group of its listener."""
        return self._listener.group

    @property
    def target(self) -> Target:
        """The target that is being tried."""
        return self._target

    def client(self) -> Target:
        """Address and port of the client.

        Raises:
            OSError: the client has reset the connection.
        """
        return self._address, self._client.getpeername()[1]

    def front(self) -> Target:
        """Address and port that the client connected to, see `front_of`."""
        return front_of(self._client)

    def lost_target(self) -> None:
        """See `Carried`."""
        self._counts.abandoned(self)
        self._failed("it was removed")
        self._next()

    def reset(self) -> None:
        """Resets the client, without trying other targets."""
        self._candidates.clear()
        self._counts.abandoned(self)
        self._failed("the relay ends")
        refuse(self._shared, self._client)

    def _next(self) -> None:
        """Tries the next candidate that does not fail at once."""
        while self._candidates:
            self._target = self._candidates.pop(0)
            try:
                self._server = server = self._socket()
            except OSError as e:
                self._shared.short(e)
                break
            self._counts = self._shared.tallies.of(self._listener.group, self._target)
            self._counts.attempt(self)
            code = server.connect_ex(self._target)
            if code in {0, errno.EINPROGRESS}:
                self._shared.loop.add(server.fileno(), OUT, self)
                self._timer = self._shared.loop.after(PATIENCE[self._silent], self._timeout)
                return
            self._refused(code)
        name = self._listener.name
        self._shared.report(logging.WARNING, f"{name}: no endpoint can be connected, clients are reset", name)
        refuse(self._shared, self._client)

    def _socket(self) -> socket.socket:
        sock = socket.socket(self._client.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sockets.set_tcp_options(sock)
        if self._shared.mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._shared.mark)
        return sock

    def _timeout(self) -> None:
        """The target has not answered in time. It is tried again after the others."""
        assert self._server is not None
        # struct tcp_info begins with the state.
        if self._server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _SYN_SENT:
            return  # it answered in time, but the event was not handled yet
        seconds = PATIENCE[self._silent]
        self._silent += 1
        if self._silent < len(PATIENCE):
            self._candidates.append(self._target)
        else:
            self._candidates.clear()
        self._counts.unanswered(self)
        self._failed(f"no answer within {seconds} s")
        self._next()

    def _refused(self, code: int) -> None:
        """The target, or the network, answers with an error."""
        if code in _REFUSALS:
            self._counts.refused(self)
        else:
            self._counts.unanswered(self)
        self._failed(os.strerror(code))

    def _failed(self, why: str) -> None:
        """Closes the socket to a target that failed, and logs the reason."""
        assert self._server is not None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._shared.loop.close(self._server)
        self._server = None
        self._balancer.failed(self._address, self._target)
        self._shared.counts.failures += 1
        name, (address, port) = self._listener.name, self._target
        self._shared.report(
            logging.INFO, f"{name}: {address} port {port} cannot be connected: {why}", (name, self._target)
        )


def refuse(shared: Shared, client: socket.socket) -> None:
    """Resets a client that is not connected to a target."""
    shared.counts.refused += 1
    will_reset(client)
    shared.loop.close(client)
    shared.slots.give_back(DESCRIPTORS)
