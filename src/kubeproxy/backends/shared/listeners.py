"""What a relay listens on as a value, and what a `load` would do to it.

The difference to some plans is computed by the daemon's own code over a relay in memory, which opens no
sockets and records the calls. A port that is chosen when the socket is opened is not known before: such ports
are numbered from 1.
"""

import errno
import itertools
import os
from collections.abc import Iterable
from typing import Any, Final, Literal

from msgspec import Struct

from kubeproxy.api.addresses import join
from kubeproxy.backends import relayed
from kubeproxy.backends.base import HeldState, LoadSteps
from kubeproxy.machine.base import Machine
from kubeproxy.relay.control import Relay
from kubeproxy.relay.doors import OpenListener
from kubeproxy.relay.sockets import Span
from kubeproxy.relay.values import Listener

_ALL: Final = frozenset({"0.0.0.0", "::"})


class HeldListener(Struct, frozen=True, gc=False):
    """A listening socket.

    Attributes:
        address: the address it listens on.
        port: the port it listens on.
        listener: what it does with connections.
    """

    address: str
    port: int
    listener: Listener

    def __str__(self) -> str:
        """The columns Netid, State and Local Address:Port of `ss`."""
        protocol, state = ("udp", "UNCONN") if self.listener.udp else ("tcp", "LISTEN")
        return f"{protocol} {state} {join(self.address, self.port)}"

    def lines(self) -> list[str]:
        """It as `ss` prints it, then where each kind of client is sent."""
        choices = map(relayed.described, self.listener.choices)
        return [str(self), *(f"{self} -> {choice}" for choice in choices)]


class HeldListeners(Struct, frozen=True, gc=False):
    """What a relay listens on, beside what the rules of the mode are.

    Attributes:
        rules: what the kernel holds of the rules; None where there are none.
        listeners: the sockets, sorted.
    """

    rules: HeldState | None
    listeners: tuple[HeldListener, ...]

    @property
    def empty(self) -> bool:
        """See `HeldState`."""
        return not self.listeners and (self.rules is None or self.rules.empty)

    def lines(self) -> list[str]:
        """See `HeldState`: the rules, then the sockets."""
        rules = self.rules.lines() if self.rules is not None else []
        return [*rules, *(line for each in self.listeners for line in each.lines())]


class ListenerStep(Struct, frozen=True, gc=False):
    """A socket is opened, closed, or does something else with new connections."""

    verb: Literal["open", "change", "close"]
    socket: HeldListener


class ListenerSteps(Struct, frozen=True, gc=False):
    """What is to be done to the rules, and to the sockets.

    Attributes:
        rules: steps of the rules; None where there are none.
        listeners: steps of the sockets. Those that open one come before the rules that lead to it.
    """

    rules: LoadSteps | None
    listeners: tuple[ListenerStep, ...]

    def __bool__(self) -> bool:
        return bool(self.rules) or bool(self.listeners)

    def lines(self) -> list[str]:
        """See `LoadSteps`."""
        found = [line for step in self.listeners if step.verb == "open" for line in _lines(step)]
        found += self.rules.lines() if self.rules is not None else []
        return found + [line for step in self.listeners if step.verb != "open" for line in _lines(step)]


class RecordingRelay(Relay):
    """A relay in memory that has some listeners and records what is changed. It starts no process.

    Attributes:
        steps: what was changed.
    """

    def __init__(self, machine: Machine, doors: Iterable[OpenListener]) -> None:
        """Makes it.

        Args:
            machine: the host, to which nothing is done.
            doors: the listeners there are.
        """
        super().__init__(machine, "rehearsal")
        self.steps: list[ListenerStep] = []
        self._there = {door.number: HeldListener(*door[1:]) for door in doors}
        self._last = itertools.count(max(self._there, default=0) + 1)
        self._ports = itertools.count(1)

    def bind(self, address: str, ports: Span, *, udp: bool) -> Any:
        """See `Relay`: something in place of a socket.

        Raises:
            OSError: one of its listeners has the port (EADDRINUSE).
        """
        port = ports[0] if ports[0] == ports[1] and ports[0] else next(self._ports)
        for each in self._there.values():
            both = {each.address, address}
            if (each.port, each.listener.udp) == (port, udp) and (len(both) == 1 or both & _ALL):
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        return _Bound(address, port)

    def open(self, sock: Any, listener: Listener) -> int:
        """See `Relay`."""
        number = next(self._last)
        address, port = sock.getsockname()
        self._there[number] = HeldListener(address, port, listener)
        self._note("open", number)
        return number

    def change(self, number: int, listener: Listener) -> None:
        """See `Relay`."""
        there = self._there[number]
        self._there[number] = HeldListener(there.address, there.port, listener)
        self._note("change", number)

    def close(self, number: int) -> None:
        """See `Relay`."""
        self._note("close", number)
        del self._there[number]

    def _note(self, verb: Literal["open", "change", "close"], number: int) -> None:
        self.steps.append(ListenerStep(verb, self._there[number]))


class _Bound:
    """In place of a socket."""

    def __init__(self, address: str, port: int) -> None:
        self._at = address, port

    def getsockname(self) -> tuple[str, int]:
        return self._at


def held(rules: HeldState | None, doors: Iterable[OpenListener]) -> HeldListeners:
    """What is held by the rules and by some listeners."""
    found = [HeldListener(*door[1:]) for door in doors]
    return HeldListeners(rules, tuple(sorted(found, key=lambda each: (each.address, each.port, str(each)))))


def as_listeners(held: HeldState) -> HeldListeners:
    """What was read of a driver that has a relay; anything else is a mistake of the caller."""
    assert isinstance(held, HeldListeners)
    return held


def opened(relay: RecordingRelay) -> list[str]:
    """The lines for the sockets that were opened."""
    return [line for step in relay.steps if step.verb == "open" for line in step.socket.lines()]


def _lines(step: ListenerStep) -> list[str]:
    if step.verb == "close":
        return [f"close {step.socket}"]
    return [f"{step.verb} {line}" for line in step.socket.lines()]
