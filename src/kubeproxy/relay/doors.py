"""The listeners of a driver, by name."""

import asyncio
from collections.abc import Collection, Hashable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import Generic, NamedTuple, TypeVar

from kubeproxy.relay import sockets
from kubeproxy.relay.control import Relay
from kubeproxy.relay.values import Listener

_SETTLE_SECONDS = 60.0

Name = TypeVar("Name", bound=Hashable)


class OpenListener(NamedTuple):
    """A listener that is open.

    Attributes:
        number: its number in the relay.
        address: the address it listens on.
        port: the port it listens on.
        listener: what it does with connections.
    """

    number: int
    address: str
    port: int
    listener: Listener


class Doors(Generic[Name]):
    """Opens, changes and closes listeners, so that those are there that are wanted."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._open: dict[Name, OpenListener] = {}
        self._served = False

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[OpenListener]:
        return iter(self._open.values())

    @property
    def names(self) -> AbstractSet[Name]:
        """Those that are open."""
        return self._open.keys()

    def port(self, name: Name) -> int:
        """Where one listens; 0 if it is not open."""
        found = self._open.get(name)
        return 0 if found is None else found.port

    def of(self, names: Collection[Name]) -> list[OpenListener]:
        """Those of some names that are open."""
        return [self._open[name] for name in names if name in self._open]

    def copy(self, relay: Relay) -> "Doors[Name]":
        """The same listeners of another relay, which numbers them in the same way."""
        other: Doors[Name] = Doors(relay)
        other._open = dict(self._open)
        return other

    def put(self, name: Name, listener: Listener, address: str, ports: sockets.Span) -> bool:
        """One is to be open. Where it listens is decided when it is opened.

        Returns:
            Whether it was opened; otherwise it was open, and has been changed.

        Raises:
            OSError: it cannot be opened.
        """
        if name in self._open:
            self.change(name, listener)
            return False
        sock = self._relay.bind(address, ports, udp=listener.udp)
        port = sock.getsockname()[1]
        self._open[name] = OpenListener(self._relay.open(sock, listener), address, port, listener)
        return True

    def open_all(self, wanted: Iterable[tuple[Name, Listener, str, sockets.Span]]) -> list[Name]:
        """Opens those that are not open: all of them, or none.

        Args:
            wanted: names, listeners, addresses and spans of ports, as `put` is given them.

        Returns:
            The names of those that were opened; the others are open as they were.

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
        """What one does with new connections, if it is open."""
        door = self._open.get(name)
        if door is not None and door.listener != listener:
            self._relay.change(door.number, listener)
            self._open[name] = door._replace(listener=listener)

    def close(self, names: Collection[Name]) -> dict[Name, OpenListener]:
        """Those are not to be open; it is no error if they are not. Returns those that were."""
        closed = {}
        for name in names:
            if name in self._open:
                closed[name] = self._open.pop(name)
                self._relay.close(closed[name].number)
        return closed

    async def served(self) -> bool:
        """Waits until the relay accepts connections at all that are open; returns whether it does, after a minute at most.

        Once it did, it is not waited for again: the relay has what is opened later, and no sync is delayed if its process hangs.
        """
        if self._open and not self._served:
            self._served = await asyncio.to_thread(self._relay.settle, _SETTLE_SECONDS)
        return self._served or not self._open

    async def stop(self) -> None:
        """Ends the relay with all there is, and waits for its end."""
        self._open.clear()
        self._relay.stop()
        await asyncio.to_thread(self._relay.join)
