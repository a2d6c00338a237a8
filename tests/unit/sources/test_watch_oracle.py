"""The reflector on what a real API server answered (tests/oracle/apiserver), byte for byte."""

from typing import Any

import msgspec
import pytest

from kubeproxy.sources.apiserver import SERVICE_CIDRS, SERVICES, SLICES
from kubeproxy.sources.errors import api_error
from kubeproxy.sources.watch import Resource
from tests.fakes.apiserver import FakeApiServer
from tests.fakes.lines import Fault
from tests.unit.sources.test_apiserver_oracle import NAMED, lines_of, version_in
from tests.unit.sources.test_watch import put, watching

NODE = Resource("Node", "/api/v1/nodes", fields="metadata.name=node1")


def answer(name: str) -> Fault:
    """A refusal as it was recorded."""
    exchange = NAMED[name]
    return Fault(
        status=exchange["status"],
        body=exchange["body"].encode(),
        retry_after=int(exchange["headers"].get("retry-after", 0)),
    )


def says(name: str) -> Fault:
    """The lines of a watch as they were recorded; after them the watch stays open."""
    return Fault(then="lines", lines=tuple(lines_of(NAMED[name])))


@pytest.mark.parametrize(
    ("name", "resource", "gone", "names"),
    [
        ("streaming-list-services", SERVICES, ["d", "d"], {"a", "b", "c", "ext", "kubernetes", "lb", "np"}),
        ("streaming-list-empty", SERVICES, [], set()),
        ("streaming-list-slices", SLICES, ["a-1"], {"a-1", "b-1", "c-1"}),
        ("watch-node", NODE, ["node1"], set()),
        ("watch-servicecidrs", SERVICE_CIDRS, ["more"], {"kubernetes"}),
    ],
)
async def test_lists_that_stream(name: str, resource: Resource, gone: list[str], names: set[str]) -> None:
    """What left the selector is gone, what returned is there; the list is complete before the changes."""
    lines = [msgspec.json.decode(line) for line in lines_of(NAMED[name])]
    async with FakeApiServer() as server:
        server.next(says(name))
        async with watching(server, resource) as it:
            await it.sink.until(lambda: it.status.version == str(version_in(lines[-1]["object"])))
            assert it.sink.names(resource.kind) == names
            assert [call[3] for call in it.sink.said("gone")] == gone
            objects = [line for line in lines if line["type"] != "BOOKMARK"]
            assert len(it.sink.calls) == len(objects) + 1
            listed = [line["type"] for line in lines].index("BOOKMARK")
            assert it.sink.calls[listed] == ("complete", resource.kind)
            assert (it.status.lists, it.status.errors, it.verbs) == (1, 0, ["stream"])
            assert not it.sink.said("refused")


@pytest.mark.parametrize(
    ("name", "pages"),
    [
        ("list-services", SERVICES),
        ("list-slices", SLICES),
        ("list-servicecidrs", SERVICE_CIDRS),
        ("list-node", NODE),
    ],
)
async def test_lists_by_page(name: str, pages: Resource) -> None:
    """Their items have neither kind nor apiVersion."""
    items = msgspec.json.decode(NAMED[name]["body"])["items"]
    async with FakeApiServer() as server:
        server.streaming = False
        server.next(answer(name), verb="list")
        async with watching(server, pages) as it:
            await it.listed()
            assert it.sink.names(pages.kind) == {item["metadata"]["name"] for item in items}
            assert not it.sink.said("refused")
            assert it.verbs[:2] == ["stream", "list"]


@pytest.mark.parametrize(
    ("name", "verbs", "keeps_version"),
    [
        ("watch-after-restart-old-version", ["stream", "watch", "stream"], True),
        ("watch-compacted-uncached", ["stream", "watch", "stream"], True),
        ("list-future-version", ["stream", "watch", "stream"], False),
        ("bad-version", ["stream", "watch", "stream"], False),
        ("no-such-group", ["stream", "watch", "stream"], True),
        ("bad-field-selector", ["stream", "watch", "stream"], True),
        ("wrong-token", ["stream", "watch", "watch"], True),
        ("no-token", ["stream", "watch", "watch"], True),
        ("no-right-watch", ["stream", "watch", "watch"], True),
    ],
)
async def test_refusals_of_a_watch(name: str, verbs: list[str], keeps_version: bool) -> None:
    """What is known stays; a new list, where one is due, is not older than what is known if the server knows that version."""
    async with FakeApiServer() as server:
        put(server, "a", "b")
        async with watching(server) as it:
            await it.listed()
            version = it.status.version
            server.next(says(name) if "lines" in NAMED[name] else answer(name), verb="watch")
            server.drop()
            await it.asked(*verbs)
            assert server.requests[2].query.get("resourceVersion") == (version if keeps_version else None)
            put(server, "c")
            await it.see("a", "b", "c")
            assert not it.sink.said("gone")


async def test_a_streaming_list_that_is_invalid_is_a_plain_one() -> None:
    async with FakeApiServer() as server:
        put(server, "a")
        server.next(answer("initial-events-without-match"))
        async with watching(server) as it:
            await it.see("a")
            await it.asked("stream", "list", "watch")


async def test_pages_that_are_too_old_are_listed_at_once() -> None:
    """The token for an inconsistent rest is not used."""
    async with FakeApiServer() as server:
        server.streaming = False
        put(server, *(f"s{i:03}" for i in range(600)))
        server.next(answer("page-after-compaction-uncached"), verb="continue")
        async with watching(server) as it:
            await it.listed()
            assert it.status.objects == 600
            asked = [r.query for r in server.asked(verb="list")]
            assert ["continue" in query for query in asked] == [False, True, False]
            assert "limit" not in asked[2]


async def test_a_server_that_stops_is_left_when_it_ends_the_watch() -> None:
    """Told to stop, it keeps watches open, and what it sends is heard; the next server goes on where it ended."""
    async with FakeApiServer() as server:
        put(server, "a")
        async with watching(server) as it:
            await it.listed()
            await server.terminate()
            put(server, "b")
            await it.see("a", "b")
            assert it.status.connected
            await server.stop()
            await it.sink.until(lambda: not it.status.connected)
            put(server, "c")
            await server.start()
            await it.see("a", "b", "c")
            assert it.status.lists == 1


async def test_a_watch_that_expires_is_resumed_at_its_last_bookmark() -> None:
    async with FakeApiServer() as server:
        put(server, "a")
        async with watching(server) as it:
            await it.listed()
            it.time += 60
            server.store.put({"kind": "Node", "metadata": {"name": "other"}})
            server.bookmark()
            await it.sink.until(lambda: it.status.version == str(server.store.version))
            server.expire()
            await it.asked("stream", "watch")
            assert server.requests[1].query["resourceVersion"] == str(server.store.version)
            assert it.slept == []


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("list-future-version", {"too_large": True, "retry_after": 1}),
        ("page-after-compaction-uncached", {"expired": True}),
        ("bad-version", {"bad_version": True}),
        ("wrong-token", {"reason": "Unauthorized"}),
        ("no-right-list", {"reason": "Forbidden"}),
        ("event-create-again", {"reason": "AlreadyExists"}),
        ("bad-field-selector", {"reason": "BadRequest"}),
        ("initial-events-without-match", {"reason": "Invalid"}),
    ],
)
def test_what_a_refusal_says(name: str, facts: dict[str, Any]) -> None:
    exchange = NAMED[name]
    error = api_error(exchange["body"].encode(), exchange["status"])
    usual = {
        "too_large": False,
        "retry_after": 0,
        "expired": False,
        "bad_version": False,
        "reason": error.reason,
    }
    assert {fact: getattr(error, fact) for fact in usual} == usual | facts
    assert error.status == exchange["status"]
    assert msgspec.json.decode(exchange["body"])["message"] in str(error)
