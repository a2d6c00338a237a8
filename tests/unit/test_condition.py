"""The condition of the Node: it follows /readyz, and neither an upgrade nor an outage makes it flap."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from kubeproxy import condition
from kubeproxy.condition import NodeCondition
from kubeproxy.sources.apiserver import ApiServer
from tests.fakes.apiserver import FakeApiServer
from tests.fakes.clock import FakeClock
from tests.fakes.lines import Fault
from tests.fakes.sink import Recorder

SPRING = 1_772_323_200.0
"""2026-03-01T00:00:00Z, and 1000 by the clock."""

KUBELET = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}


class Rig:
    """The condition of node "here", what /readyz says, and the server."""

    def __init__(self, server: FakeApiServer) -> None:
        self.server = server
        self.clock = FakeClock()
        self.source = ApiServer(Recorder(), "here", master=server.url)
        self.troubles = ["IPv4: nothing is in the kernel yet"]
        self.condition = self.another()
        self.put(KUBELET)

    def another(self) -> NodeCondition:
        wall = lambda: SPRING + self.clock.time - 1000  # noqa: E731
        return NodeCondition("here", lambda: self.troubles, clock=self.clock, wall=wall)

    def put(self, *conditions: dict[str, str]) -> None:
        status = {"conditions": list(conditions)}
        self.server.store.put({"kind": "Node", "metadata": {"name": "here"}, "status": status})

    def use(self, *, wanted: bool = True) -> None:
        self.condition.use(self.source.client, wanted=wanted)

    @property
    def patches(self) -> int:
        return len(self.server.asked("Node", "patch"))

    async def seen(self) -> dict[str, Any] | None:
        """The condition, after everything that is under way; those of others are as they were."""
        async with asyncio.timeout(20):
            for _ in range(20):
                before = len(self.server.requests)
                await asyncio.sleep(0.01)
                await self.clock.settle()
                if before == len(self.server.requests) and before:
                    break
        node = msgspec.json.decode(self.server.store.objects["Node"]["", "here"].data)
        found = {each["type"]: each for each in node["status"]["conditions"]}
        assert found.pop("Ready") == KUBELET
        mine: dict[str, Any] | None = found.pop(condition.TYPE, None)
        assert not found
        return mine

    async def after(self, seconds: float) -> dict[str, Any] | None:
        """The condition so many seconds later."""
        for _ in range(round(seconds)):
            await self.clock.advance(1)
            await asyncio.sleep(0.005)
        return await self.seen()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with FakeApiServer() as server:
        rig = Rig(server)
        task = asyncio.create_task(rig.condition.run())
        yield rig
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled(), task
        await rig.source.client.close()


async def test_nothing_is_written_unless_it_is_configured(rig: Rig) -> None:
    rig.use(wanted=False)
    await rig.clock.advance(1000)
    assert rig.server.requests == []


async def test_it_follows_readyz(rig: Rig) -> None:
    rig.use()
    await rig.clock.settle()
    assert await rig.seen() == {
        "type": "ServicesProgrammed",
        "status": "False",
        "reason": "RulesNotInKernel",
        "message": "IPv4: nothing is in the kernel yet",
        "lastHeartbeatTime": "2026-03-01T00:00:00Z",
        "lastTransitionTime": "2026-03-01T00:00:00Z",
    }
    rig.troubles = []
    found = await rig.after(1)
    assert found == {
        "type": "ServicesProgrammed",
        "status": "True",
        "reason": "RulesInKernel",
        "message": "all rules are in the kernel and follow the cluster",
        "lastHeartbeatTime": "2026-03-01T00:00:01Z",
        "lastTransitionTime": "2026-03-01T00:00:01Z",
    }
    assert await rig.after(condition.AGAIN_SECONDS - 2) == found
    again = await rig.after(3)
    assert again
    assert found
    assert again["lastHeartbeatTime"] > found["lastHeartbeatTime"]
    assert again["lastTransitionTime"] == found["lastTransitionTime"]
    assert rig.patches == 3


async def test_a_short_trouble_of_rules_that_serve_is_not_written(rig: Rig) -> None:
    rig.troubles = []
    rig.use()
    await rig.after(1)
    rig.troubles = ["IPv4: changes have waited"]
    assert (await rig.after(condition.SETTLE_SECONDS - 1) or {})["status"] == "True"
    rig.troubles = []
    await rig.after(1)
    rig.troubles = ["IPv4: 3 syncs in a row failed"]
    assert (await rig.after(condition.SETTLE_SECONDS) or {})["status"] == "True"
    assert (await rig.after(1) or {})["status"] == "False"


async def test_an_upgrade_changes_nothing_where_rules_serve(rig: Rig) -> None:
    written = {
        "type": condition.TYPE,
        "status": "True",
        "reason": "RulesInKernel",
        "message": "fine",
        "lastTransitionTime": "2026-02-01T00:00:00Z",
    }
    rig.put(KUBELET, written)
    rig.condition.serves()
    rig.use()
    assert await rig.after(2) == written
    rig.troubles = []
    found = await rig.after(1)
    assert found
    assert (found["status"], found["lastTransitionTime"]) == ("True", written["lastTransitionTime"])


async def test_reasons_that_change_all_the_time_are_written_once_a_minute(rig: Rig) -> None:
    rig.use()
    for second in range(60):
        rig.troubles = [f"Services: no event for {300 + second} s"]
        await rig.after(1)
    assert rig.patches <= 2


async def test_it_is_removed_when_the_configuration_no_longer_asks_for_it(rig: Rig) -> None:
    rig.use()
    await rig.clock.settle()
    assert await rig.seen()
    rig.use(wanted=False)
    await rig.clock.settle()
    assert await rig.seen() is None
    await rig.after(1000)
    assert rig.patches == 2


async def test_a_missing_right_is_logged_once_and_tried_again(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.server.next(*[Fault(403, "Forbidden", "nodes/status is forbidden")] * 3, kind="Node", verb="patch")
    rig.use()
    assert await rig.after(0) is None
    assert (await rig.after(1 + 2 + 4 + 1) or {})["status"] == "False"
    assert rig.patches == 4
    (message,) = [m for m in caplog.messages if "cannot be written" in m]
    assert "it needs the verb patch on nodes/status" in message


async def test_without_a_server_nothing_happens(rig: Rig) -> None:
    rig.condition.use(None, wanted=True)
    await rig.clock.advance(1000)
    assert rig.server.requests == []
