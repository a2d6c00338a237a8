"""Health-check node ports: how a load balancer finds the nodes that have endpoints of a Service.

A Service of type LoadBalancer with external policy Local has a port, `spec.healthCheckNodePort`, on every
node. It is healthy on nodes with ready endpoints, and the load balancer sends traffic to those nodes only. A
terminating endpoint is not counted, so the traffic ends before the endpoint does.

Ports follow the ledger, which has the plans that are in the kernel, so the port of a Service that the kernel
refuses stays as it was. There may be thousands, so they are opened in small steps, between which other tasks
run. A port that cannot be opened is reported once and retried.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable

from kubeproxy.api.addresses import IPV4
from kubeproxy.figures import Figure
from kubeproxy.log import ObjectRef
from kubeproxy.machine.base import Machine
from kubeproxy.model.plan import Key
from kubeproxy.reconcile.ledger import Recorded
from kubeproxy.reconcile.reconciler import Reconciler
from kubeproxy.serve.http import Door, OpenPort
from kubeproxy.serve.listen import RETRY_SECONDS, bind
from kubeproxy.serve.message import Handler, HTTPRequest, HTTPResponse

log = logging.getLogger(__name__)

At = tuple[str, int]
"""An address and a port."""


class NodeHealth:
    """The ports of one family."""

    def __init__(
        self,
        machine: Machine,
        loop: Reconciler,
        door: Door,
        healthy: Callable[[], bool],
        failed: Callable[[Key, str], None],
        *,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """Follows the syncs of a control loop; `run` opens the ports.

        Args:
            machine: the host.
            loop: the loop.
            door: accepts the connections.
            healthy: whether the proxy works.
            failed: called once with a Service whose port cannot be opened, and why.
            retry_seconds: seconds between two attempts.
        """
        self._machine = machine
        self._door = door
        self._healthy = healthy
        self._failed = failed
        self._retry_seconds = retry_seconds
        self._keys: dict[Key, None] = {}  # of the Services in the kernel that have a port
        self._open: dict[At, tuple[Key, OpenPort]] = {}
        self._reported: dict[tuple[At, Key], str] = {}
        self._changed = asyncio.Event()
        self.follow(loop)

    def follow(self, loop: Reconciler) -> None:
        """Another loop brings the Services to the kernel now; ports that are still wanted stay open."""
        self._loop = loop
        self._keys = {key: None for key, plan in loop.ledger.plans.items() if plan.health_check_port}

        def recorded(done: Recorded) -> None:
            if loop is self._loop:
                self._recorded(done)

        loop.ledger.subscribe(recorded)
        self._changed.set()

    async def run(self) -> None:
        """Opens and closes ports as Services are added and deleted; all are closed when it is cancelled."""
        try:
            while True:
                self._changed.clear()
                await self._follow()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._retry_seconds if self._reported else None):
                        await self._changed.wait()
        finally:
            for at in list(self._open):
                self._close(at)

    @property
    def pending(self) -> bool:
        """Whether a change of ports has not been looked at yet."""
        return self._changed.is_set()

    @property
    def open(self) -> dict[At, Key]:
        """The open ports, each with the Service that it answers for."""
        return {at: key for at, (key, _) in self._open.items()}

    def figures(self) -> Iterable[Figure]:
        """How many ports are open, and how many are not although they should be."""
        family = {"ip_family": self._loop.family}
        name, text = "kubeproxy_health_check_node_ports", "Health-check node ports, by whether they are open."
        yield Figure(name, "gauge", text, len(self._open), {**family, "state": "open"})
        yield Figure(name, "gauge", text, len(self._reported), {**family, "state": "failed"})

    def _recorded(self, done: Recorded) -> None:
        """Takes the plans that are in the kernel after a sync."""
        moved = done.full  # the node's addresses may have changed
        for change in done.changes:
            before, after = (plan.health_check_port if plan else 0 for plan in (change.before, change.after))
            moved |= before != after
            if after:
                self._keys[change.key] = None
            else:
                self._keys.pop(change.key, None)
        if moved:
            self._changed.set()

    async def _follow(self) -> None:
        """Closes the ports that are not wanted, then opens the others."""
        node = self._loop.node
        anywhere = "0.0.0.0" if node.family == IPV4 else "::"
        addresses = node.node_port_addresses if node.node_port_ranges else (anywhere,)
        plans = self._loop.ledger.plans
        wanted = {((a, plans[key].health_check_port), key): None for key in self._keys for a in addresses}
        for at, (key, _) in list(self._open.items()):
            if (at, key) not in wanted:
                self._close(at)
        self._reported = {about: why for about, why in self._reported.items() if about in wanted}
        for at, key in wanted:
            if at not in self._open:
                await self._try(at, key)

    async def _try(self, at: At, key: Key) -> None:
        try:
            listener = await self._door.open(self._handler(key), bind(self._machine, *at, single=True))
        except OSError as e:
            self._report(at, key, e.strerror or str(e))
            return
        self._open[at] = key, listener
        if self._reported.pop((at, key), None):
            log.info(
                "Service %(service)s: health check node port %(port)d is open on %(address)s now",
                {"service": ObjectRef(*key), "port": at[1], "address": at[0]},
            )

    def _close(self, at: At) -> None:
        _, listener = self._open.pop(at)
        listener.close()

    def _report(self, at: At, key: Key, why: str) -> None:
        """Reports once that a port cannot be opened."""
        if self._reported.get((at, key)) == why:
            return
        self._reported[at, key] = why
        message = f"health check node port {at[1]} cannot be opened on {at[0]}: {why}"
        log.error(
            "Service %(service)s: %(reason)s; trying again every %(seconds)g s",
            {"service": ObjectRef(*key), "reason": message, "seconds": self._retry_seconds},
        )
        self._failed(key, message)

    def _handler(self, key: Key) -> Handler:
        """The handler of a Service's port, the same for every path."""

        def handle(_: HTTPRequest) -> HTTPResponse:
            namespace, name = key
            plan = self._loop.ledger.plans.get(key)
            count = plan.local_ready if plan and plan.health_check_port else 0
            healthy = self._healthy()
            body = (
                f'{{\n\t"service": {{\n\t\t"namespace": "{namespace}",\n\t\t"name": "{name}"\n\t}},\n'
                f'\t"localEndpoints": {count},\n\t"serviceProxyHealthy": {str(healthy).lower()}\n}}'
            )
            return HTTPResponse(
                body.encode(),
                200 if count and healthy else 503,
                "application/json",
                (("X-Load-Balancing-Endpoint-Weight", str(count)),),
            )

        return handle
