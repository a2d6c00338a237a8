"""What a long start says, and that a fast one says nothing."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import pytest

from kubeproxy.api import types
from kubeproxy.hub import Hub
from kubeproxy.progress import report
from kubeproxy.reconcile.reconciler import Reconciler
from tests.fakes.cluster import service
from tests.unit.serve.stage import Stage

QUICK = 0.005


@contextlib.asynccontextmanager
async def reporting(
    hub: Hub, loops: list[Reconciler], seconds: float = QUICK
) -> AsyncIterator[asyncio.Future[None]]:
    task = asyncio.ensure_future(report(hub, lambda: loops, seconds=seconds))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(caplog: pytest.LogCaptureFixture, text: str) -> None:
    async with asyncio.timeout(20):
        while text not in caplog.messages:  # noqa: ASYNC110 nobody tells of log lines
            await asyncio.sleep(QUICK)


async def test_each_step_of_a_long_start_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    loops: list[Reconciler] = []
    hub, stage = Hub("here"), Stage()
    async with reporting(hub, loops) as task:
        await asyncio.sleep(10 * QUICK)
        assert not caplog.messages  # who keeps the source from answering is told elsewhere
        for number in range(3):
            hub.set(service(f"web-{number}", f"10.96.0.{number + 1}"))
        hub.complete("Node")
        await until(
            caplog, "Starting: reading Services and endpoints, 3 Services and 0 EndpointSlices so far"
        )
        for kind in types.KINDS:
            hub.complete(kind)
        loops.append(stage.loop)
        stage.loop._planner.progress = 1000, 44000
        await until(caplog, "Starting: IPv4: planned 1000 of 44000 Services")
        stage.loop._planner.progress = 44000, 44000
        await until(caplog, "Starting: IPv4: writing the rules of 44000 Services")
        stage.synced(full=True)
        async with asyncio.timeout(20):
            await task
        caplog.clear()
    assert not caplog.messages


async def test_a_fast_start_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    hub, stage = Hub("here"), Stage()
    for kind in types.KINDS:
        hub.complete(kind)
    stage.synced(full=True)
    async with reporting(hub, [stage.loop]) as task, asyncio.timeout(20):
        await task
    assert not caplog.messages
