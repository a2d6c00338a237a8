"""One relay process and the socket to it.

Sending never waits: if the process does not read now, the caller must retry.
"""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Sequence

from kubeproxy.machine.base import Machine
from kubeproxy.relay.values import Decoder, Message, encode

_BUFFER_BYTES = 4 << 20
_RECEIVED_BYTES = 1 << 16
_KILLED_SECONDS = 5.0


class RelayProcess:
    """A relay process that was started. Not thread-safe.

    Attributes:
        pid: its process ID.
        full: the last message was not sent, or only in part, because the socket's buffer is full; the socket
            can be polled.
    """

    def __init__(self, machine: Machine, arguments: Sequence[str]) -> None:
        """Starts it.

        Args:
            machine: the host to start it on.
            arguments: of `kubeproxy.relay`, after the number of the socket.

        Raises:
            OSError: the process cannot be started.
        """
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._rest = memoryview(b"")
        self.full = False
        self._decoder = Decoder()
        with theirs, contextlib.ExitStack() as failed:
            failed.callback(self._control.close)
            self._control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            self._control.setblocking(False)
            self._popen = machine.start(
                [sys.executable, "-P", "-m", "kubeproxy.relay", str(theirs.fileno()), *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
            failed.pop_all()
        self.pid = self._popen.pid

    def fileno(self) -> int:
        """The descriptor of the socket, to poll."""
        return self._control.fileno()

    def send(self, message: Message, sock: socket.socket | None = None) -> bool:
        """Sends a message, and a socket with it. Returns whether it was accepted.

        If not, it must be sent again later.

        Raises:
            OSError: the process ended.
        """
        if not self.flush():
            return False
        data = encode(message)
        try:
            sent = (
                socket.send_fds(self._control, [data], [sock.fileno()]) if sock else self._control.send(data)
            )
        except BlockingIOError:
            self.full = True
            return False
        self._rest = memoryview(data)[sent:]
        self.flush()
        return True

    def flush(self) -> bool:
        """Sends the rest of a message that was sent in part. Returns whether nothing is left.

        Raises:
            OSError: the process ended.
        """
        self.full = False
        while self._rest:
            try:
                self._rest = self._rest[self._control.send(self._rest) :]
            except BlockingIOError:
                self.full = True
                return False
        return True

    def receive(self) -> list[Message] | None:
        """The messages that have arrived, possibly none; None if the process closed the socket.

        Raises:
            msgspec.DecodeError: the bytes that arrived are not a message.
        """
        try:
            data = self._control.recv(_RECEIVED_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        return list(self._decoder.feed(data)) if data else None

    def hang_up(self) -> None:
        """Shuts down the socket. The process then resets its connections and ends."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)

    def end(self, patience: float) -> int | None:
        """Closes the socket, waits `patience` seconds for the process to end, and then kills it.

        Returns:
            Its exit status; None if it was killed and has not ended, for example because it is in an
            uninterruptible sleep.
        """
        self.hang_up()
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._popen.wait(patience)
        self._popen.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._popen.wait(_KILLED_SECONDS)
        return None
