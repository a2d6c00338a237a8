"""Counts of new connections, from the statistics of the real servers.

One list has the statistics of all virtual servers. Real servers are listed by virtual server, so they are
listed only of virtual servers that were given connections in the last seconds.

The kernel counts each connection that its scheduler assigns to a real server, and adds up every two seconds,
with its estimates of rates. A real server that is deleted and added again begins at 0.
"""

import time
from collections.abc import Callable, Collection, Iterator
from typing import Final

from msgspec.structs import replace

from kubeproxy.api.addresses import unpack
from kubeproxy.backends.base import EndpointCounts
from kubeproxy.backends.ipvs.compile import ServerContext, compile_service
from kubeproxy.backends.shared.totals import Totals
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, PortId, ServicePlan
from kubeproxy.netlink.ipvs import IPVSSocket, Real, Virtual

SETTLED_SECONDS: Final = 10.0
"""So long after the count of a virtual server changed its real servers are read: theirs may follow."""


class ServerCounter:
    """See `ConnectionCounter`."""

    by_service = True
    partial = False

    def __init__(
        self, servers: IPVSSocket, node: NodeConfig, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._servers = servers
        self._clock = clock
        self._context = ServerContext(node)
        self._totals = Totals()
        self._virtuals: dict[Key, dict[Virtual, PortId]] = {}
        self._last: dict[Virtual, int] = {}
        self._reals: dict[Virtual, list[Real]] = {}
        self._changed: dict[Virtual, float] = {}

    def set(self, key: Key, plan: ServicePlan | None) -> None:
        """See `ConnectionCounter`."""
        for virtual in self._virtuals.pop(key, ()):
            self._reals.pop(virtual, None)
        if plan is not None:
            self._virtuals[key] = {
                virtual: (port.name, port.protocol)
                for port in plan.ports
                for virtual in compile_service(replace(plan, ports=(port,)), self._context).virtuals
            }

    def read(self, only: Collection[Key] = ()) -> EndpointCounts | None:
        """See `ConnectionCounter`."""
        if only:
            for key in only:
                for virtual, port in self._virtuals.get(key, {}).items():
                    self._read(virtual, port)
            return self._totals.counts
        before, self._last = self._last, self._servers.all_connections()
        now = self._clock()
        self._changed = {virtual: at for virtual, at in self._changed.items() if now - at < SETTLED_SECONDS}
        for virtuals in self._virtuals.values():
            for virtual, port in virtuals.items():
                if self._last.get(virtual) != before.get(virtual):
                    self._changed[virtual] = now
                if virtual in self._changed or virtual not in self._reals:
                    self._read(virtual, port)
        self._totals.prune(sum(map(len, self._reals.values())), self._known)
        return self._totals.counts

    def _read(self, virtual: Virtual, port: PortId) -> None:
        found = self._servers.connections(virtual)
        self._reals[virtual] = list(found)
        for real, count in found.items():
            self._totals.take((virtual, real), count, port, (unpack(real.address), real.port))

    def _known(self) -> Iterator[tuple[Virtual, Real]]:
        return ((virtual, real) for virtual, reals in self._reals.items() for real in reals)

    def close(self) -> None:
        """See `ConnectionCounter`."""
        self._servers.close()
