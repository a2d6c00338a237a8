"""The daemon's side of a relay: keeps the listening sockets and a process that serves them.

A thread (the keeper) starts the process with the first listener, sends it the table of listeners, receives what it reports,
and replaces it when it ends or does not respond: the next one gets the same sockets, and clients that came meanwhile wait
in them. Connections of the one that ended are lost.

No method but `settle` and `join` waits for the process. A change is sent at once if the process reads; if not, only the number
of the listener is noted, and the keeper sends what the table says when the process reads again. So a process that hangs
costs no memory, and the event loop no time.
"""

import logging
import os
import select
import socket
import threading
import time
from collections.abc import Iterable, Mapping

from msgspec import Struct

from kubeproxy.figures import Figure, Kind
from kubeproxy.machine.base import Machine
from kubeproxy.relay import sockets
from kubeproxy.relay.process import RelayProcess
from kubeproxy.relay.table import ListenerTable
from kubeproxy.relay.values import Counts, Listener, Mark, Message, Said

log = logging.getLogger(__name__)


class Patience(Struct, frozen=True, gc=False):
    """How long a process may take, in seconds.

    Attributes:
        idle: a process that owes no answer is asked for a sign of life so often.
        tick: unanswered time is counted in steps of this length. A step counts only while this program runs, too, so that
            a suspended machine or a frozen container is not taken for a process that hangs.
        answer: until a process that has answered before is replaced.
        start: until a process that has never answered is replaced.
        life: processes are started at most so often.
        stop: until a process that is to end is killed.
    """

    idle: float = 5.0
    tick: float = 1.0
    answer: float = 15.0
    start: float = 60.0
    life: float = 1.0
    stop: float = 5.0


class Relay:
    """Listeners and the process that serves them. All methods may be called from any thread.

    Attributes:
        machine: the host it is on.
        labels: of the figures that concern it.
    """

    def __init__(
        self,
        machine: Machine,
        name: str,
        *,
        mark: int = 0,
        limit: int = 0,
        labels: Mapping[str, str] | None = None,
        patience: Patience = Patience(),  # noqa: B008 immutable
    ) -> None:
        """Makes a relay that does nothing yet.

        Args:
            machine: the host the process runs on.
            name: what it is for, for messages.
            mark: the mark of packets to targets; 0 for none.
            limit: how many descriptors connections may take; 0 for as many as the system gives.
            labels: of the figures that concern it.
            patience: how long the process may take.
        """
        self.machine = machine
        self._name = name
        self.labels = labels or {}
        self._arguments = [str(mark), str(limit)]
        self._patience = patience
        self._lock = threading.RLock()
        self._heard = threading.Condition(self._lock)
        self._table = ListenerTable()
        self._keeper: threading.Thread | None = None
        self._wakeup = -1  # an eventfd on which the keeper waits
        self._process: RelayProcess | None = None
        self._stopped = False
        self._counts = self._before = Counts()  # of the process, and of those before it
        self._lost = 0

    @property
    def pid(self) -> int | None:
        """The process' number; None as long as there is none."""
        process = self._process
        return process.pid if process else None

    def bind(self, address: str, ports: sockets.Span, *, udp: bool) -> socket.socket:
        """Makes a socket for `open`, see `sockets.bind`.

        Raises:
            OSError: it cannot be made.
        """
        return sockets.bind(self.machine, address, ports, udp=udp)

    def open(self, sock: socket.socket, listener: Listener) -> int:
        """Serves a socket of `bind`, which now belongs to the relay; returns the listener's number.

        A relay that was stopped closes it.
        """
        with self._lock:
            number = self._table.add(sock, listener)
            if self._stopped:
                sock.close()
            else:
                self._hurry()
            return number

    def change(self, number: int, listener: Listener) -> None:
        """New connections of a listener are treated otherwise now."""
        with self._lock:
            if self._table.change(number, listener):
                self._hurry()

    def close(self, number: int) -> None:
        """Ends a listener. TCP connections stay until they end by themselves."""
        with self._lock:
            self._table.remove(number)
            self._hurry()

    def settle(self, seconds: float) -> bool:
        """Waits until all listeners are served as they were last opened and changed; returns whether they are.

        It blocks, so it is not for the thread of an event loop.

        Args:
            seconds: how long to wait at most. A relay that is stopped is waited for no longer.
        """
        with self._lock:
            if not self._table.listeners:
                return True
            mark = self._table.mark()
            self._hurry()
            self._heard.wait_for(lambda: self._stopped or self._table.settled >= mark, seconds)
            return self._table.settled >= mark

    def stop(self) -> None:
        """Begins to end the process, all connections and listeners; `join` waits for the end."""
        with self._lock:
            self._stopped = True
            self._heard.notify_all()
            self._table.clear()
            if self._process is not None:
                self._process.hang_up()
            self._wake()

    def join(self) -> None:
        """Waits until a relay that was stopped has ended. A process that hangs is killed after some seconds.

        It blocks, so it is not for the thread of an event loop.
        """
        if self._keeper is not None:
            self._keeper.join()

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
        yield figure("listeners", "gauge", "Sockets it listens on.", len(self._table.listeners))
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

    def _hurry(self) -> None:
        """Sends a change at once; what the process does not take is left to the keeper, which polls."""
        if self._stopped:
            return
        if self._keeper is None:
            sockets.raise_limit()
            self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._keeper = threading.Thread(target=self._keep, name=self._name, daemon=True)
            self._keeper.start()
        elif self._process is not None and not self._process.full and not self._send(self._process):
            self._wake()

    def _wake(self) -> None:
        if self._wakeup >= 0:
            os.eventfd_write(self._wakeup, 1)

    def _send(self, process: RelayProcess) -> bool:
        """Sends some of what the process does not know. Returns whether it has been sent everything."""
        try:
            return process.flush() and self._table.send(process.send) and not process.full
        except OSError as e:
            log.warning(
                "%(relay)s: cannot send to the relay process, replacing it: %(err)s",
                {"relay": self._name, "err": e},
            )
            process.hang_up()
            return False

    def _keep(self) -> None:
        """The keeper's thread: there is a process that serves, until the relay is stopped."""
        stopped = False
        while not stopped:
            started = time.monotonic()
            try:
                self._begin(process := RelayProcess(self.machine, self._arguments))
            except OSError as e:
                log.error(  # noqa: TRY400 the message says it all
                    "%(relay)s: cannot start the relay process, trying again: %(err)s",
                    {"relay": self._name, "err": e},
                )
            else:
                try:
                    why = self._serve(process)
                except Exception:
                    log.exception(
                        "%(relay)s: cannot handle what the relay process sent", {"relay": self._name}
                    )
                    why = "it does not work"
                self._end(process, why)
            with self._lock:
                rest = started + self._patience.life - time.monotonic()
                stopped = self._heard.wait_for(lambda: self._stopped, max(0.0, rest))
        with self._lock:
            os.close(self._wakeup)
            self._wakeup = -1

    def _begin(self, process: RelayProcess) -> None:
        """A process that was started knows no listener."""
        with self._lock:
            self._process = process
            self._table.restart()

    def _serve(self, process: RelayProcess) -> str:
        """Sends and receives until the process must end; returns why."""
        patience, silent, limit = self._patience, 0.0, self._patience.start
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        while True:
            with self._lock:
                if self._stopped:
                    return ""
                sent = self._send(process)
                idle = sent and self._table.settled >= self._table.marked
            poll.register(process, select.POLLIN | (select.POLLOUT if process.full else 0))
            wait = patience.idle if idle else patience.tick if sent or process.full else 0.0
            ready = [descriptor for descriptor, _ in poll.poll(wait * 1000)]
            if process.fileno() in ready:
                messages = process.receive()
                if messages is None:
                    return "it ended"
                silent = 0.0
                if messages:
                    limit = patience.answer
                    self._take(messages)
            if self._wakeup in ready:
                os.eventfd_read(self._wakeup)
            if not ready and idle:
                with self._lock:
                    self._table.mark()
            elif not ready:
                silent += wait
                if silent >= limit:
                    return f"it did not respond for {silent:.0f} s"

    def _take(self, messages: Iterable[Message]) -> None:
        for message in messages:
            if isinstance(message, Said):
                log.log(
                    message.level, "%(relay)s: %(message)s", {"relay": self._name, "message": message.text}
                )
            elif isinstance(message, Counts):
                self._counts = message
            elif isinstance(message, Mark):
                with self._lock:
                    self._table.settled = message.number
                    self._heard.notify_all()

    def _end(self, process: RelayProcess, why: str) -> None:
        """Ends a process: with some patience if the relay was stopped, at once if not."""
        with self._lock:
            self._process = None
            stopped = self._stopped
        code = process.end(self._patience.stop if stopped else 0.0)
        if code is None:
            log.error(
                "%(relay)s: the relay process %(pid)d was killed, but does not end",
                {"relay": self._name, "pid": process.pid},
            )
        if not stopped:
            self._lost += 1
            self._before, self._counts = self._all(), Counts()
            log.error(
                "%(relay)s: the relay process is replaced, %(reason)s; its connections are lost (exit status %(exitStatus)s)",
                {"relay": self._name, "reason": why, "exitStatus": code},
            )
