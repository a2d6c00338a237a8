"""The reflector against a server that misbehaves."""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from kubeproxy.sources.apiserver import SERVICES, SLICES
from kubeproxy.sources.auth import Credentials
from kubeproxy.sources.backoff import Backoff
from kubeproxy.sources.base import Status
from kubeproxy.sources.client import Client
from kubeproxy.sources.kubeconfig import Cluster, ClusterAccess, User
from kubeproxy.sources.watch import Reflector, Resource, Timing
from tests.fakes.apiserver import FakeApiServer
from tests.fakes.lines import Fault
from tests.fakes.sink import Recorder


class Watching:
    """A running reflector, its sink, and a clock that only a test moves."""

    def __init__(
        self, server: FakeApiServer, resource: Resource, sink: Recorder | None, timing: dict[str, Any]
    ) -> None:
        self.server = server
        self.sink = sink or Recorder()
        self.slept: list[float] = []
        self.time = 1000.0
        self.halt_at = float("inf")
        self.gate = asyncio.Event()
        self.gate.set()
        connection = ClusterAccess(Cluster(server=server.url), User(), name="test")
        self.client = Client(Credentials(lambda: connection, env={}))
        settings = {"now": lambda: self.time, "sleep": self._sleep, "random": lambda: 0.5, **timing}
        self.reflector = Reflector(
            resource, self.client, self.sink, lambda: self.sink.complete(resource.kind), Timing(**settings)
        )
        self.task = asyncio.create_task(self.reflector.run())

    @property
    def status(self) -> Status:
        return self.reflector.status

    @property
    def verbs(self) -> list[str]:
        """What was asked of the server, in order."""
        return [request.verb for request in self.server.requests]

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds
        if self.time >= self.halt_at:
            self.gate.clear()
        await self.gate.wait()
        await asyncio.sleep(0)

    async def halted(self, seconds: float) -> None:
        """Lets it run, and stops it in the first pause that ends so long after the beginning."""
        self.halt_at = 1000 + seconds
        self.gate.set()
        await self.sink.until(lambda: not self.gate.is_set())

    async def listed(self, times: int = 1) -> None:
        await self.sink.until(lambda: self.status.lists >= times)

    async def see(self, *names: str) -> None:
        """Waits until exactly these exist."""
        await self.sink.until(lambda: {name for _, _, name in self.sink.view} == set(names))

    async def asked(self, *verbs: str) -> None:
        """Waits until exactly these were asked, and the last is answered."""
        await self.sink.until(lambda: self.verbs == list(verbs) and self.status.connected)


@asynccontextmanager
async def watching(
    server: FakeApiServer, resource: Resource = SERVICES, sink: Recorder | None = None, **timing: Any
) -> AsyncIterator[Watching]:
    it = Watching(server, resource, sink, timing)
    try:
        yield it
    finally:
        it.task.cancel()
        with suppress(asyncio.CancelledError):
            await it.task
        await it.client.close()


def service(name: str, port: Any = 80, **metadata: Any) -> dict[str, Any]:
    spec = {"clusterIP": "10.96.0.1", "ports": [{"port": port}]}
    return {"kind": "Service", "metadata": {"name": name, **metadata}, "spec": spec}


def put(server: FakeApiServer, *names: str) -> None:
    for name in names:
        server.store.put(service(name))


class TestStreamingList:
    async def test_from_the_first_word_to_a_deletion(self) -> None:
        async with FakeApiServer() as server:
            put(server, "a", "b")
            async with watching(server) as it:
                await it.listed()
                put(server, "c")
                server.store.put(service("a", 81))
                server.store.delete("Service", "b")
                await it.see("a", "c")
                assert it.sink.calls == [
                    ("set", "Service", "default", "a"),
                    ("set", "Service", "default", "b"),
                    ("complete", "Service"),
                    ("set", "Service", "default", "c"),
                    ("set", "Service", "default", "a"),
                    ("gone", "Service", "default", "b"),
                ]
                assert it.status == Status(
                    "Service",
                    connected=True,
                    received=1000,
                    event=1000,
                    lists=1,
                    objects=2,
                    version=str(server.store.version),
                )
            (request,) = server.requests
            assert request.query == {
                "labelSelector": "!service.kubernetes.io/service-proxy-name",
                "fieldSelector": "spec.clusterIP!=None",
                "watch": "1",
                "sendInitialEvents": "true",
                "resourceVersionMatch": "NotOlderThan",
                "allowWatchBookmarks": "true",
                "timeoutSeconds": "450",
            }

    @pytest.mark.parametrize(("chance", "seconds"), [(0.0, "300"), (0.999999, "599")])
    async def test_watches_last_five_to_ten_minutes(self, chance: float, seconds: str) -> None:
        async with FakeApiServer() as server, watching(server, random=lambda: chance) as it:
            await it.listed()
            assert server.requests[0].query["timeoutSeconds"] == seconds

    async def test_a_list_that_breaks_off_is_told_again(self) -> None:
        async with FakeApiServer() as server:
            put(server, "a", "b", "c")
            server.next(Fault(then="drop", after=2), Fault(then="end", after=3))
            async with watching(server) as it:
                await it.listed()
                assert it.verbs == ["stream", "stream", "stream"]
                assert len(it.sink.said("complete")) == 1
                assert it.sink.said("gone") == []
                await it.see("a", "b", "c")

    async def test_a_list_that_ends_too_early_is_a_failure(self) -> None:
        async with FakeApiServer() as server:
            put(server, "a", "b")
            server.next(Fault(then="end", after=1))
            clock = itertools.count(0, 10)
            async with watching(server, now=lambda: float(next(clock))) as it:
                await it.listed()
                assert it.slept == [pytest.approx(1.2)]

    async def test_what_a_broken_list_told_is_not_forgotten(self) -> None:
        async with FakeApiServer() as server:
            put(server, "a", "b")
            server.next(Fault(then="stall", after=1))
            async with watching(server) as it:
                await it.see("a")
                server.store.delete("Service", "a")
                server.drop()
                await it.see("b")
                assert it.sink.said("gone") == [("gone", "Service", "default", "a")]

    async def test_a_deletion_before_the_list_ends(self) -> None:
        lines = (
            '{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"9"}}}',
            '{"type":"DELETED","object":{"metadata":{"name":"a","resourceVersion":"10"}}}',
            '{"type":"ADDED","object":{"metadata":{"name":"b","resourceVersion":"3"}}}',
        )
        async with FakeApiServer() as server:
            server.next(Fault(then="lines", lines=lines))
            async with watching(server) as it:
                await it.see("b")
                assert not it.status.lists
                assert it.sink.calls == [
                    ("set", "Service", "", "a"),
                    ("gone", "Service", "", "a"),
                    ("set", "Service", "", "b"),
                ]

    async def test_what_leaves_the_selector_is_gone(self) -> None:
        async with FakeApiServer() as server:
            put(server, "a", "b")
            async with watching(server) as it:
                await it.listed()
                server.store.put(service("a", labels={"service.kubernetes.io/service-proxy-name": "other"}))
                await it.see("b")
                put(server, "a")
                await it.see("a", "b")


class TestResume:
    async def test_after_a_broken_connection(self) -> None:
        async with FakeApiServer() as server:
            put(server, "a", "b")
            async with watching(server) as it:
                await it.listed()
                version = str(server.store.version)
                it.gate.clear()
                server.drop()
                await it.sink.until(lambda: bool(it.slept))
                assert not it.status.connected
                assert it.status.trouble
                put(server, "c")
                server.store.delete("Service", "a")
                it.gate.set()
                await it.see("b", "c")
                assert it.verbs == ["stream", "watch"]
                query = server.requests[1].query
                assert query["resourceVersion"] == version
                assert "sendInitialEvents" not in query
                assert it.slept == [pytest.approx(1.2)]
                assert (it.status.connected, it.status.lists, it.status.errors, it.status.trouble) == (
                    True,
                    1,
                    1,
                    "",
                )

    async def test_at_the_last_bookmark(self) -> None:
        async with FakeApiServer() as server, watching(server) as it:
            await it.listed()
            server.store.put({"kind": "Node", "metadata": {"name": "other"}})
            server.bookmark()
            await it.sink.until(lambda: it.status.version == str(server.store.version))
            server.drop()
            await it.asked("stream", "watch")
            assert server.requests[1].query["resourceVersion"] == str(server.store.version)

    async def test_at_once_after_a_watch_that_ended_in_time(self) -> None:
        async with FakeApiServer() as server, watching(server) as it:
            await it.listed()
            server.next(Fault(then="end", after=1))
            server.drop()
            await it.asked("stream", "watch")
            del it.slept[:]
            it.time += 60
            put(server, "a")
            await it.asked("stream", "watch", "watch")
            await it.see("a")
            assert it.slept == []

    async def test_not_at_once_after_a_watch_that_ended_at_once(self) -> None:
        async with FakeApiServer() as server, watching(server) as it:
            await it.listed()
            server.next(Fault(then="end"), Fault(then="end"), Fault(then="end"))
            server.drop()
            await it.asked("stream", *["watch"] * 4)
            assert it.slept == [pytest.approx(1.2 * 2**n) for n in range(4)]
            assert it.status.lists == 1

    async def test_half_a_line_is_not_lost(self) -> None:
        async with FakeApiServer() as server, watching(server) as it:
            await it.listed()
            server.next(Fault(then="half", after=1))
            it.gate.clear()
            server.drop()
            await it.sink.until(lambda: bool(it.slept))
            put(server, "a", "b")
            it.gate.set()
            await it.see("a", "b")
            assert it.verbs == ["stream", "watch", "watch"]
            assert it.sink.said("set") == [
                ("set", "Service", "default", "a"),
                ("set", "Service", "default", "b"),
            ]

    async def test_the_server_away_for_long(self) -> None:
        async with FakeApiServer() as server:
            put(server, "a", "b")
            async with watching(server) as it:
                await it.listed()
                await server.stop()
                await it.sink.until(lambda: len(it.slept) > 20)
                before = list(it.sink.calls)
                server.store.delete("Service", "a")
                await server.start()
                await it.see("b")
                assert it.sink.calls == [*before, ("gone", "Service", "default", "a")]
                assert it.status.lists == 1
                assert max(it.slept) == 45


class TestRelist:
    async def test_history_forgotten_meanwhile(self) -> None:
        async with FakeApiServer() as server:
            put(server, "a", "b")
            async with watching(server) as it:
                await it.listed()
                it.gate.clear()
                server.drop()
                await it.sink.until(lambda: bool(it.slept))
                version = server.store.version
                server.store.delete("Service", "a")
                put(server, "c")
                server.store.compact()
                it.gate.set()
                await it.listed(2)
                await it.see("b", "c")
                assert it.verbs == ["stream", "watch", "stream"]
                # Not older than what is known already.
                assert server.requests[2].query["resourceVersion"] == str(version)
                assert it.sink.said("gone") == [("gone", "Service", "default", "a")]
                assert len(it.sink.said("complete")) == 1

    @pytest.mark.parametrize(
        ("fault", "verbs"),
        [
            (Fault(status=410, reason="Expired"), ["stream", "watch", "stream"]),
            (Fault(then="error", code=410, reason="Expired"), ["stream", "watch", "stream"]),
            (Fault(then="error", code=500, reason="InternalError"), ["stream", "watch", "stream"]),
            (Fault(then="garbage"), ["stream", "watch", "stream"]),
            (Fault(status=400, reason="BadRequest"), ["stream", "watch", "stream"]),
            (Fault(status=404), ["stream", "watch", "stream"]),
            (Fault(status=500), ["stream", "watch", "stream"]),
            # These say nothing against the version.
            (Fault(then="error", code=429, reason="TooManyRequests"), ["stream", "watch", "watch"]),
            (Fault(status=401), ["stream", "watch", "watch"]),
            (Fault(status=403), ["stream", "watch", "watch"]),
            (Fault(status=429), ["stream", "watch", "watch"]),
            (Fault(status=503), ["stream", "watch", "watch"]),
        ],
    )
    async def test_what_a_watch_may_answer(self, fault: Fault, verbs: list[str]) -> None:
        async with FakeApiServer() as server:
            put(server, "a", "b")
            async with watching(server) as it:
                await it.listed()
                server.next(fault, kind="Service", verb="watch")
                server.drop()
                await it.asked(*verbs)
                await it.listed(2 if verbs[-1] == "stream" else 1)
                put(server, "c")
                await it.see("a", "b", "c")
                assert len(it.slept) == 2
                assert it.sink.said("gone") == []

    async def test_a_version_the_server_does_not_know(self) -> None:
        """Restored from a backup, and its history does not reach back: the list must ask for no version."""
        async with FakeApiServer() as server:
            put(server, "a")
            backup = server.store.backup()
            put(server, "b")
            async with watching(server) as it:
                await it.listed()
                server.store.restore(backup)
                server.next(Fault(then="error", code=410))
                server.drop()
                await it.listed(2)
                await it.see("a")
                assert it.verbs == ["stream", "watch", "stream", "stream"]
                assert "resourceVersion" not in server.requests[3].query
                put(server, "c")
                await it.see("a", "c")

    async def test_a_server_restored_from_a_backup_keeps_silent(self) -> None:
        async with FakeApiServer() as server:
            put(server, "a")
            backup = server.store.backup()
            put(server, *(f"b{n}" for n in range(20)))
            async with watching(server, heartbeat=0.1) as it:
                await it.listed()
                server.store.restore(backup)
                put(server, "c")
                server.drop()
                await it.listed(2)
                await it.see("a", "c")
                # One silent watch may be a dead connection, two in a row are suspicious.
                assert it.verbs[:4] == ["stream", "watch", "watch", "stream"]
                assert "resourceVersion" not in server.requests[3].query

    async def test_watches_that_end_without_a_word(self) -> None:
        """The same from a server that sends no bookmarks."""
        async with FakeApiServer() as server, watching(server, watch=0.5, now=time.monotonic) as it:
            await it.listed(2)
            assert it.verbs == ["stream", "watch", "watch", "stream"]
            assert it.slept == []

    async def test_a_version_from_the_past(self) -> None:
        line = '{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"2"}}}'
        async with FakeApiServer() as server:
            put(server, *"abcdefghijk")
            async with watching(server) as it:
                await it.listed()
                server.next(Fault(then="lines", lines=(line,)))
                server.drop()
                await it.listed(2)
                assert it.verbs == ["stream", "watch", "stream"]
                assert "resourceVersion" not in server.requests[2].query

    async def test_what_a_sink_throws(self, caplog: pytest.LogCaptureFixture) -> None:
        class Clumsy(Recorder):
            stumbles = 1

            def set(self, obj: Any) -> None:
                if obj.metadata.name == "b" and self.stumbles:
                    self.stumbles -= 1
                    raise ZeroDivisionError
                super().set(obj)

        async with FakeApiServer() as server:
            put(server, "a", "b")
            async with watching(server, sink=Clumsy()) as it:
                await it.listed()
                await it.see("a", "b")
                assert "ZeroDivisionError" in caplog.text


class TestPages:
    @pytest.mark.parametrize("status", [400, 422])
    async def test_a_server_without_streaming_lists(self, status: int) -> None:
        async with FakeApiServer() as server:
            put(server, *(f"s{number:04}" for number in range(1200)))
            server.next(Fault(status=status))
            async with watching(server) as it:
                await it.asked("stream", "list", "list", "list", "watch")
                assert it.status.objects == 1200
                first, second, third, watch = (request.query for request in server.requests[1:])
                selectors = {key: first.pop(key) for key in ("labelSelector", "fieldSelector")}
                assert first == {"resourceVersion": "0", "limit": "500"}
                assert second.keys() == third.keys() == {"continue", "limit", *selectors}
                assert watch["resourceVersion"] == str(server.store.version)
                assert len(it.sink.said("set")) == 1200
                assert len(it.sink.said("complete")) == 1
                assert it.slept == []
                put(server, "late")
                await it.sink.until(lambda: it.status.objects == 1201)

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            (
                b'{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Success"}',
                "sent kind 'Status' in place of",
            ),
            (
                b'{"kind":"NodeList","apiVersion":"v1","metadata":{},"items":[]}',
                "sent kind 'NodeList' in place of",
            ),
            (b'{"metadata":{}}', "sent kind '' in place of ServiceList"),
            (b"{}", "the server's list cannot be read"),
            (b"[]", "the server's list cannot be read"),
        ],
    )
    async def test_an_answer_that_is_no_list_is_not_an_empty_one(
        self, body: bytes, says: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with FakeApiServer() as server:
            server.streaming = False
            put(server, "a", "b")
            async with watching(server) as it:
                await it.listed()
                server.next(Fault(then="error", code=410), verb="watch")
                server.next(Fault(status=200, body=body), verb="list")
                server.drop()
                await it.listed(2)
                assert it.sink.said("gone") == []
                assert says in caplog.text

    @pytest.mark.parametrize("content_type", ["text/html", "application/vnd.kubernetes.protobuf"])
    async def test_a_page_of_something_else(
        self, content_type: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As of a proxy that asks for a login, with status 200."""
        async with FakeApiServer() as server:
            put(server, "a")
            server.next(Fault(status=200, body=b"<html>", content_type=content_type))
            async with watching(server) as it:
                await it.listed()
                assert f"{content_type}' in place of JSON: this is no API server" in caplog.text
                assert "ended the watch within a line" not in caplog.text

    async def test_a_plain_list_is_word_of_the_server(self) -> None:
        """Its watch says nothing before the first bookmark, a minute later."""
        async with FakeApiServer() as server:
            server.streaming = False
            put(server, "a")
            async with watching(server) as it:
                await it.asked("stream", "list", "watch")
                assert it.status.received == 1000

    async def test_a_server_too_old_to_refuse(self) -> None:
        async with FakeApiServer() as server:
            server.streaming = None
            put(server, "a")
            async with watching(server, first_event=0.05) as it:
                await it.asked("stream", "list", "watch")
                assert len(it.sink.said("complete")) == 1

    async def test_pages_that_grow_too_old(self) -> None:
        async with FakeApiServer() as server:
            server.streaming = False
            put(server, *(f"s{number:04}" for number in range(700)))
            server.next(Fault(status=410, reason="Expired"), verb="continue")
            async with watching(server) as it:
                await it.asked("stream", "list", "list", "list", "watch")
                assert server.requests[2].query["continue"]
                assert server.requests[3].query.keys() == {"labelSelector", "fieldSelector"}
                assert it.status.objects == 700
                assert it.sink.said("gone") == []

    async def test_a_relist_is_not_older_than_what_is_known(self) -> None:
        async with FakeApiServer() as server:
            server.streaming = False
            put(server, "a", "b")
            async with watching(server) as it:
                await it.asked("stream", "list", "watch")
                version = str(server.store.version)
                server.store.delete("Service", "a")
                await it.see("b")
                server.next(Fault(status=410), verb="watch")
                server.drop()
                await it.asked("stream", "list", "watch", "watch", "stream", "list", "watch")
                query = server.requests[5].query
                assert int(query["resourceVersion"]) > int(version)
                assert query["resourceVersionMatch"] == "NotOlderThan"
                assert "limit" not in query

    async def test_a_list_of_a_version_the_server_does_not_know(self) -> None:
        async with FakeApiServer() as server:
            server.streaming = False
            put(server, "a")
            backup = server.store.backup()
            put(server, "b", "c", "d")
            async with watching(server) as it:
                await it.asked("stream", "list", "watch")
                server.store.restore(backup)
                server.next(Fault(status=410), verb="watch")
                server.drop()
                await it.listed(2)
                await it.sink.until(lambda: it.status.connected)
                await it.see("a")
                assert it.verbs[-5:] == ["stream", "list", "stream", "list", "watch"]
                assert server.requests[-2].query["resourceVersion"] == "0"

    @pytest.mark.parametrize("fault", [Fault(then="garbage"), Fault(then="drop"), Fault(status=500)])
    async def test_a_list_that_fails_is_tried_again(self, fault: Fault) -> None:
        async with FakeApiServer() as server:
            server.streaming = False
            put(server, "a")
            server.next(fault, verb="list")
            async with watching(server) as it:
                await it.asked("stream", "list", "stream", "list", "watch")
                assert it.sink.said("complete") == [("complete", "Service")]

    async def test_an_empty_list(self) -> None:
        async with FakeApiServer() as server:
            server.streaming = False
            server.next(
                Fault(status=200, body=b'{"metadata":{"resourceVersion":"1"},"items":null}'), verb="list"
            )
            async with watching(server) as it:
                await it.listed()
                assert it.sink.calls == [("complete", "Service")]

    async def test_a_server_that_does_not_know_the_field_selector(self) -> None:
        async with FakeApiServer() as server:
            server.service_fields = False
            put(server, "a")
            async with watching(server) as it:
                await it.listed()
                assert it.verbs == ["stream", "list", "stream"]
                assert "fieldSelector" not in server.requests[2].query
                assert "labelSelector" in server.requests[2].query


class TestBrokenObjects:
    @pytest.mark.parametrize("streaming", [True, False])
    async def test_one_harms_no_other_and_is_told_once(self, streaming: bool) -> None:
        async with FakeApiServer() as server:
            server.streaming = streaming
            put(server, "a", "c")
            server.store.put(service("b", port="http"))
            async with watching(server) as it:
                await it.listed()
                await it.see("a", "c")
                reason = "spec.ports[0].port: Expected `int`, got `str`"
                refusal = ("refused", "Service", "default/b", reason, "unknown")
                assert it.sink.said("refused") == [refusal]
                server.next(Fault(status=410), verb="watch")
                server.drop()
                await it.listed(2)
                assert it.sink.said("refused") == [refusal]
                server.store.put(service("b", port=[]))
                await it.sink.until(lambda: len(it.sink.said("refused")) == 2)
                put(server, "b")
                await it.see("a", "b", "c")

    async def test_what_was_known_of_it_stays(self) -> None:
        async with FakeApiServer() as server:
            put(server, "a", "b")
            async with watching(server) as it:
                await it.listed()
                server.store.put(service("a", port="http"))
                await it.sink.until(lambda: bool(it.sink.said("refused")))
                assert it.sink.said("refused")[0][-1] == "kept"
                server.next(Fault(status=410), verb="watch")
                server.drop()
                await it.listed(2)
                await it.see("a", "b")
                assert it.sink.said("gone") == []
                server.store.delete("Service", "a")
                await it.see("b")

    async def test_its_deletion_is_no_news_if_it_was_never_set(self) -> None:
        async with FakeApiServer() as server:
            server.store.put(service("a", port="http"))
            async with watching(server) as it:
                await it.listed()
                server.store.delete("Service", "a")
                put(server, "b")
                await it.see("b")
                assert it.sink.said("gone") == []
                assert it.status.errors == 0
                assert not it.reflector._objects._refused

    async def test_metadata_of_any_shape(self) -> None:
        lines = tuple(
            '{"type":"MODIFIED","object":' + text + "}"
            for text in (
                "{}",
                "[]",
                '{"metadata":null}',
                '{"metadata":{"name":""}}',
                '{"metadata":{"name":"x","labels":7}}',
                '{"metadata":{"name":{},"namespace":3,"resourceVersion":{}}}',
            )
        )
        async with FakeApiServer() as server:
            put(server, "a")
            async with watching(server) as it:
                await it.listed()
                server.next(Fault(then="lines", lines=lines))
                server.drop()
                await it.sink.until(lambda: len(it.sink.said("refused")) >= 3)
                put(server, "b")
                server.drop()
                await it.see("a", "b")
                assert it.status.lists == 1

    async def test_an_unknown_event_is_passed_over(self, caplog: pytest.LogCaptureFixture) -> None:
        async with FakeApiServer() as server, watching(server) as it:
            await it.listed()
            server.next(Fault(then="lines", lines=('{"type":"SURPRISE"}',)))
            server.drop()
            await it.sink.until(lambda: "unknown type SURPRISE" in caplog.text)
            put(server, "a")
            server.drop()
            await it.see("a")
            assert it.status.lists == 1


class TestPause:
    @pytest.mark.parametrize(("chance", "factor"), [(0.0, 1.0), (0.5, 1.5)])
    def test_backoff(self, chance: float, factor: float) -> None:
        backoff = Backoff(lambda: chance)
        delays = [backoff.next() / factor for _ in range(8)]
        assert delays == pytest.approx([0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30])
        backoff.reset()
        assert backoff.next() == pytest.approx(0.8 * factor)

    @pytest.mark.parametrize(("asked", "slept"), [(7, 7), (0, 1.2), (86400, 300)])
    async def test_retry_after_is_honoured_within_reason(self, asked: int, slept: float) -> None:
        async with FakeApiServer() as server:
            server.next(Fault(status=429, retry_after=asked))
            async with watching(server) as it:
                await it.listed()
                assert it.slept == [pytest.approx(slept)]

    async def test_a_good_spell_makes_the_next_failure_news(self) -> None:
        async with FakeApiServer() as server:
            server.next(*[Fault(status=503)] * 4)
            async with watching(server) as it:
                await it.listed()
                assert it.slept[-1] == pytest.approx(9.6)
                server.drop()
                await it.asked(*["stream"] * 5, "watch")
                assert it.slept[-1] == pytest.approx(19.2)
                it.time += 30
                server.drop()
                await it.asked(*["stream"] * 5, "watch", "watch")
                assert it.slept[-1] == pytest.approx(1.2)

    async def test_the_same_trouble_is_not_told_at_each_try(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        async with FakeApiServer() as server:
            server.forbidden.add("Service")
            async with watching(server) as it:
                await it.halted(299)
                assert len(caplog.records) == 1
                assert "services is forbidden" in caplog.text
                await it.halted(400)
                assert len(caplog.records) == 2
                server.forbidden.clear()
                it.halt_at = float("inf")
                it.gate.set()
                await it.listed()
                assert f"{server.url}{SERVICES.path}: the API server accepts the request again" in caplog.text

    async def test_what_is_logged_is_what_is_done(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        async with FakeApiServer() as server:
            server.next(Fault(status=503))
            async with watching(server) as it:
                await it.listed()
                where = f"{server.url}{SERVICES.path}"
                assert f"{where}: " in caplog.messages[0]
                assert caplog.messages[0].endswith("; nothing is known of it yet, retrying")
                server.drop()
                await it.asked("stream", "stream", "watch")
                assert [
                    t
                    for t in caplog.messages
                    if t.endswith("; what is known stays in force, resuming the watch")
                ]
                server.next(Fault(status=410), verb="watch")
                server.drop()
                await it.listed(2)
                (gone,) = [text for text in caplog.messages if "410" in text]
                assert gone.startswith(f"{where}: ")
                assert gone.endswith("; what is known stays in force, listing again")
                assert caplog.messages[-1] == f"{where}: the API server accepts the request again"


class TestAbsent:
    async def test_a_resource_that_was_never_there(self) -> None:
        async with FakeApiServer() as server:
            server.unserved.add("EndpointSlice")
            async with watching(server, SLICES) as it:
                await it.task
                assert it.sink.calls == []
                assert not it.status.connected

    async def test_a_resource_that_vanishes(self) -> None:
        async with FakeApiServer() as server:
            server.store.put({"kind": "EndpointSlice", "metadata": {"name": "a"}})
            async with watching(server, SLICES) as it:
                await it.listed()
                server.unserved.add("EndpointSlice")
                server.drop()
                await it.sink.until(lambda: it.status.errors > 3)
                await it.see("a")
                server.unserved.clear()
                await it.sink.until(lambda: it.status.connected)

    async def test_services_are_waited_for(self) -> None:
        async with FakeApiServer() as server:
            server.unserved.add("Service")
            async with watching(server) as it:
                await it.sink.until(lambda: it.status.errors > 3)
                server.unserved.clear()
                await it.listed()

    async def test_forget(self) -> None:
        async with FakeApiServer() as server:
            put(server, "a", "b")
            async with watching(server) as it:
                await it.listed()
                it.reflector.forget()
                assert it.sink.view == {}
                assert it.status.objects == 0
