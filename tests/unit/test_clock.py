"""The real clock; the one that stands still is tests/fakes/clock.py."""

import asyncio

import pytest

from kubeproxy.clock import SystemClock
from tests.fakes.clock import FakeClock


async def test_it_does_not_go_back() -> None:
    clock = SystemClock()
    before = clock.now()
    assert clock.now() >= before


async def test_a_wait_ends_with_the_event_or_the_time() -> None:
    clock, event = SystemClock(), asyncio.Event()
    before = clock.now()
    await clock.wait(event, 0.01)
    assert clock.now() >= before + 0.01
    assert not event.is_set()
    event.set()
    async with asyncio.timeout(60):
        await clock.wait(event, None)
        await clock.wait(event, 600)


@pytest.mark.parametrize("seconds", [None, 600.0])
@pytest.mark.parametrize("turns", range(4))
async def test_a_cancellation_that_comes_with_the_event_counts(seconds: float | None, turns: int) -> None:
    """Otherwise SIGTERM would be forgotten."""
    event = asyncio.Event()
    waiting = asyncio.create_task(SystemClock().wait(event, seconds))
    await FakeClock.settle()
    event.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    if waiting.cancel():
        with pytest.raises(asyncio.CancelledError):
            await waiting
    else:
        assert waiting.done()
