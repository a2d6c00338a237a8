"""The control loop over a driver of kernelspace mode: when it retries, and how it waits for a network."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from kubeproxy.api.addresses import IPV4
from kubeproxy.backends.kernelspace import patience, prepare
from kubeproxy.model.state import State
from kubeproxy.reconcile.reconciler import Reconciler
from kubeproxy.windows import errors
from kubeproxy.windows.calls import Entity
from tests.fakes.cluster import endpoints, service
from tests.fakes.hns import L1, L2, WindowsNode

WEB, MORE = ("default", "web"), ("default", "more")


class Loop:
    """A loop, its node and its clock.

    Attributes:
        at: the node.
        loop: the loop.
    """

    def __init__(self, at: WindowsNode) -> None:
        self.at = at
        self._state = State()
        node = at.config(IPV4)
        self._driver = prepare.open_driver(at.machine, node)
        self.loop = Reconciler(self._state, self._driver, node, clock=at.clock, piecewise=True)

    def add(self, name: str, ip: str, *addresses: str) -> None:
        """A Service comes with endpoints on this node."""
        local = addresses or (L1,)
        self.loop.touch(self._state.set(service(name, ip)))
        self.loop.touch(self._state.set(endpoints(name, *local, local=local, node="node1")))

    @property
    def next_retry(self) -> float:
        """When the driver tries something again."""
        return self._driver.next_retry

    async def delayed(self, naming: str) -> None:
        """Lets a refused load balancer be refused until its next attempt is a minute away."""
        for _ in range(6):
            before = self.attempts(naming)
            await self.at.clock.advance(self.next_retry - self.at.clock.time)
            await self.until(lambda before=before: self.attempts(naming) > before)  # type: ignore[misc]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.loop.run())
        try:
            yield
            assert not task.done()
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def until(self, condition: Callable[[], object]) -> None:
        """Waits for the threads of the driver; the clock stands still."""
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 calls of HNS are made in threads
                await asyncio.sleep(0.001)

    def attempts(self, naming: str) -> int:
        """How often it was tried to create a load balancer."""
        return sum(
            call.function == "HcnCreateLoadBalancer" and naming in call.document for call in self.at.hns.calls
        )


async def test_a_service_that_is_refused_for_ever_does_not_delay_another_one() -> None:
    at = WindowsNode()
    made = Loop(at)
    at.hns.fail("HcnCreateLoadBalancer", errors.INVALID_IP, times=-1, naming='"10.96.0.10"')
    made.add("web", "10.96.0.10")
    async with made.running():
        await made.until(lambda: made.loop.ledger.refused.keys() == {WEB})
        first = made.attempts("10.96.0.10")
        for n, seconds in enumerate((1, 2, 4, 8, 16), 1):
            await at.clock.advance(seconds)
            await made.until(lambda n=n: made.attempts("10.96.0.10") == first + n)  # type: ignore[misc]
        at.hns.fail("HcnCreateLoadBalancer", errors.INVALID_IP, times=2, naming='"10.96.0.11"')
        made.add("more", "10.96.0.11")
        await made.until(lambda: made.loop.ledger.refused.keys() == {WEB, MORE})
        tried = made.attempts("10.96.0.10")
        await at.clock.advance(1)
        await made.until(lambda: made.loop.ledger.refused.keys() == {WEB})
        assert made.attempts("10.96.0.10") == tried, "its own time has not come"
        assert at.balancers() == [f"10.96.0.11:80>8080/TCP F=1 M=0 {{{L1}}}"]
        at.hns.heal()
        await at.clock.advance(60)
        await made.until(lambda: not made.loop.ledger.refused)
    assert len(at.balancers()) == 2
    assert made.loop.repairs == 0


async def test_a_network_is_waited_for_with_a_second_and_then_up_to_ten() -> None:
    at = WindowsNode(network=False)
    made = Loop(at)
    made.add("web", "10.96.0.10")
    async with made.running():
        await made.until(lambda: made.loop.failures_in_row == 1)
        assert not made.loop.synced.is_set()
        for n, seconds in enumerate((1, 2, 4, 8, 10, 10, 10), 2):
            await at.clock.advance(seconds - 0.1)
            assert made.loop.failures_in_row == n - 1
            await at.clock.advance(0.1)
            await made.until(lambda n=n: made.loop.failures_in_row == n)  # type: ignore[misc]
        assert "has no network" in made.loop.trouble
        at.add_network()
        await at.clock.advance(10)
        await made.until(made.loop.synced.is_set)
    assert at.balancers() == [f"10.96.0.10:80>8080/TCP F=1 M=0 {{{L1}}}"]


async def test_hns_that_goes_away_while_something_is_retried_is_a_failed_sync() -> None:
    at = WindowsNode()
    made = Loop(at)
    at.hns.fail("HcnCreateLoadBalancer", errors.INVALID_IP, times=2)
    made.add("web", "10.96.0.10")
    async with made.running():
        await made.until(lambda: made.loop.ledger.refused.keys() == {WEB})
        at.hns.stop()
        await at.clock.advance(1)
        await made.until(lambda: made.loop.failures_in_row)
        at.hns.start()
        for _ in range(10):
            await at.clock.advance(1)
            await asyncio.sleep(0.01)
        await made.until(lambda: not made.loop.ledger.refused and not made.loop.failures_in_row)
    assert len(at.balancers()) == 1


async def test_a_refused_service_that_a_look_could_serve_is_not_refused_any_more() -> None:
    """An endpoint that the network plug-in attaches later is found by the look for drift, not by a retry."""
    at = WindowsNode(local=(L2,))
    made = Loop(at)
    at.hns.fail("HcnCreateLoadBalancer", errors.PORT_NOT_FOUND, times=-1, naming='"10.96.0.10"')
    made.add("web", "10.96.0.10", L1, L2)
    async with made.running():
        await made.until(lambda: made.loop.ledger.refused.keys() == {WEB})
        await made.delayed("10.96.0.10")
        at.hns.heal()
        at.add_local(L1)
        await at.clock.advance(30)
        await made.until(lambda: at.balancers() == [f"10.96.0.10:80>8080/TCP F=1 M=0 {{{L1},{L2}}}"])
        await made.until(lambda: not made.loop.ledger.refused)


async def test_of_a_repair_the_refused_services_are_known() -> None:
    at = WindowsNode()
    made = Loop(at)
    at.hns.fail("HcnCreateLoadBalancer", errors.INVALID_IP, times=-1, naming='"10.96.0.10"')
    made.add("web", "10.96.0.10")
    made.add("more", "10.96.0.11")
    async with made.running():
        await made.until(lambda: made.loop.ledger.refused.keys() == {WEB})
        await made.delayed("10.96.0.10")
        at.hns.heal()
        at.hns.remove(Entity.LOAD_BALANCER, next(iter(at.hns.load_balancers())))
        await at.clock.advance(30)
        await made.until(lambda: len(at.balancers()) == 2)
        await made.until(lambda: not made.loop.ledger.refused)
    assert made.loop.repairs == 1


async def test_a_call_that_hns_does_not_answer_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patience, "SLOW_SECONDS", 0.02)
    at = WindowsNode()
    made = Loop(at)
    answers = threading.Event()

    def hang(function: str) -> int:
        if function == "HcnCreateLoadBalancer":
            answers.wait(60)
        return 0

    at.hns.interfere = hang
    made.add("web", "10.96.0.10")
    async with made.running():
        await made.until(lambda: "HNS has not answered the call create_load_balancer" in caplog.text)
        answers.set()
        await made.until(made.loop.synced.is_set)
    assert len(at.balancers()) == 1
