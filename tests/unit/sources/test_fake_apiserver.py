"""The fake API server: what other tests rely on."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from tests.fakes import answers
from tests.fakes.apiserver import FakeApiServer
from tests.fakes.store import Store, selector

SERVICES = "/api/v1/services"


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def ask(http: aiohttp.ClientSession, server: FakeApiServer, path: str, **query: Any) -> tuple[int, Any]:
    async with http.get(
        server.url + path, params={key: str(value) for key, value in query.items()}
    ) as response:
        return response.status, msgspec.json.decode(await response.read())


async def watch(
    http: aiohttp.ClientSession, server: FakeApiServer, **query: Any
) -> list[tuple[str, str | None]]:
    """All events of a watch of one second, as (type, name or version)."""
    params = {"watch": "1", "timeoutSeconds": "1", "allowWatchBookmarks": "true"} | query
    events = []
    async with http.get(server.url + SERVICES, params=params) as response:
        async for line in response.content:
            event = msgspec.json.decode(line)
            metadata = event["object"].get("metadata", {})
            events.append((event["type"], metadata.get("name") or metadata.get("resourceVersion")))
    return events


def service(name: str, **labels: str) -> dict[str, Any]:
    return {
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {"clusterIP": "10.0.0.1"},
    }


@pytest.mark.parametrize(
    ("labels", "fields", "names"),
    [
        ("", "", "abc"),
        ("!x", "", "c"),
        ("x", "", "ab"),
        ("x=1", "", "a"),
        ("x!=1", "", "bc"),
        ("x==2,x", "", "b"),
        ("", "metadata.name=b", "b"),
        ("x", "metadata.name!=b", "a"),
        ("", "spec.clusterIP!=10.0.0.1", ""),
    ],
)
def test_selectors(labels: str, fields: str, names: str) -> None:
    store = Store()
    for obj in (service("a", x="1"), service("b", x="2"), service("c")):
        store.put(obj)
    assert "".join(stored.key[1] for stored in store.select("Service", labels, fields)) == names
    assert not selector(labels, fields)(None)


async def test_pages_show_one_moment(http: aiohttp.ClientSession) -> None:
    async with FakeApiServer() as server:
        for name in "abcde":
            server.store.put(service(name))
        _, page = await ask(http, server, SERVICES, limit=2)
        version, token = page["metadata"]["resourceVersion"], page["metadata"]["continue"]
        server.store.delete("Service", "c")
        names = [item["metadata"]["name"] for item in page["items"]]
        while token:
            _, page = await ask(http, server, SERVICES, **{"limit": 2, "continue": token})
            names += [item["metadata"]["name"] for item in page["items"]]
            assert page["metadata"]["resourceVersion"] == version
            token = page["metadata"].get("continue")
        assert names == list("abcde")
        _, page = await ask(http, server, SERVICES, limit=2)
        server.store.compact()
        server.store.put(service("f"))
        server.store.compact()
        status, answer = await ask(http, server, SERVICES, **{"continue": page["metadata"]["continue"]})
        assert (status, answer["reason"]) == (410, "Expired")


async def test_watches(http: aiohttp.ClientSession) -> None:
    async with FakeApiServer() as server:
        server.store.put(service("a"))
        start = str(server.store.version)
        server.store.put(service("b"))
        server.store.put(service("a", x="1"))
        server.store.delete("Service", "b")
        now = str(server.store.version)
        following, selected, listing, waiting = await asyncio.gather(
            watch(http, server, resourceVersion=start),
            watch(http, server, resourceVersion=start, labelSelector="!x"),
            watch(http, server, sendInitialEvents="true", resourceVersionMatch="NotOlderThan"),
            watch(http, server, resourceVersion="1000"),
        )
        assert following == [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]
        assert selected == [("ADDED", "b"), ("DELETED", "a"), ("DELETED", "b")]
        assert listing == [("ADDED", "a"), ("BOOKMARK", now)]
        assert waiting == []
        server.store.compact()
        assert await watch(http, server, resourceVersion=start) == [("ERROR", None)]


async def test_versions_it_does_not_know(http: aiohttp.ClientSession) -> None:
    async with FakeApiServer() as server:
        listing = {"watch": "1", "sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        for query in ({}, listing):
            status, answer = await ask(http, server, SERVICES, resourceVersion=99, **query)
            (cause,) = answer["details"]["causes"]
            assert (status, cause["reason"]) == (504, "ResourceVersionTooLarge")


async def test_the_last_bookmark_comes_before_the_end(
    http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "LAST_BOOKMARK_SECONDS", 3599.9)
    params = {"watch": "1", "timeoutSeconds": "3600", "resourceVersion": "1", "allowWatchBookmarks": "true"}
    async with FakeApiServer() as server, http.get(server.url + SERVICES, params=params) as response:
        assert msgspec.json.decode(await response.content.readline())["type"] == "BOOKMARK"
        server.expire()
        assert await response.content.readline() == b""


async def test_a_server_that_is_told_to_stop_keeps_watches(http: aiohttp.ClientSession) -> None:
    params = {"watch": "1", "resourceVersion": "1"}
    async with FakeApiServer() as server, http.get(server.url + SERVICES, params=params) as response:
        await server.terminate()
        with pytest.raises(aiohttp.ClientConnectorError):
            await ask(http, server, SERVICES)
        server.store.put(service("a"))
        assert msgspec.json.decode(await response.content.readline())["type"] == "ADDED"
        await server.stop()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.readline()


async def test_a_rest_that_is_inconsistent(http: aiohttp.ClientSession) -> None:
    """The token that comes with 410 lists what is behind the pages before, as it is now."""
    async with FakeApiServer() as server:
        for name in "abcd":
            server.store.put(service(name))
        _, page = await ask(http, server, SERVICES, limit=2)
        server.store.delete("Service", "c")
        server.store.put(service("e"))
        server.store.compact()
        status, answer = await ask(http, server, SERVICES, **{"continue": page["metadata"]["continue"]})
        assert status == 410
        _, page = await ask(http, server, SERVICES, **{"continue": answer["metadata"]["continue"]})
        assert [item["metadata"]["name"] for item in page["items"]] == ["d", "e"]
        assert page["metadata"]["resourceVersion"] == str(server.store.version)


async def test_writing(http: aiohttp.ClientSession) -> None:
    path = "/api/v1/namespaces/shop/services"
    async with FakeApiServer() as server:
        async with http.post(server.url + path, json={"metadata": {"name": "web"}, "spec": {}}) as response:
            assert response.status == 201
        async with http.put(
            f"{server.url}{path}/web", json={"metadata": {"name": "web"}, "spec": {"x": 1}}
        ) as response:
            assert response.status == 200
        _, found = await ask(http, server, f"{path}/web")
        assert (found["kind"], found["metadata"]["namespace"], found["spec"]) == ("Service", "shop", {"x": 1})
        assert len((await ask(http, server, path))[1]["items"]) == 1
        assert (await ask(http, server, "/api/v1/namespaces/other/services"))[1]["items"] == []
        async with http.delete(f"{server.url}{path}/web") as response:
            assert response.status == 200
        assert (await ask(http, server, f"{path}/web"))[0] == 404


async def test_alone(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "kind: Service\nmetadata: {name: a}\nspec: {}\n---\nkind: Pod\nmetadata: {name: p}\n---\n"
        "kind: List\nitems:\n- {kind: Service, metadata: {name: b, created: 2026-01-01}, spec: {}}\n"
    )
    (tmp_path / "b.json").write_text('{"kind": "Node", "metadata": {"name": "n"}}')
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *(
            "-m",
            "tests.fakes.apiserver",
            "--port",
            "0",
            "--objects",
            tmp_path / "a.yaml",
            tmp_path / "b.json",
        ),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    try:
        assert process.stdout
        said = (await process.stdout.readline()).decode().split()
        assert said[:4] == ["serving", "3", "objects", "on"]
        async with http.get(said[4] + SERVICES) as response:
            items = msgspec.json.decode(await response.read())["items"]
        assert [item["metadata"]["name"] for item in items] == ["a", "b"]
    finally:
        process.terminate()
        await process.wait()
