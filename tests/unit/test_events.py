"""Events at the API server: written once, counted after, limited in number, and never in anybody's way."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kubeproxy import events
from kubeproxy.events import Events
from kubeproxy.sources.apiserver import ApiServer
from tests.fakes.apiserver import FakeApiServer
from tests.fakes.clock import FakeClock
from tests.fakes.lines import Fault
from tests.fakes.sink import Recorder

SPRING = 1_772_323_200.25
"""2026-03-01T00:00:00.25Z"""


class Rig:
    """Events of node "here", a server to write them to, and a clock."""

    def __init__(self, server: FakeApiServer) -> None:
        self.server = server
        self.clock = FakeClock()
        self.source = ApiServer(Recorder(), "here", master=server.url)
        self.events = Events(
            "here", self.source.client, clock=self.clock, wall=lambda: SPRING + self.clock.time - 1000
        )
        for name in ("web", "db"):
            server.store.put({"kind": "Service", "metadata": {"name": name, "namespace": "shop"}})

    async def until(self, posted: int, asked: int = 0) -> list[dict[str, Any]]:
        """Waits until so many Events are there and so many requests for Events were made."""
        async with asyncio.timeout(20):
            while len(self.server.events) < posted or len(self.asked()) < asked:  # noqa: ASYNC110 of another task
                await asyncio.sleep(0.002)
        await asyncio.sleep(0.02)
        await self.clock.settle()
        return self.server.events

    def asked(self) -> list[str]:
        return [r.method for r in self.server.requests if "/events" in r.path]


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with FakeApiServer() as server:
        rig = Rig(server)
        task = asyncio.create_task(rig.events.run())
        yield rig
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled(), task
        await rig.source.client.close()


async def test_of_the_node(rig: Rig) -> None:
    """As the reference writes it at its start."""
    rig.events.node("Starting", "StartKubeProxy")
    (event,) = await rig.until(1)
    assert event == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"here.{int(SPRING * 1e9):x}", "namespace": "default"},
        "eventTime": "2026-03-01T00:00:00.250000Z",
        "reportingController": "kube-proxy",
        "reportingInstance": "kube-proxy-here",
        "action": "StartKubeProxy",
        "reason": "Starting",
        "regarding": {"apiVersion": "v1", "kind": "Node", "name": "here", "uid": "here"},
        "note": "",
        "type": "Normal",
    }


async def test_of_a_service(rig: Rig) -> None:
    """`kubectl describe service` finds it by the uid."""
    rig.events.service(("shop", "web"), "Refused", "Write", "no such table")
    (event,) = await rig.until(1)
    assert event["regarding"] == {
        "apiVersion": "v1",
        "kind": "Service",
        "name": "web",
        "namespace": "shop",
        "uid": "uid-services-shop-web",
    }
    assert event["metadata"]["namespace"] == "shop"
    assert (event["type"], event["note"]) == ("Warning", "here: no such table")


async def test_of_a_service_that_is_gone_nothing_is_written(rig: Rig) -> None:
    rig.events.service(("shop", "gone"), "Refused", "Write", "x")
    rig.events.node("Starting", "StartKubeProxy")
    (event,) = await rig.until(1)
    assert event["reason"] == "Starting"


async def test_the_same_again_is_a_series(rig: Rig) -> None:
    def happens(times: int = 1) -> None:
        for _ in range(times):
            rig.events.service(("shop", "web"), "Refused", "Write", "x")

    happens()
    await rig.until(1)
    happens(30)
    await rig.clock.advance(events.SERIES_SECONDS - 1)
    assert rig.asked() == ["POST"]
    happens()
    await rig.clock.advance(1)
    (event,) = await rig.until(1, asked=2)
    assert event["series"] == {"count": 32, "lastObservedTime": "2026-03-01T00:04:59.250000Z"}
    await rig.clock.advance(10 * events.SERIES_SECONDS)
    assert rig.asked() == ["POST", "PATCH"], "nothing happened, nothing is written"


async def test_what_happens_often_at_once_is_a_series_from_the_start(rig: Rig) -> None:
    for _ in range(3):
        rig.events.node("Starting", "StartKubeProxy")
    (event,) = await rig.until(1)
    assert event["series"]["count"] == 3


async def test_other_words_are_another_event(rig: Rig) -> None:
    for note in ("x", "y"):
        for name in ("web", "db"):
            rig.events.service(("shop", name), "Refused", "Write", note)
    found = await rig.until(4)
    assert len({event["metadata"]["name"] for event in found}) == 4
    assert not any("series" in event for event in found)


async def test_a_series_the_server_has_forgotten_is_written_anew(rig: Rig) -> None:
    rig.events.node("Starting", "StartKubeProxy")
    await rig.until(1)
    rig.server.events.clear()
    rig.events.node("Starting", "StartKubeProxy")
    await rig.clock.advance(events.SERIES_SECONDS)
    (event,) = await rig.until(1, asked=3)
    assert event["series"]["count"] == 2
    assert rig.asked() == ["POST", "PATCH", "POST"]


async def test_what_is_long_ago_is_forgotten(rig: Rig) -> None:
    rig.events.node("Starting", "StartKubeProxy")
    await rig.until(1)
    await rig.clock.advance(events.KEPT_SECONDS + 1)
    rig.events.node("Starting", "StartKubeProxy")
    assert len(await rig.until(2)) == 2


async def test_their_number_is_limited(rig: Rig) -> None:
    """So is what is remembered of them."""
    for i in range(events.MOST + 100):
        rig.events.node("Trouble", "Test", f"number {i}", warning=True)
    assert len(await rig.until(events.BURST)) == events.BURST
    await rig.clock.advance(events.EVERY_SECONDS - 0.1)
    assert len(await rig.until(events.BURST)) == events.BURST
    await rig.clock.advance(0.1)
    assert len(await rig.until(events.BURST + 1)) == events.BURST + 1
    assert len(rig.events._noted) == events.MOST


@pytest.mark.parametrize("status", [401, 429, 500, 503])
async def test_what_fails_is_tried_again(rig: Rig, caplog: pytest.LogCaptureFixture, status: int) -> None:
    for _ in range(2):
        rig.server.next(Fault(status=status))
    rig.events.node("Starting", "StartKubeProxy")
    await rig.until(0, asked=1)
    assert rig.server.events == []
    await rig.clock.advance(60)
    await rig.until(1)
    assert len([m for m in caplog.messages if "Events cannot be written" in m]) == 1


@pytest.mark.parametrize("more", [0, 2])
async def test_one_whose_answer_was_lost_is_not_there_twice(
    rig: Rig, caplog: pytest.LogCaptureFixture, more: int
) -> None:
    """A real server answers the second try with 409. What happened meanwhile is counted."""
    rig.server.next(Fault(then="drop"))
    for _ in range(1 + more):
        rig.events.node("Starting", "StartKubeProxy")
        await rig.until(1, asked=1)
    await rig.clock.advance(60)
    (event,) = await rig.until(1, asked=3 if more else 2)
    assert event.get("series", {}).get("count", 1) == 1 + more
    assert rig.asked() == ["POST", "POST", *(["PATCH"] if more else [])]
    assert [m for m in caplog.messages if "Events cannot be written" in m and "409" in m] == []


async def test_what_is_refused_is_not_tried_again(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        rig.server.next(Fault(status=403, reason="Forbidden", message="not yours"))
        rig.events.node("Trouble", "Test", f"{len(rig.asked())}", warning=True)
        await rig.until(0, asked=len(rig.asked()) + 1)
    await rig.clock.advance(3000)
    assert rig.asked() == ["POST", "POST"]
    assert caplog.messages == [
        "Events cannot be written at the moment, which affects nothing else: not yours (403 Forbidden)"
    ]


async def test_a_server_that_is_away(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    await rig.server.stop()
    rig.events.node("Starting", "StartKubeProxy")
    for _ in range(100):
        await rig.clock.advance(10)
        await asyncio.sleep(0.001)
    assert len(caplog.messages) == 1
    await rig.server.start()
    rig.events.node("Trouble", "Test", warning=True)
    found = await rig.until(1)
    assert found[-1]["reason"] == "Trouble"


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b'{"items":[{"metadata":7}]}'])
async def test_a_server_that_answers_nonsense(
    rig: Rig, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    class Mad:
        async def request(self, *_: object, **__: object) -> bytes:
            return body

    mad = Events("here", Mad(), clock=rig.clock)
    task = asyncio.create_task(mad.run())
    mad.service(("shop", "web"), "Refused", "Write", "x")
    await rig.clock.advance(1000)
    assert not task.done()
    assert len(caplog.messages) == 1
    task.cancel()


async def test_long_names_and_notes(rig: Rig) -> None:
    """The fake server checks what a real one does."""
    node = "n" * 63 + "." + "o" * 63 + "." + "d" * 63 + "." + "e" * 60
    longest = Events(node, rig.source.client, clock=rig.clock)
    task = asyncio.create_task(longest.run())
    longest.node("Starting", "StartKubeProxy", "x" * 5000)
    longest.service(("shop", "web"), "Refused", "Write", "y" * 5000)
    await rig.until(2)
    task.cancel()


async def test_without_a_server_nothing_is_noted() -> None:
    silent = Events("here", None)
    silent.node("Starting", "StartKubeProxy")
    silent.service(("shop", "web"), "Refused", "Write", "x")
    assert not silent._noted
