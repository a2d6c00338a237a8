"""The listeners of a driver, by name."""

import asyncio
import logging
import time
from collections.abc import Collection, Hashable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import Final, Generic, NamedTuple, TypeVar

from kubeproxy.relay import sockets
from kubeproxy.relay.control import Relay
from kubeproxy.relay.steering import SteeredPorts
from kubeproxy.relay.values import Listener

log = logging.getLogger(__name__)

_SETTLE_SECONDS = 60.0
_REPORT_SECONDS: Final = 6.0
"""A relay reports its connections every five seconds."""

_LOOK_SECONDS: Final = 1.0

Name = TypeVar("Name", bound=Hashable)


class OpenListener(NamedTuple):
    """A listener that is open.

    Attributes:
        number: its number in the relay.
        address: the address it listens on.
        port: the port it listens on.
        listener: how it serves connections.
    """

    number: int
    address: str
    port: int
    listener: Listener


class Doors(Generic[Name]):
    """Opens, changes and closes the listeners of a driver, which are identified by names of its choice."""

    def __init__(self, relay: Relay, steered: SteeredPorts | None = None) -> None:
        """Makes it, with no listeners.

        Args:
            relay: the relay.
            steered: its ports that need no sockets of their own; None: each has one.
        """
        self._relay = relay
        self._steered = steered
        self._open: dict[Name, OpenListener] = {}
        self._served = False

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[OpenListener]:
        return iter(self._open.values())

    @property
    def names(self) -> AbstractSet[Name]:
        """The names of those that are open."""
        return self._open.keys()

    def items(self) -> Iterable[tuple[Name, OpenListener]]:
        """Those that are open, with their names."""
        return self._open.items()

    def port(self, name: Name) -> int:
        """The port of a listener; 0 if it is not open."""
        found = self._open.get(name)
        return 0 if found is None else found.port

    def of(self, names: Collection[Name]) -> list[OpenListener]:
        """The open listeners among some names."""
        return [self._open[name] for name in names if name in self._open]

    def copy(self, relay: Relay) -> "Doors[Name]":
        """A copy for another relay, in which the listeners have the same numbers."""
        other: Doors[Name] = Doors(relay)
        other._open = dict(self._open)
        return other

    def put(self, name: Name, listener: Listener, address: str, ports: sockets.Span) -> bool:
        """Opens a listener, or changes it if it is open. A change does not affect its address and port.

        Returns:
            True if it was opened, False if it was open already and has been changed.

        Raises:
            OSError: it cannot be opened.
        """
        if name in self._open:
            self.change(name, listener)
            return False
        sock = (self._steered or self._relay).bind(address, ports, udp=listener.udp)
        port = sock.getsockname()[1]
        self._open[name] = OpenListener(self._relay.open(sock, listener), address, port, listener)
        return True

    def open_all(self, wanted: Iterable[tuple[Name, Listener, str, sockets.Span]]) -> list[Name]:
        """Opens the listeners that are not open: all of them, or none if one cannot be opened.

        Args:
            wanted: names, listeners, addresses and spans of ports, as for `put`.

        Returns:
            The names of those that were opened. Listeners that were open before are not changed.

        Raises:
            OSError: one of them cannot be opened.
        """
        opened: list[Name] = []
        try:
            for name, listener, address, ports in wanted:
                if name not in self._open:
                    self.put(name, listener, address, ports)
                    opened.append(name)
        except OSError:
            self.close(opened)
            raise
        return opened

    def change(self, name: Name, listener: Listener) -> None:
        """Changes how new connections of a listener are served, if it is open."""
        door = self._open.get(name)
        if door is not None and door.listener != listener:
            self._relay.change(door.number, listener)
            self._open[name] = door._replace(listener=listener)

    def close(self, names: Collection[Name]) -> dict[Name, OpenListener]:
        """Closes listeners and returns them; those that are not open are ignored."""
        closed = {}
        for name in names:
            if name in self._open:
                closed[name] = self._open.pop(name)
                self._relay.close(closed[name].number)
        return closed

    async def served(self) -> bool:
        """Waits, at most a minute, until the relay accepts connections at all listeners.

        Returns whether it does.

        After the first success it does not wait any more, so that a process that hangs delays no sync: the
        relay gets listeners that are opened later without being waited for.
        """
        if self._open and not self._served:
            self._served = await asyncio.to_thread(self._relay.settle, _SETTLE_SECONDS)
        return self._served or not self._open

    async def drain(self, seconds: float) -> None:
        """Closes all listeners, and waits some seconds at most for the end of their TCP connections."""
        self.close(list(self._open))
        deadline = time.monotonic() + seconds
        await asyncio.sleep(_REPORT_SECONDS)
        if count := self._relay.connections:
            log.info(
                "%(relay)s was replaced: %(count)d connections stay until they end, for %(seconds)g s at most",
                {"relay": self._relay.name, "count": count, "seconds": seconds},
            )
        while self._relay.connections and time.monotonic() < deadline:  # noqa: ASYNC110 counted in a thread
            await asyncio.sleep(_LOOK_SECONDS)

    async def stop(self) -> None:
        """Ends the relay with all listeners and connections, and waits for its end."""
        self._open.clear()
        self._relay.stop()
        if self._steered is not None:
            self._steered.close()
        await asyncio.to_thread(self._relay.join)
