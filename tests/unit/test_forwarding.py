"""IP forwarding that is off: said once when it goes off, with what to do, and not where it does not matter."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import pytest

from kubeproxy.api.addresses import IPV4, IPV6, Family
from kubeproxy.forwarding import LOOK_SECONDS, Forwarding, enabled
from kubeproxy.machine.fake import FakeMachine
from tests.fakes.clock import FakeClock
from tests.unit.serve.stage import Stage, plan


class Host(FakeMachine):
    """A host whose settings can be set by family."""

    def __init__(self) -> None:
        super().__init__(clock=FakeClock())
        for family in (IPV4, IPV6):
            for interface in ("all", "default", "lo", "eth0"):
                self.set(family, 0, interface)

    def set(self, family: Family, value: int, interface: str = "all", name: str = "forwarding") -> None:
        self.settings[f"net/ip{family.removeprefix('IP')}/conf/{interface}/{name}"] = str(value)


@pytest.fixture
def host() -> Host:
    return Host()


class Watcher:
    """A `Forwarding` of two families that runs, and its Events."""

    def __init__(self, host: Host) -> None:
        assert isinstance(host.clock, FakeClock)
        self.clock = host.clock
        self.stages = [Stage(family, self.clock) for family in (IPV4, IPV6)]
        self.events: list[str] = []
        self.forwarding = Forwarding(
            host,
            [stage.loop for stage in self.stages],
            lambda reason, action, note, *, warning: self.events.append(reason),
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.ensure_future(self.forwarding.run())
        try:
            await self.clock.settle()
            yield
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def gauges(self) -> dict[str, float]:
        found = {f.labels["ip_family"]: f.value for f in self.forwarding.figures()}
        assert all(isinstance(value, int | float) for value in found.values())
        return found  # type: ignore[return-value]


def test_a_single_interface_may_be_enough(host: Host) -> None:
    assert not enabled(host, IPV4)
    host.set(IPV4, 1, "lo")
    host.set(IPV4, 1, "default")
    assert not enabled(host, IPV4), "nothing comes in there"
    host.set(IPV4, 1, "eth0")
    assert enabled(host, IPV4)
    host.set(IPV6, 1, "eth0")
    assert not enabled(host, IPV6), "of IPv6 that setting is about router advertisements"
    host.set(IPV6, 1, "eth0", "force_forwarding")
    assert enabled(host, IPV6)
    host.set(IPV6, 0, "eth0", "force_forwarding")
    host.set(IPV6, 2)
    assert enabled(host, IPV6)


async def test_it_is_said_once_each_time_it_goes_off(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    watcher = Watcher(host)
    watcher.stages[0].synced(plan())
    async with watcher.running():
        await watcher.clock.advance(5 * LOOK_SECONDS)
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert "IPv4 forwarding is off (net.ipv4.ip_forward is 0)" in record.getMessage()
        assert "set net.ipv4.ip_forward=1 with sysctl -w" in record.getMessage()
        assert watcher.events == ["ForwardingDisabled"]
        assert watcher.gauges() == {IPV4: 0, IPV6: 0}
        caplog.clear()
        host.set(IPV4, 1)
        await watcher.clock.advance(LOOK_SECONDS)
        assert [r.getMessage() for r in caplog.records] == ["IPv4 forwarding is on now"]
        assert watcher.gauges() == {IPV4: 1, IPV6: 0}
        host.set(IPV4, 0)
        await watcher.clock.advance(LOOK_SECONDS)
        assert watcher.events == ["ForwardingDisabled"] * 2


async def test_a_family_without_services_does_not_matter_until_it_has_one(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = Watcher(host)
    host.set(IPV4, 1)
    watcher.stages[0].synced(plan())
    async with watcher.running():
        await watcher.clock.advance(LOOK_SECONDS)
        assert not caplog.records
        watcher.stages[1].synced(plan())
        await watcher.clock.advance(LOOK_SECONDS)
        assert "IPv6 forwarding is off (net.ipv6.conf.all.forwarding is 0)" in caplog.text


async def test_what_cannot_be_read_is_not_said(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    watcher = Watcher(host)
    watcher.stages[0].synced(plan())
    host.settings.clear()
    async with watcher.running():
        await watcher.clock.advance(LOOK_SECONDS)
        assert not caplog.records
        assert watcher.gauges() == {}
