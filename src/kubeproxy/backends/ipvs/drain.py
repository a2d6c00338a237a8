"""Real servers that are to be deleted when their connections have ended.

Deleting a real server ends its connections. So it gets weight 0, with which it gets no new ones, and is
deleted when it has none left, which the driver checks at intervals. For UDP and SCTP no end of a connection
is known, so there it is deleted at once.

If the connections of removed endpoints are to end (`model.endings`), such a real server is deleted a second
after the removal: an endpoint that is moved to another EndpointSlice may be in none for a moment. The kernel
then drops the next packet of a client, or resets the client if connection tracking has no entry any more.
"""

import time
from collections.abc import Callable, Iterator
from typing import Final

from kubeproxy.backends.ipvs.compile import Target
from kubeproxy.backends.ipvs.kernel import IPVSKernel, ServerChange
from kubeproxy.netlink import ipvs
from kubeproxy.netlink.ipvs import Load, Real, Virtual

END_SECONDS: Final = 1.0
"""So long after its endpoint was removed a real server is deleted whose connections are to end."""


class RemovedEndpoints:
    """Real servers whose endpoints were removed, and whose connections are to end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: dict[tuple[Virtual, Real], float] = {}

    def __bool__(self) -> bool:
        return bool(self._due)

    @property
    def wait(self) -> float:
        """How many seconds until the first of them is due; there is one."""
        return max(0.0, next(iter(self._due.values())) - self._clock())

    def follow(self, virtual: Virtual, before: Target | None, after: Target | None) -> None:
        """A virtual server was changed in the kernel."""
        if before is None or after is None or before.staying is None or after.staying is None:
            return
        stay = frozenset(after.staying)
        for real in before.staying:
            if real not in stay:
                self._due.pop((virtual, real), None)  # keeps the dict in order of time
                self._due[virtual, real] = self._clock() + END_SECONDS

    def due(self, target: Callable[[Virtual], Target | None], draining: "Draining") -> Iterator[ServerChange]:
        """Deletes those that are due, unless their endpoint has come back or their connections have ended.

        Args:
            target: what a virtual server is to be.
            draining: those with connections.
        """
        now = self._clock()
        for virtual, real in [at for at, due in self._due.items() if due <= now]:
            del self._due[virtual, real]
            wanted = target(virtual)
            over = wanted is not None and wanted.staying is not None and real not in wanted.staying
            if over and draining.forget(virtual, real):
                yield ServerChange("delete", virtual, real=real)


class Draining:
    """The real servers that have weight 0."""

    def __init__(self) -> None:
        self._reals: dict[Virtual, set[Real]] = {}

    def __bool__(self) -> bool:
        return bool(self._reals)

    def clear(self) -> None:
        """Forgets all real servers."""
        self._reals.clear()

    def of(self, virtual: Virtual) -> frozenset[Real]:
        """Those of a virtual server."""
        return frozenset(self._reals.get(virtual, ()))

    def retire(
        self, virtual: Virtual, real: Real, load: Load, *, ordered: bool = False, afresh: bool = False
    ) -> Iterator[ServerChange]:
        """What to do with a real server that is to be deleted; nothing if it drains already.

        Args:
            virtual: its virtual server.
            real: the real server.
            load: its weight and connections.
            ordered: it must be taken out of a table (`order`).
            afresh: it was not taken out of the table yet.
        """
        if virtual.protocol != ipvs.TCP or not load.active + load.inactive:
            self.forget(virtual, real)
            yield ServerChange("delete", virtual, real=real)
            return
        self._reals.setdefault(virtual, set()).add(real)
        if ordered and (load.weight or afresh):
            yield ServerChange("delete", virtual, real=real)
            yield ServerChange("add", virtual, real=real, weight=0)
        elif load.weight:
            yield ServerChange("edit", virtual, real=real, weight=0)

    def forget(self, virtual: Virtual, real: Real | None = None) -> bool:
        """One, or all of a virtual server, are wanted again or deleted; returns whether it was draining."""
        reals = self._reals.get(virtual, set())
        if real is None:
            self._reals.pop(virtual, None)
            return bool(reals)
        there = real in reals
        reals.discard(real)
        if not reals:
            self._reals.pop(virtual, None)
        return there

    def done(self, kernel: IPVSKernel) -> Iterator[ServerChange]:
        """Deletes those whose connections have ended.

        Raises:
            OSError: the number of connections cannot be read.
        """
        servers = kernel.servers()
        for virtual, reals in list(self._reals.items()):
            for real in list(reals):
                load = servers.get(virtual, {}).get(real)
                if load is None:
                    self.forget(virtual, real)
                elif not load.active + load.inactive:
                    self.forget(virtual, real)
                    yield ServerChange("delete", virtual, real=real)
