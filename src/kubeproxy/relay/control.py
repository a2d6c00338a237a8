"""The daemon's side of a relay: keeps the listening sockets and a process that serves them.

A thread (the keeper) starts the process with the first listener, sends it the table of listeners, receives
its messages, and replaces it when it ends or does not respond. The next process gets the same sockets, and
clients that connect in the meantime wait in their queues. The connections of the process that ended are lost.

Only `settle` and `join` wait for the process. A change is sent at once if the process reads. If it does not
read, the number of the listener is noted, and the keeper sends the listener when the process reads again. So
a process that hangs costs no memory, and does not block the event loop.
"""

import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping

from msgspec import Struct

from kubeproxy.figures import Figure
from kubeproxy.machine.base import Machine
from kubeproxy.relay import metrics, sockets
from kubeproxy.relay.presence import PresenceTable, Targets
from kubeproxy.relay.process import RelayProcess
from kubeproxy.relay.questions import Questions
from kubeproxy.relay.steering import SteeredPort
from kubeproxy.relay.table import ListenerTable
from kubeproxy.relay.traffic import TrafficReport
from kubeproxy.relay.values import (
    AskFlows,
    AskTallies,
    CarriedFlow,
    Counts,
    ListedFlows,
    Listener,
    LogLine,
    Mark,
    Message,
    Tallied,
    Target,
)

log = logging.getLogger(__name__)


class Patience(Struct, frozen=True, gc=False):
    """Timeouts and intervals of a process, in seconds.

    Attributes:
        idle: the interval of the checks whether a process without unanswered messages still responds.
        tick: time without an answer is counted in steps of this length. A step is counted only if the daemon
            runs, too, so that the time during which a machine is suspended or a container is frozen does not
            count.
        answer: after this time without an answer, a process that has answered before is replaced.
        start: after this time without an answer, a process that has never answered is replaced.
        life: the minimum time between two starts of a process.
        stop: after this time, a process that should end is killed.
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
        machine: the host on which the process runs.
        name: its name in log messages.
        labels: the labels of its metrics.
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
        """Creates a relay. Its process is started with the first listener.

        Args:
            machine: the host on which the process runs.
            name: its name in log messages.
            mark: the mark of packets to targets; 0 for none.
            limit: how many descriptors connections may use; 0 for as many as the system allows.
            labels: the labels of its metrics.
            patience: timeouts and intervals of the process.
        """
        self.machine = machine
        self.name = name
        self.labels = labels or {}
        self._arguments = [str(mark), str(limit)]
        self._patience = patience
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)  # a mark or an answer came, or the relay was stopped
        self._table = ListenerTable()
        self._presence = PresenceTable()
        self._questions = Questions()
        self._keeper: threading.Thread | None = None
        self._wakeup = -1  # an eventfd on which the keeper waits
        self._process: RelayProcess | None = None
        self._stopped = False
        self._counts = self._before = Counts()  # those of the process, and those of all processes before it
        self._lost = 0

    @property
    def pid(self) -> int | None:
        """The process ID; None if there is no process."""
        process = self._process
        return process.pid if process else None

    @property
    def connections(self) -> int:
        """How many TCP connections it has, as of some seconds ago."""
        return self._counts.open_connections

    def bind(self, address: str, ports: sockets.Span, *, udp: bool) -> socket.socket:
        """Makes a socket for `open`, see `sockets.bind`, or shares that of another relay on the same port.

        Raises:
            OSError: it cannot be made.
        """
        if ports[0] and ports[0] == ports[1]:
            return self.machine.shared(sockets.Bound).bind(self, self.machine, address, ports[0], udp=udp)
        return sockets.bind(self.machine, address, ports, udp=udp)

    def open(self, sock: socket.socket | SteeredPort, listener: Listener) -> int:
        """Serves a socket of `bind`, or a port of `SteeredPorts`; returns the listener's number.

        It belongs to the relay now. A relay that was stopped closes it.
        """
        with self._lock:
            number = self._table.add(sock, listener)
            if self._stopped:
                sock.close()
            else:
                self._send_now()
            return number

    def change(self, number: int, listener: Listener) -> None:
        """Changes how new connections of a listener are served."""
        with self._lock:
            if self._table.change(number, listener):
                self._send_now()

    def close(self, number: int) -> None:
        """Ends a listener. TCP connections stay until they end by themselves."""
        with self._lock:
            self._table.remove(number)
            self._send_now()

    def present(self, groups: Mapping[str, Targets | None]) -> None:
        """Connections of groups to targets that are not among these any more end, see `Presence`."""
        with self._lock:
            if self._presence.change(groups) and self._keeper is not None:
                self._send_now()

    def all_present(self, groups: Mapping[str, Targets], kept: Collection[str]) -> None:
        """The same of all groups but some, which stay as they are."""
        with self._lock:
            if self._presence.replace(groups, kept) and self._keeper is not None:
                self._send_now()

    def settle(self, seconds: float) -> bool:
        """Waits until the process has all listeners and changes; returns whether it has.

        This blocks, so it must not be called in the thread of an event loop.

        Args:
            seconds: how long to wait at most. The wait also ends when the relay is stopped.
        """
        with self._lock:
            if not self._table.listeners:
                return True
            mark = self._table.mark()
            self._send_now()
            self._changed.wait_for(lambda: self._stopped or self._table.settled >= mark, seconds)
            return self._table.settled >= mark

    def traffic(self, token: str, seconds: float) -> TrafficReport:
        """What was counted of each target since the report with a token; "" for everything.

        This blocks, so it must not be called in the thread of an event loop.

        Args:
            token: that of the last report.
            seconds: how long the process may take to answer; after that the report has what it said before.
        """
        with self._lock:
            self._ask(AskTallies, seconds)
            return self._questions.traffic.since(token)

    def flows(
        self, group: str, front: Target, clients: tuple[str, ...], most: int, seconds: float
    ) -> list[CarriedFlow]:
        """The clients of a front that have a target now, see `AskFlows`.

        This blocks, so it must not be called in the thread of an event loop.
        """
        with self._lock:
            return self._ask(lambda number: AskFlows(number, group, front, clients, most), seconds)

    def _ask(self, question: Callable[[int], Message], seconds: float) -> list[CarriedFlow]:
        """Asks the process, if there is one, and waits for its answer."""
        number = self._questions.ask(question)
        if self._keeper is not None:
            self._send_now()
            self._changed.wait_for(lambda: self._stopped or number not in self._questions, seconds)
        return self._questions.end(number)

    def stop(self) -> None:
        """Closes all listeners and starts to end the process and its connections.

        `join` waits for the end.
        """
        with self._lock:
            self._stopped = True
            self._changed.notify_all()
            self._table.clear()
            if self._process is not None:
                self._process.hang_up()
            self._wake()

    def join(self) -> None:
        """Waits until a relay that was stopped has ended. A process that hangs is killed after some seconds.

        This blocks, so it must not be called in the thread of an event loop.
        """
        if self._keeper is not None:
            self._keeper.join()

    def figures(self) -> Iterable[Figure]:
        """The metrics of the relay; the values are up to five seconds old."""
        return metrics.figures(self._all(), self._counts, len(self._table.listeners), self._lost, self.labels)

    def _all(self) -> Counts:
        """The sums over all processes."""
        ours, theirs = self._counts, self._before
        return Counts(
            connections=ours.connections + theirs.connections,
            flows=ours.flows + theirs.flows,
            refused=ours.refused + theirs.refused,
            failures=ours.failures + theirs.failures,
            ended=ours.ended + theirs.ended,
        )

    def _send_now(self) -> None:
        """Sends changes at once. If the process does not read, the keeper sends them when it does."""
        if self._stopped:
            return
        if self._keeper is None:
            sockets.raise_limit()
            self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._keeper = threading.Thread(target=self._keep, name=self.name, daemon=True)
            self._keeper.start()
        elif self._process is not None and not self._process.full and not self._send(self._process):
            self._wake()

    def _wake(self) -> None:
        if self._wakeup >= 0:
            os.eventfd_write(self._wakeup, 1)

    def _send(self, process: RelayProcess) -> bool:
        """Sends a batch of changes. Returns whether everything has been sent."""
        try:
            return (
                process.flush()
                and self._table.send(process.send)
                and self._presence.send(process.send)
                and self._questions.send(process.send)
                and not process.full
            )
        except OSError as e:
            log.warning(
                "%(relay)s: cannot send to the relay process, replacing it: %(err)s",
                {"relay": self.name, "err": e},
            )
            process.hang_up()
            return False

    def _keep(self) -> None:
        """The keeper's thread: keeps a process running until the relay is stopped."""
        stopped = False
        while not stopped:
            started = time.monotonic()
            try:
                self._begin(process := RelayProcess(self.machine, self._arguments))
            except OSError as e:
                log.error(  # noqa: TRY400 the message is complete
                    "%(relay)s: cannot start the relay process, trying again: %(err)s",
                    {"relay": self.name, "err": e},
                )
            else:
                try:
                    why = self._serve(process)
                except Exception:
                    log.exception(
                        "%(relay)s: cannot handle a message of the relay process, replacing it",
                        {"relay": self.name},
                    )
                    why = "its messages cannot be handled"
                self._end(process, why)
            with self._lock:
                rest = started + self._patience.life - time.monotonic()
                stopped = self._changed.wait_for(lambda: self._stopped, max(0.0, rest))
        with self._lock:
            os.close(self._wakeup)
            self._wakeup = -1

    def _begin(self, process: RelayProcess) -> None:
        """Makes a new process the current one. It has no listeners, so everything must be sent to it."""
        with self._lock:
            self._process = process
            self._table.restart()
            self._presence.restart()

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
            if isinstance(message, LogLine):
                log.log(
                    message.level, "%(relay)s: %(message)s", {"relay": self.name, "message": message.text}
                )
            elif isinstance(message, Counts):
                self._counts = message
            elif isinstance(message, Mark):
                with self._lock:
                    self._table.settled = message.number
                    self._changed.notify_all()
            elif isinstance(message, Tallied | ListedFlows):
                with self._lock:
                    self._questions.take(message)
                    self._changed.notify_all()

    def _end(self, process: RelayProcess, why: str) -> None:
        """Ends a process. If the relay was stopped, the process has `Patience.stop` seconds.

        Otherwise it is killed at once.
        """
        with self._lock:
            self._process = None
            self._questions.restart()
            stopped = self._stopped
        code = process.end(self._patience.stop if stopped else 0.0)
        if code is None:
            log.error(
                "%(relay)s: the relay process %(pid)d was killed, but does not end",
                {"relay": self.name, "pid": process.pid},
            )
        if not stopped:
            self._lost += 1
            self._before, self._counts = self._all(), Counts()
            log.error(
                "%(relay)s: the relay process is replaced, %(reason)s; its connections are lost (exit status %(exitStatus)s)",
                {"relay": self.name, "reason": why, "exitStatus": code},
            )
