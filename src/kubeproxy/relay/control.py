"""The daemon's side of a relay: keeps the listening sockets, starts the process that serves them, and starts it again.

The process is started with the first listener. If it ends, the next one gets the same sockets: clients that came meanwhile
wait in them. Connections of the one that ended are lost.
"""

import contextlib
import logging
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping

from kubeproxy.figures import Figure, Kind
from kubeproxy.relay.sockets import raise_limit
from kubeproxy.relay.values import Change, Close, Counts, Decoder, Listener, Mark, Message, Open, Said, encode

log = logging.getLogger(__name__)

_ANSWER_SECONDS = 5
"""How long the process may not listen to us before it counts as stuck."""

_BUFFER_BYTES = 4 << 20
_SHORTEST_LIFE_SECONDS = 1.0
_STOP_SECONDS = 5.0


class Relay:
    """Listeners and the process that serves them. All methods may be called from any thread.

    Attributes:
        labels: of the figures that concern it.
    """

    def __init__(
        self, name: str, *, mark: int = 0, limit: int = 0, labels: Mapping[str, str] | None = None
    ) -> None:
        """Makes a relay that does nothing yet.

        Args:
            name: what it is for, for messages.
            mark: the mark of packets to targets; 0 for none.
            limit: how many descriptors connections may take; 0 for as many as the system gives.
            labels: of the figures that concern it.
        """
        self._name = name
        self.labels = labels or {}
        self._arguments = [str(mark), str(limit)]
        self._lock = threading.RLock()
        self._heard = threading.Condition(self._lock)
        self._listeners: dict[int, tuple[socket.socket, Listener]] = {}
        self._next = 0
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._counts = self._before = Counts()  # of the process, and of those before it
        self._lost = 0
        self._marked = self._settled = 0  # the last mark that was sent, and the last that came back

    @property
    def pid(self) -> int | None:
        """The process' number; None as long as there is none."""
        return self._process.pid if self._process else None

    def open(self, sock: socket.socket, listener: Listener) -> int:
        """Serves a socket of `sockets.bind`, which now belongs to the relay; returns the listener's number.

        A relay that was stopped closes it.
        """
        with self._lock:
            self._next += 1
            self._listeners[self._next] = sock, listener
            if self._stopped:
                sock.close()
            elif self._control is None:
                self._start()
            else:
                self._send(Open(self._next, listener), sock)
            return self._next

    def change(self, number: int, listener: Listener) -> None:
        """New connections of a listener are treated otherwise now."""
        with self._lock:
            sock, before = self._listeners[number]
            if listener != before:
                self._listeners[number] = sock, listener
                self._send(Change(number, listener))

    def close(self, number: int) -> None:
        """Ends a listener. TCP connections stay until they end by themselves."""
        with self._lock:
            sock, _ = self._listeners.pop(number)
            self._send(Close(number))
            sock.close()

    def settle(self, seconds: float) -> bool:
        """Waits until all listeners are served as they were last opened and changed; returns whether they are.

        Args:
            seconds: how long to wait at most. A relay that is stopped is waited for no longer.
        """
        with self._lock:
            if not self._listeners:
                return True
            self._marked += 1
            mark = self._marked
            self._send(Mark(mark))
            self._heard.wait_for(lambda: self._stopped or self._settled >= mark, seconds)
            return self._settled >= mark

    def stop(self) -> None:
        """Ends the process, all connections and listeners."""
        with self._lock:
            self._stopped = True
            self._heard.notify_all()
            process = self._process
            self._hang_up()
            for sock, _ in self._listeners.values():
                sock.close()
            self._listeners.clear()
        if process is not None:
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def figures(self) -> Iterable[Figure]:
        """What the relay did and does, as of some seconds ago."""

        def figure(name: str, kind: Kind, text: str, value: float, **labels: str) -> Figure:
            return Figure(f"kubeproxy_relay_{name}", kind, text, value, {**self.labels, **labels})

        done = self._all()
        text = "Clients that were connected to an endpoint."
        yield figure("connections_total", "counter", text, done.connections, protocol="TCP")
        yield figure("connections_total", "counter", text, done.flows, protocol="UDP")
        text = "Clients that are connected to an endpoint."
        yield figure("connections", "gauge", text, self._counts.open_connections, protocol="TCP")
        yield figure("connections", "gauge", text, self._counts.open_flows, protocol="UDP")
        text = "Clients that nobody serves, or no endpoint answered."
        yield figure("refused_clients_total", "counter", text, done.refused)
        text = "Tries to reach an endpoint that failed."
        yield figure("endpoint_failures_total", "counter", text, done.failures)
        yield figure("listeners", "gauge", "Sockets it listens on.", len(self._listeners))
        text = "How often the process ended, with its connections."
        yield figure("lost_processes_total", "counter", text, self._lost)

    def _all(self) -> Counts:
        """What all processes together did."""
        ours, theirs = self._counts, self._before
        return Counts(
            connections=ours.connections + theirs.connections,
            flows=ours.flows + theirs.flows,
            refused=ours.refused + theirs.refused,
            failures=ours.failures + theirs.failures,
        )

    def _start(self) -> None:
        raise_limit()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            # Not settimeout: the thread that listens shares the socket, and waits without end.
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _ANSWER_SECONDS, 0))
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "kubeproxy.relay", str(theirs.fileno()), *self._arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._control = ours
        threading.Thread(
            target=self._listen, args=(ours, self._process, time.monotonic()), name=self._name, daemon=True
        ).start()
        for number, (sock, listener) in self._listeners.items():
            self._send(Open(number, listener), sock)
        if self._settled < self._marked:
            self._send(Mark(self._marked))

    def _send(self, message: Message, sock: socket.socket | None = None) -> None:
        """Sends an order. If that fails, the process is ended, and its successor will hear everything anew."""
        if self._control is None:
            return
        data = encode(message)
        try:
            sent = socket.send_fds(self._control, [data], [sock.fileno()]) if sock else 0
            self._control.sendall(memoryview(data)[sent:])
        except OSError as e:
            log.warning("%s: the process does not listen: %s", self._name, e)
            self._hang_up()

    def _hang_up(self) -> None:
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)
            self._control = None

    def _listen(self, control: socket.socket, process: subprocess.Popen[bytes], started: float) -> None:
        """Logs what a process says, until it ends; then there must be another one."""
        decoder = Decoder()
        with control, contextlib.suppress(OSError):
            while data := control.recv(1 << 16):
                for message in decoder.feed(data):
                    if isinstance(message, Said):
                        log.log(message.level, "%s: %s", self._name, message.text)
                    elif isinstance(message, Counts):
                        self._counts = message
                    elif isinstance(message, Mark):
                        with self._lock:
                            self._settled = message.number
                            self._heard.notify_all()
        with self._lock:
            if self._stopped:
                return
            if self._control is control:
                self._hang_up()
        process.kill()  # it may be stuck
        code = process.wait()
        self._lost += 1
        self._before, self._counts = self._all(), Counts()
        log.error(
            "%s: the process ended (%d), its connections are lost, starting another one", self._name, code
        )
        time.sleep(max(0.0, started + _SHORTEST_LIFE_SECONDS - time.monotonic()))
        with self._lock:
            if not self._stopped and self._control is None:
                self._start()
