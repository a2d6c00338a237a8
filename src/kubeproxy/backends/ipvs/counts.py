"""Counts of new connections, from the statistics of the real servers.

The kernel counts each connection that its scheduler assigns to a real server, and adds up every two seconds,
with its estimates of rates. A real server that is deleted and added again begins at 0.
"""

from collections.abc import Collection

from msgspec.structs import replace

from kubeproxy.api.addresses import unpack
from kubeproxy.backends.base import EndpointCounts
from kubeproxy.backends.ipvs.compile import ServerContext, compile_service
from kubeproxy.backends.shared.totals import Totals
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, PortId, ServicePlan
from kubeproxy.netlink.ipvs import IPVSSocket, Real, Virtual


class ServerCounter:
    """See `ConnectionCounter`."""

    by_service = True

    def __init__(self, servers: IPVSSocket, node: NodeConfig) -> None:
        self._servers = servers
        self._context = ServerContext(node)
        self._totals = Totals()
        self._virtuals: dict[Key, dict[Virtual, PortId]] = {}

    def set(self, key: Key, plan: ServicePlan | None) -> None:
        """See `ConnectionCounter`."""
        self._virtuals.pop(key, None)
        if plan is not None:
            self._virtuals[key] = {
                virtual: (port.name, port.protocol)
                for port in plan.ports
                for virtual in compile_service(replace(plan, ports=(port,)), self._context).virtuals
            }

    def read(self, only: Collection[Key] = ()) -> EndpointCounts | None:
        """See `ConnectionCounter`."""
        found: set[tuple[Virtual, Real]] = set()
        for key in only or self._virtuals:
            for virtual, port in self._virtuals.get(key, {}).items():
                for real, count in self._servers.connections(virtual).items():
                    found.add((virtual, real))
                    self._totals.take((virtual, real), count, port, (unpack(real.address), real.port))
        if not only:
            self._totals.prune(len(found), lambda: found)
        return self._totals.counts

    def close(self) -> None:
        """See `ConnectionCounter`."""
        self._servers.close()
