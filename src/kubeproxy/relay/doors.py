"""The listeners of a driver, by name."""

import asyncio
from collections.abc import Collection, Hashable
from collections.abc import Set as AbstractSet
from typing import Generic, TypeVar

from kubeproxy.relay import sockets
from kubeproxy.relay.control import Relay
from kubeproxy.relay.values import Listener

_SETTLE_SECONDS = 60.0

Name = TypeVar("Name", bound=Hashable)


class Doors(Generic[Name]):
    """Opens, changes and closes listeners, so that those are there that are wanted."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._open: dict[Name, tuple[int, int]] = {}
        self._served = False

    def __len__(self) -> int:
        return len(self._open)

    @property
    def names(self) -> AbstractSet[Name]:
        """Those that are open."""
        return self._open.keys()

    def port(self, name: Name) -> int:
        """Where one listens; 0 if it is not open."""
        return self._open.get(name, (0, 0))[1]

    def put(self, name: Name, listener: Listener, address: str, ports: sockets.Span) -> None:
        """One is to be open. Where it listens is decided when it is opened.

        Raises:
            OSError: it cannot be opened.
        """
        if name in self._open:
            self._relay.change(self._open[name][0], listener)
            return
        sock = sockets.bind(self._relay.machine, address, ports, udp=listener.udp)
        port = sock.getsockname()[1]
        self._open[name] = self._relay.open(sock, listener), port

    def close(self, names: Collection[Name]) -> None:
        """Those are not to be open; it is no error if they are not."""
        for name in names:
            if name in self._open:
                self._relay.close(self._open.pop(name)[0])

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
