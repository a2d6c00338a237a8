"""A reconciler whose syncs happen when the test says so, and what it asks of ports."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from kubeproxy.api.addresses import IPV4, IPV6, Family
from kubeproxy.backends.base import Change, Failures
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint
from kubeproxy.model.state import State
from kubeproxy.reconcile.reconciler import Reconciler, Synced, Waiting
from kubeproxy.serve.message import Handler, HTTPRequest, HTTPResponse
from tests.fakes.clock import FakeClock
from tests.unit.test_sync import Kernel

HERE, THERE = Endpoint("10.1.0.1", 80, True), Endpoint("10.2.0.1", 80, False)


class Stage:
    """One family's loop."""

    def __init__(self, family: Family = IPV4, clock: FakeClock | None = None, **node: object) -> None:
        self.clock = clock or FakeClock()
        config = NodeConfig(family=family, name="here", **node)  # type: ignore[arg-type]
        self.driver = Kernel(self.clock)
        self.loop = Reconciler(State(), self.driver, config, clock=self.clock)

    def synced(
        self,
        *plans: ServicePlan,
        gone: tuple[Key, ...] = (),
        failures: Failures | None = None,
        full: bool = False,
        seconds: float = 0.0,
        kernel: float = 0.0,
        triggered: tuple[float, ...] = (),
    ) -> None:
        """A sync succeeded just now."""
        ledger = self.loop.ledger
        for key in ledger.known() if full else gone:
            ledger.want(key, None)
        for plan in plans:
            ledger.want(plan.key, plan)
        if full:
            ledger.loaded(failures or {})
        else:
            ledger.applied(ledger.due())
        self.loop._queued = None
        waiting = [(Change(plan.key, plan, plan), Waiting(0.0, list(triggered))) for plan in plans[:1]]
        self.loop._succeeded(
            Synced(full, self.clock.time - seconds, seconds, kernel, changes=waiting), len(ledger.plans)
        )


def plan(name: str = "web", *, port: int = 0, ready: int = 0, **fields: object) -> ServicePlan:
    """A Service with one port and a health-check node port."""
    ports = (PortPlan(f"default/{name}", "TCP", 80, "10.96.0.1", **fields),)  # type: ignore[arg-type]
    return ServicePlan("default", name, ports, port, ready)


async def ask(handler: Handler, path: str = "/", method: str = "GET", **fields: object) -> HTTPResponse:
    """What a handler answers."""
    answer = handler(HTTPRequest(method, path, **fields))  # type: ignore[arg-type]
    return await answer if isinstance(answer, Awaitable) else answer


async def until(condition: Callable[[], object]) -> None:
    """Waits until something is so."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(work: Awaitable[None]) -> AsyncIterator[None]:
    """Something runs meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


__all__ = ["HERE", "IPV4", "IPV6", "THERE", "Stage", "ask", "plan", "running", "until"]
