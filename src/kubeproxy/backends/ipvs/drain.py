"""Real servers that are to be deleted when their connections have ended.

Deleting a real server ends its connections. So it gets weight 0, with which it gets no new ones, and is
deleted when it has none left, which the driver checks at intervals. For UDP and SCTP no end of a connection
is known, so there it is deleted at once.
"""

from collections.abc import Iterator

from kubeproxy.backends.ipvs.kernel import IPVSKernel, ServerChange
from kubeproxy.netlink import ipvs
from kubeproxy.netlink.ipvs import Load, Real, Virtual


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

    def retire(self, virtual: Virtual, real: Real, load: Load) -> ServerChange | None:
        """What to do with a real server that is to be deleted; None: it drains already."""
        if virtual.protocol != ipvs.TCP or not load.active + load.inactive:
            self.forget(virtual, real)
            return ServerChange("delete", virtual, real=real)
        self._reals.setdefault(virtual, set()).add(real)
        return ServerChange("edit", virtual, real=real, weight=0) if load.weight else None

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
