"""An HTTP/1.1 server with the features that status pages need, small enough for thousands of ports.

Keep-alive, pipelining; no TLS. What a client can use is limited: the size of a request, the time to receive
it and to send the response, and the number of connections. A flood cannot exclude other clients: the
connection that has been idle longest is closed for the next one. One request of a connection is answered in
each iteration of the event loop, so a client with many requests does not block it.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from kubeproxy.serve.message import (
    ANY,
    LONGEST,
    BadRequestError,
    Handler,
    HTTPRequest,
    HTTPResponse,
    parse,
    render,
    text,
)

log = logging.getLogger(__name__)

CONNECTIONS: Final = 128
"""How many connections one `Door` accepts."""

REQUEST_SECONDS: Final = 10.0
"""Seconds in which a request must be complete."""

IDLE_SECONDS: Final = 90.0
"""Seconds a connection may be idle, and a client may take to read a response."""

_SWEEP_SECONDS = 1.0
_BACKLOG = 128
_FAILED = "%(method)s %(path).80r cannot be answered"


class Door:
    """Accepts the connections of one or many listeners, within the limits of number and time."""

    def __init__(self, limit: int = CONNECTIONS) -> None:
        self._limit = limit
        self._connections: dict[_Connection, None] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._connections)

    async def open(
        self, handler: Handler, sock: socket.socket, *, admits: Callable[[socket.socket], bool] | None = None
    ) -> "OpenPort":
        """Listens on a bound socket, which is the listener's from now on.

        Args:
            handler: answers.
            sock: the socket.
            admits: whether a connection is accepted; others are closed. None: all are.

        Raises:
            OSError: another socket listens on this address.
        """
        listener = OpenPort(self, admits)
        try:
            listener.server = await asyncio.get_running_loop().create_server(
                lambda: _Connection(self, listener, handler), sock=sock, backlog=_BACKLOG
            )
        except BaseException:
            sock.close()
            raise
        return listener

    def leave(self, listener: "OpenPort") -> None:
        """Closes the connections of a listener; one with a response in progress is closed after it."""
        for connection in [c for c in self._connections if c.listener is listener]:
            connection.end()

    def entered(self, connection: "_Connection") -> None:
        """A connection was made."""
        if len(self._connections) >= self._limit:
            victim = next((c for c in self._connections if not c.working), connection)
            self._connections.pop(victim, None)
            victim.abort()
            if victim is connection:
                return
        self._connections[connection] = None
        if self._sweeper is None:
            self._schedule()

    def answered(self, connection: "_Connection") -> None:
        """A connection was answered: it is the last to be closed as idle."""
        if connection in self._connections:
            del self._connections[connection]
            self._connections[connection] = None

    def left(self, connection: "_Connection") -> None:
        """A connection was closed."""
        self._connections.pop(connection, None)

    def _schedule(self) -> None:
        self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        """Closes connections whose deadline has passed. One timer for all, none without connections."""
        self._sweeper = None
        now = asyncio.get_running_loop().time()
        for connection in [c for c in self._connections if c.deadline <= now]:
            connection.abort()
        if self._connections:
            self._schedule()


class OpenPort:
    """An open port.

    Attributes:
        admits: whether a connection is accepted; None: all are.
    """

    server: asyncio.Server

    def __init__(self, door: Door, admits: Callable[[socket.socket], bool] | None = None) -> None:
        self._door = door
        self.admits = admits

    def close(self) -> None:
        """Closes the port and its connections."""
        self.server.close()
        self._door.leave(self)


class _Connection(asyncio.Protocol):
    """One connection.

    Attributes:
        listener: where it was accepted.
        deadline: when it is closed if nothing happens, by the event loop's clock.
        working: whether a response is in progress.
    """

    __slots__ = (
        "_buffer",
        "_door",
        "_ending",
        "_handler",
        "_scheduled",
        "_task",
        "_transport",
        "_writable",
        "deadline",
        "listener",
        "working",
    )

    _transport: asyncio.Transport

    def __init__(self, door: Door, listener: OpenPort, handler: Handler) -> None:
        self._door = door
        self._handler = handler
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._ending = False
        self._writable = True
        self._scheduled = False
        self.listener = listener
        self.working = False
        self.deadline = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        admits = self.listener.admits
        if admits is not None and not admits(transport.get_extra_info("socket")):
            transport.abort()
            return
        self._patience(REQUEST_SECONDS)
        self._door.entered(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._ending = True
        self._door.left(self)
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        if not self._buffer and not self.working:
            self._patience(REQUEST_SECONDS)
        self._buffer += data
        if len(self._buffer) > LONGEST:
            self._transport.pause_reading()
        self._go_on()

    def eof_received(self) -> bool:
        # The request that was received is answered, then the connection is closed.
        self._ending = True
        return self.working or self._scheduled

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._go_on()

    def end(self) -> None:
        """Closes it, after a response in progress."""
        self._ending = True
        if not self.working:
            self._transport.close()

    def abort(self) -> None:
        """Closes it immediately."""
        self._transport.abort()

    def _patience(self, seconds: float) -> None:
        self.deadline = asyncio.get_running_loop().time() + seconds

    def _go_on(self) -> None:
        """Handles the next request, in the next iteration of the event loop."""
        if not self._scheduled and not self.working and self._writable and self._buffer:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._scheduled = False
        if self._transport.is_closing():
            return
        try:
            request = parse(self._buffer)
        except BadRequestError as e:
            self._ending = True
            self._send("GET", e.response())
            return
        if request is None:
            if self._ending:
                self._transport.close()
            return
        self._ending = self._ending or request.last
        if not self._transport.is_reading() and len(self._buffer) <= LONGEST:
            self._transport.resume_reading()
        try:
            answer = self._handler(request) if request.path != ANY else HTTPResponse(b"")
        except Exception:
            log.exception(_FAILED, {"method": request.method, "path": request.path})
            answer = text("500 Internal Server Error\n", 500)
        if isinstance(answer, HTTPResponse):
            self._send(request.method, answer)
        else:
            self.working = True
            self.deadline = float("inf")
            self._task = asyncio.ensure_future(self._wait(request, answer))

    async def _wait(self, request: HTTPRequest, coming: Awaitable[HTTPResponse]) -> None:
        try:
            answer = await coming
        except Exception:
            log.exception(_FAILED, {"method": request.method, "path": request.path})
            answer = text("500 Internal Server Error\n", 500)
        self._task = None
        self.working = False
        if not self._transport.is_closing():
            self._send(request.method, answer)

    def _send(self, method: str, response: HTTPResponse) -> None:
        self._patience(IDLE_SECONDS)
        self._door.answered(self)
        self._transport.write(render(response, method, last=self._ending))
        if self._ending:
            self._transport.close()
        else:
            self._go_on()
