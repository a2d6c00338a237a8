"""The fake API server answers as a real one did (tests/oracle/apiserver), request by request.

Compared are status, the headers a client may look at, bodies, and of watches the lines, their order and how they end. The fake
is brought to each exchange's resourceVersion first, because a real server's grows by objects that the fake has not. Watches
are told when to go on, by `bookmark`, `expire` and `drop`: no time passes.
"""

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import aiohttp
import msgspec
import pytest
from yarl import URL

from tests.fakes.apiserver import FakeApiServer

EXCHANGES: list[dict[str, Any]] = msgspec.json.decode(
    Path(__file__).parents[2].joinpath("oracle/apiserver/exchanges.json").read_bytes()
)
NAMED = {exchange["name"]: exchange for exchange in EXCHANGES}
NOT_ASKED_FOR = {"accept-table", "accept-protobuf", "protobuf-large", "protobuf-large-gzip"}
"""Our client accepts JSON objects only, and the fake knows no other form."""

HEADERS = (
    "cache-control",
    "content-type",
    "content-encoding",
    "vary",
    "retry-after",
    "x-content-type-options",
)
MANY = 300
"""Services named many-0 and so on, which made the lists of the last exchanges long."""

PATIENCE = 60.0


def plain(value: Any) -> Any:
    """A body or a line without what only a real server has, or what its clock and its counters decide."""
    if isinstance(value, dict):
        return {
            key: _token(item) if key == "continue" else plain(item)
            for key, item in value.items()
            if key not in {"managedFields", "uid", "creationTimestamp"}
        }
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"\d{3,}", "N", value) if "version" in value else value
    return value


def _token(token: str) -> dict[str, Any]:
    """What a continue token says; the slash it may begin with is the watch cache's."""
    found = msgspec.json.decode(
        base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)), type=dict[str, Any]
    )
    return {**found, "start": found["start"].lstrip("/")}


def lines_of(exchange: dict[str, Any]) -> list[str]:
    """The lines of a watch."""
    if "lines" in exchange:
        return [line["line"] for line in exchange["lines"]]
    body = exchange.get("body")
    return body.splitlines() if isinstance(body, str) and body.startswith('{"type"') else []


def is_watch(exchange: dict[str, Any]) -> bool:
    return "lines" in exchange or bool(lines_of(exchange))


def version_in(obj: dict[str, Any]) -> int:
    return int(obj["metadata"]["resourceVersion"])


def version_of(exchange: dict[str, Any]) -> int:
    """The server's resourceVersion when it answered, as far as the answer shows; 0 if it does not."""
    if is_watch(exchange):
        decoded = map(msgspec.json.decode, lines_of(exchange))
        return next((version_in(d["object"]) for d in decoded if first(d)), 0)
    found = re.match(r'\{"kind":"\w+List".*?"resourceVersion":"(\d+)"', exchange.get("body") or "")
    return int(found[1]) if found else 0


def first(line: dict[str, Any]) -> bool:
    """Whether a line ends the list that a watch begins with."""
    return "annotations" in line["object"]["metadata"] and line["type"] == "BOOKMARK"


class Rig:
    """The fake, in the state in which the real server was."""

    def __init__(self, server: FakeApiServer, http: aiohttp.ClientSession) -> None:
        self.server, self.http = server, http
        self.token = ""  # the last continue token of the fake
        server.tokens = {"admin-token": "admin", "poor-token": "poor"}
        server.anonymous, server.powerless = True, {"poor", "system:anonymous"}
        server.cached, server.namespaces = True, {"default"}
        objects = []
        for name in ("list-services-rv0", "list-slices", "list-servicecidrs", "list-node"):
            listed = msgspec.json.decode(NAMED[name]["body"])
            objects += [{"kind": listed["kind"].removesuffix("List"), **item} for item in listed["items"]]
        for obj in sorted(objects, key=version_in):
            server.store.version = version_in(obj) - 1
            server.store.put(obj)

    async def before(self, name: str) -> None:
        """What happened to the real server before an exchange."""
        store = self.server.store
        match name:
            case "list-gzip":
                (line,) = (line for line in lines_of(NAMED["server-stops"]) if '"many-99"' in line)
                recorded = msgspec.json.decode(line)["object"]
                start = version_in(recorded) - 99
                for number in range(MANY):
                    metadata = {**recorded["metadata"], "name": f"many-{number}"}
                    store.version = start + number - 1
                    store.put({**recorded, "metadata": metadata})
            case "watch-compacted":
                for line in map(msgspec.json.decode, lines_of(NAMED[name])):
                    self.happens(line)
            case "watch-after-restart-old-version":
                await self.server.stop()
                store.version = 888
                store.compact()
                await self.server.start()
            case "page-before-compaction-uncached":
                self.server.cached = False
            case "page-after-compaction-uncached":
                store.version += 1
                store.compact()

    def happens(self, line: dict[str, Any]) -> None:
        """What a line of a watch tells."""
        obj, store = line["object"], self.server.store
        store.version = version_in(obj) - 1
        key = obj["metadata"].get("namespace", ""), obj["metadata"]["name"]
        if line["type"] != "DELETED":
            store.put(obj)
        elif self.leaves(line):
            obj["metadata"]["labels"] |= {"service.kubernetes.io/service-proxy-name": "other"}
            store.put(obj)
        else:
            store.delete(obj["kind"], key[1], key[0])

    @staticmethod
    def leaves(line: dict[str, Any]) -> bool:
        """Whether an object was not deleted, but got the label of another proxy: it is back soon."""
        obj = line["object"]
        return bool(obj["metadata"]["name"] == "d" and obj["metadata"]["resourceVersion"] == "233")

    def request(self, exchange: dict[str, Any]) -> Any:
        """Asks what the real server was asked."""
        asked = exchange["request"]
        split = urlsplit(asked["path"])
        query = dict(parse_qsl(split.query))
        if len(query.get("continue", "")) > 3:
            query["continue"] = self.token
        if "timeoutSeconds" in query:
            query["timeoutSeconds"] = "3600"
        headers = {"Authorization": "Bearer admin-token", "Accept-Encoding": "identity", **asked["headers"]}
        headers = {key: value for key, value in headers.items() if value is not None}
        url = URL(self.server.url + split.path).with_query(query)
        body = msgspec.json.encode(asked["body"]) if "body" in asked else None
        headers |= {"Content-Type": "application/json"} if body and "Content-Type" not in headers else {}
        return self.http.request(asked["method"], url, headers=headers, data=body)

    async def compare(self, exchange: dict[str, Any]) -> None:
        await self.before(exchange["name"])
        self.server.store.version = max(self.server.store.version, version_of(exchange))
        async with self.request(exchange) as response:
            assert response.status == exchange["status"]
            assert {name: response.headers.get(name) for name in HEADERS} == {
                name: exchange["headers"].get(name) for name in HEADERS
            }
            if is_watch(exchange):
                assert response.headers["Transfer-Encoding"] == "chunked"
                await self.compare_watch(exchange, response)
                return
            body = await response.read()
        if response.content_type != "application/json":
            assert body.decode() == exchange["body"]
            return
        ours = msgspec.json.decode(body)
        self.token = ours.get("metadata", {}).get("continue", self.token)
        self.compare_body(exchange, ours)

    def compare_body(self, exchange: dict[str, Any], ours: Any) -> None:
        try:
            theirs = msgspec.json.decode(exchange["body"])
        except (KeyError, TypeError, msgspec.DecodeError):  # too long to be recorded
            assert ours["kind"] == "ServiceList"
            assert len(ours["items"]) == MANY + 9
            return
        if theirs.get("kind") == "Event":  # the fake keeps Events as they were sent
            ours = {key: value for key, value in ours.items() if value != ""}
            theirs = {key: value for key, value in theirs.items() if not key.startswith("deprecated")}
            del theirs["metadata"]["resourceVersion"]
        assert plain(ours) == plain(theirs)

    async def compare_watch(self, exchange: dict[str, Any], response: aiohttp.ClientResponse) -> None:
        lines = self.lines(response)
        recorded = [msgspec.json.decode(line) for line in lines_of(exchange)]
        listed = next((i for i, line in enumerate(recorded) if first(line)), None)
        happening = listed is not None and "lines_in_all" not in exchange
        for number, theirs in enumerate(recorded):
            if number == 3 and "lines_in_all" in exchange:
                for _ in range(exchange["lines_in_all"] - len(recorded)):
                    await anext(lines)
            if theirs["type"] == "BOOKMARK" and not first(theirs):
                version = max(self.server.store.version, version_in(theirs["object"]))
                self.server.store.version = version
                theirs["object"]["metadata"]["resourceVersion"] = str(version)
                self.server.bookmark()
            elif happening and listed is not None and number > listed:
                self.happens(msgspec.json.decode(lines_of(exchange)[number]))
            assert plain(await anext(lines)) == plain(theirs)
        match exchange.get("end", "ended by the server").partition(":")[0]:
            case "ended by the server":
                if not recorded or recorded[-1]["type"] != "ERROR":
                    self.server.expire()
                assert [line async for line in lines] == []
            case "still open":
                await self.server.terminate()
                self.server.bookmark()
                assert (await anext(lines))["type"] == "BOOKMARK"
            case "broken":
                self.server.drop()
                with pytest.raises(aiohttp.ClientPayloadError):
                    await anext(lines)

    @staticmethod
    async def lines(response: aiohttp.ClientResponse) -> AsyncIterator[Any]:
        buffer = b""
        async for chunk in response.content.iter_any():
            *whole, buffer = (buffer + chunk).split(b"\n")
            for line in whole:
                yield msgspec.json.decode(line)


async def test_the_fake_answers_as_a_real_api_server() -> None:
    """One after another, for each exchange finds what the ones before left."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(FakeApiServer())
        http = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=True))
        rig = Rig(server, http)
        wrong = []
        for exchange in EXCHANGES:
            if exchange["name"] not in NOT_ASKED_FOR:
                try:
                    async with asyncio.timeout(PATIENCE):
                        await rig.compare(exchange)
                except Exception as e:
                    e.add_note(f"in the exchange {exchange['name']}: {exchange['note']}")
                    wrong.append(e)
        if wrong:
            raise ExceptionGroup("differences", wrong)
