"""A Kubernetes API server for tests: real HTTP and TLS, lists and watches, and it misbehaves on request.

Serves Services, Endpoints, EndpointSlices, Nodes and ServiceCIDRs from a `Store`: lists (paged, selected,
compressed), watches (from a version, with bookmarks, as streaming lists), single objects, writing, and takes Events.
What a real server does wrong at its worst is scripted: `next` queues a `Fault` for the next request that fits;
`stop`/`start`, `drop`, `store.compact` and `store.restore` do the rest.

Alone: `python -m tests.fakes.apiserver --port 8080 --objects FILE...`; then `kubectl -s http://127.0.0.1:8080 get svc`.
"""

import argparse
import asyncio
import base64
import contextlib
import gzip
import re
import ssl
import sys
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec
from aiohttp import web

from tests.fakes.lines import Fault, Lines, abort, bookmark, change, event, status
from tests.fakes.store import KINDS, Kind, Selector, Store, Stored, selector


class Request(NamedTuple):
    """A request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    user: str
    kind: str
    verb: str


class RefusalError(Exception):
    """Ends a request with a Status object."""

    def __init__(self, status: int, reason: str, message: str, cause: str = "", retry_after: int = 0) -> None:
        super().__init__(message)
        self.status, self.reason, self.cause, self.retry_after = status, reason, cause, retry_after

    def response(self) -> web.Response:
        details = {"causes": [{"reason": self.cause}]} if self.cause else {}
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after else {}
        body = status(self.status, self.reason, str(self), details)
        return web.Response(body=body, status=self.status, content_type="application/json", headers=headers)


class FakeApiServer:
    """The server. Use as an async context manager, or `start` and `stop`.

    Attributes:
        store: the objects; change them with `store.put` and `store.delete`.
        requests: everything that was asked.
        events: the Events that were posted, as patches left them.
        tokens, basics: user by bearer token, and by "name:password"; with any of them or `authority` set, others get 401.
        forbidden: kinds that get 403.
        unserved: kinds that get 404, and their API groups with them.
        missing: kinds that get 404 although their API groups are there.
        streaming: False refuses sendInitialEvents as a server without the feature does; None ignores it.
        cached: True serves lists at resourceVersion 0 whole, whatever their limit, as a server's cache does.
        service_fields: False refuses the field selector spec.clusterIP, as servers before v1.31 do.
        bookmark_seconds: how often watches that want them get bookmarks.
    """

    def __init__(self, context: ssl.SSLContext | None = None, *, store: Store | None = None) -> None:
        self.store = store or Store()
        self.requests: list[Request] = []
        self.events: list[dict[str, Any]] = []
        self.tokens: dict[str, str] = {}
        self.basics: dict[str, str] = {}
        self.forbidden: set[str] = set()
        self.unserved: set[str] = set()
        self.missing: set[str] = set()
        self.streaming: bool | None = True
        self.cached = False
        self.service_fields = True
        self.bookmark_seconds = 30.0
        self.host = "127.0.0.1"
        self.port = 0
        self._context = context
        self._bookmarks = 0  # counts calls of `bookmark`
        self._faults: list[tuple[str, str, Fault]] = []
        self._pages: dict[str, list[Stored]] = {}
        self._transports: set[asyncio.BaseTransport] = set()
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http{'s' if self._context else ''}://{self.host}:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listens; again on the same port after `stop`."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        assert self._runner.server
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            self._runner.server, self.host, self.port, ssl=self._context, reuse_address=True
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Closes the port and all connections."""
        if self._runner is None or self._listener is None:
            return
        runner, self._runner = self._runner, None
        listener, self._listener = self._listener, None
        # asyncio forgets connections it accepted just before the port closes: they would hang for ever.
        for sock in listener.sockets:
            asyncio.get_running_loop().remove_reader(sock)
        for _ in range(5):
            await asyncio.sleep(0)
        listener.close()
        self.drop()
        await runner.cleanup()

    def next(self, *faults: Fault, kind: str = "", verb: str = "") -> None:
        """Queues faults, each for one request.

        Args:
            faults: what goes wrong, in order.
            kind: of the requests that take them; empty for any.
            verb: of these requests: list, continue (a further page), stream, watch, get, post, ...
        """
        self._faults += [(kind, verb, fault) for fault in faults]

    def drop(self) -> None:
        """Resets every connection with a request on it."""
        for transport in list(self._transports):
            transport.abort()  # type: ignore[attr-defined]

    def bookmark(self) -> None:
        """Sends a bookmark to every watch that wants them, now."""
        self._bookmarks += 1
        self.store.wake()

    def asked(self, kind: str = "", verb: str = "") -> list[Request]:
        """The requests of a kind and verb so far."""
        return [r for r in self.requests if kind in ("", r.kind) and verb in ("", r.verb)]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        if transport is None:
            return web.Response()
        self._transports.add(transport)
        try:
            return await self._answer(request)
        except RefusalError as e:
            return e.response()
        except ConnectionError:
            return web.Response()  # the client is gone, or was dropped
        finally:
            self._transports.discard(transport)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        kind, namespace, name = _parse(request.path)
        query = dict(request.query)
        verb = request.method.lower()
        if kind is not None and verb == "get" and not name:
            verb = "list" if query.get("watch") not in ("1", "true") else "watch"
            verb = "stream" if verb == "watch" and query.get("sendInitialEvents") == "true" else verb
        user = self._user(request)
        self.requests.append(
            Request(
                request.method,
                request.path,
                query,
                dict(request.headers),
                user or "",
                kind.kind if kind else "",
                verb,
            )
        )
        if user is None:
            raise RefusalError(401, "Unauthorized", "Unauthorized")
        fault = self._fault(kind.kind if kind else "", "continue" if "continue" in query else verb)
        if fault.status:
            if fault.body is not None:
                return web.Response(body=fault.body, status=fault.status)
            raise RefusalError(fault.status, fault.reason, fault.message, retry_after=fault.retry_after)
        if _EVENTS.fullmatch(request.path):
            return await self._take_event(request)
        if kind is None:
            return self._discovery(request.path)
        if kind.kind in self.unserved | self.missing:
            raise web.HTTPNotFound(text="404 page not found\n")
        if kind.kind in self.forbidden:
            raise RefusalError(
                403,
                "Forbidden",
                f'{kind.plural} is forbidden: User "{user}" cannot {verb} resource "{kind.plural}"',
            )
        if verb in ("watch", "stream"):
            return await self._watch(request, kind, namespace, query, fault)
        if verb == "list":
            return await self._list(request, kind, namespace, query, fault)
        return await self._single(request, kind, namespace, name)

    def _user(self, request: web.Request) -> str | None:
        """Who asks; None if that must be known and is not."""
        certificate = request.transport.get_extra_info("peercert") if request.transport else None
        if certificate:
            return next(str(value) for ((key, value),) in certificate["subject"] if key == "commonName")
        if not self.tokens and not self.basics and not (self._context and self._context.verify_mode):
            return "anonymous"
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        if scheme == "Bearer":
            return self.tokens.get(value)
        if scheme == "Basic":
            return self.basics.get(base64.b64decode(value).decode())
        return None

    def _fault(self, kind: str, verb: str) -> Fault:
        for number, (of_kind, of_verb, fault) in enumerate(self._faults):
            if of_kind in ("", kind) and of_verb in ("", verb):
                del self._faults[number]
                return fault
        return Fault()

    async def _take_event(self, request: web.Request) -> web.Response:
        """Creates an Event, or patches one; refuses what the validation of events.k8s.io/v1 would."""
        found = _EVENTS.fullmatch(request.path)
        assert found
        namespace, name = found.groups()
        given = msgspec.json.decode(await request.read())
        if request.method == "POST" and not name:
            if wrong := wrong_with(given, namespace):
                raise RefusalError(422, "Invalid", f"Event is invalid: {wrong}")
            self.events.append(given)
            return web.json_response(given, status=201)
        kind = "application/merge-patch+json"
        if request.method != "PATCH" or request.content_type != kind:
            raise RefusalError(415, "UnsupportedMediaType", f"the body of the request must be {kind}")
        wanted = {"name": name, "namespace": namespace}
        for i, stored in enumerate(self.events):
            if wanted.items() <= stored["metadata"].items():
                if wrong := wrong_with({**stored, **given}, namespace):
                    raise RefusalError(422, "Invalid", f"Event is invalid: {wrong}")
                self.events[i] = {**stored, **given}
                return web.json_response(self.events[i])
        raise RefusalError(404, "NotFound", f'events "{name}" not found')

    def _discovery(self, path: str) -> web.Response:
        served = [kind for kind in KINDS.values() if kind.kind not in self.unserved]
        groups = sorted({kind.group for kind in served} - {"v1"})
        answer: dict[str, Any]
        if path in ("/healthz", "/livez", "/readyz"):
            return web.Response(text="ok")
        if path == "/version":
            answer = {"major": "1", "minor": "36", "gitVersion": "v1.36.2", "platform": "linux/amd64"}
        elif path == "/api":
            answer = {"kind": "APIVersions", "versions": ["v1"]}
        elif path == "/apis":
            versions = [{"groupVersion": group, "version": group.partition("/")[2]} for group in groups]
            named = [
                {"name": v["groupVersion"].partition("/")[0], "versions": [v], "preferredVersion": v}
                for v in versions
            ]
            answer = {"kind": "APIGroupList", "apiVersion": "v1", "groups": named}
        elif resources := [kind for kind in served if kind.path == path]:
            answer = {
                "kind": "APIResourceList",
                "groupVersion": resources[0].group,
                "resources": [
                    {
                        "name": kind.plural,
                        "singularName": kind.kind.lower(),
                        "namespaced": kind.namespaced,
                        "kind": kind.kind,
                        "shortNames": ["svc"] if kind.kind == "Service" else [],
                        "verbs": ["create", "delete", "get", "list", "update", "watch"],
                    }
                    for kind in resources
                ],
            }
        else:
            raise web.HTTPNotFound(text="404 page not found\n")
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    async def _single(self, request: web.Request, kind: Kind, namespace: str, name: str) -> web.Response:
        if request.method in ("POST", "PUT"):
            obj = msgspec.json.decode(await request.read())
            if namespace:
                obj.setdefault("metadata", {})["namespace"] = namespace
            stored = self.store.put({"kind": kind.kind, **obj})
            status = 201 if request.method == "POST" else 200
            return web.Response(body=stored.data, status=status, content_type="application/json")
        found = self.store.objects[kind.kind].get((namespace if kind.namespaced else "", name))
        if found is None:
            raise RefusalError(404, "NotFound", f'{kind.plural} "{name}" not found')
        if request.method == "DELETE":
            self.store.delete(kind.kind, name, namespace)
        return web.Response(body=found.data, content_type="application/json")

    def _selector(self, query: dict[str, str], namespace: str) -> Selector:
        fields = query.get("fieldSelector", "")
        if "spec.clusterIP" in fields and not self.service_fields:
            raise RefusalError(
                400, "BadRequest", 'Unable to find "/v1, Resource=services": field label not supported'
            )
        if namespace:
            fields = f"{fields},metadata.namespace={namespace}"
        return selector(query.get("labelSelector", ""), fields)

    def _check_version(self, version: str) -> None:
        if version and int(version) > self.store.version:
            message = f"Too large resource version: {version}, current: {self.store.version}"
            raise RefusalError(504, "Timeout", message, cause="ResourceVersionTooLarge", retry_after=1)

    async def _list(
        self, request: web.Request, kind: Kind, namespace: str, query: dict[str, str], fault: Fault
    ) -> web.StreamResponse:
        fits = self._selector(query, namespace)
        limit = int(query.get("limit", 0))
        if token := query.get("continue"):
            version, start = (int(part) for part in token.split(":"))
            if version < self.store.oldest or token not in self._pages:
                raise RefusalError(410, "Expired", "The provided continue parameter is too old")
            found = self._pages[token]
        else:
            self._check_version(query.get("resourceVersion", ""))
            version, start = self.store.version, 0
            found = [stored for _, stored in sorted(self.store.objects[kind.kind].items()) if fits(stored)]
            if self.cached and query.get("resourceVersion") == "0":
                limit = 0
        end = start + limit if limit else len(found)
        metadata = {"resourceVersion": str(version)}
        if end < len(found):
            metadata["continue"] = f"{version}:{end}"
            self._pages[metadata["continue"]] = found
        body = b'{"kind":"%sList","apiVersion":"%s","metadata":%s,"items":[%s]}\n' % (
            kind.kind.encode(),
            kind.group.encode(),
            msgspec.json.encode(metadata),
            b",".join(stored.data for stored in found[start:end]),
        )
        return await self._send(request, body, fault)

    async def _send(self, request: web.Request, body: bytes, fault: Fault) -> web.StreamResponse:
        if not fault.then:
            headers = {}
            if len(body) > 128 * 1024 and "gzip" in request.headers.get("Accept-Encoding", ""):
                body = gzip.compress(body, 1)
                headers["Content-Encoding"] = "gzip"
            return web.Response(body=body, content_type="application/json", headers=headers)
        if fault.then == "garbage":
            return web.Response(body=body[: len(body) // 2] + b"<html>", content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        if fault.then == "stall":
            await asyncio.Event().wait()
        abort(request)
        return response

    async def _watch(
        self, request: web.Request, kind: Kind, namespace: str, query: dict[str, str], fault: Fault
    ) -> web.StreamResponse:
        fits = self._selector(query, namespace)
        asked = query.get("resourceVersion", "")
        listing = query.get("sendInitialEvents") == "true"
        if listing and self.streaming is False:
            raise RefusalError(
                422, "Invalid", "sendInitialEvents: Forbidden: needs the WatchList feature gate"
            )
        if listing:
            self._check_version(asked)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        lines = Lines(request, response, fault)
        position = int(asked or 0)
        if listing or not position:
            position = self.store.version
            await lines.send(
                event("ADDED", s.data) for _, s in sorted(self.store.objects[kind.kind].items()) if fits(s)
            )
            if listing and self.streaming:
                await lines.send([bookmark(kind, position, ends_list=True)])
        loop = asyncio.get_running_loop()
        ends = loop.time() + float(query.get("timeoutSeconds", 1800))
        bookmarked, bookmarks = loop.time(), self._bookmarks
        while (now := loop.time()) < ends and not lines.over:
            if position < self.store.oldest:
                message = f"too old resource version: {position} ({self.store.oldest})"
                await lines.send([event("ERROR", status(410, "Expired", message, {}))])
                break
            version = self.store.version
            changes = [change(c.before, c.after, fits) for c in self.store.since(kind.kind, position)]
            # A server whose history is older than the client's keeps silent until it has caught up.
            position = max(position, version)
            await lines.send(change for change in changes if change is not None)
            if bookmarks != self._bookmarks or now - bookmarked >= self.bookmark_seconds:
                bookmarked, bookmarks = now, self._bookmarks
                if position == version and query.get("allowWatchBookmarks") == "true":
                    await lines.send([bookmark(kind, version)])
            if self.store.version <= position and bookmarks == self._bookmarks and not lines.over:
                await self.store.changed(
                    max(0.0, min(ends, bookmarked + self.bookmark_seconds) - loop.time())
                )
        return response


_EVENTS = re.compile(r"/apis/events\.k8s\.io/v1/namespaces/([^/]+)/events(?:/([^/]+))?")
_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def wrong_with(event: dict[str, Any], namespace: str) -> str:
    """Which field of an Event an API server would refuse; "" for none."""
    about, series = (
        event["regarding"],
        event.get("series", {"count": 2, "lastObservedTime": event["eventTime"]}),
    )
    good = {
        "metadata.namespace": namespace
        == event["metadata"]["namespace"]
        == about.get("namespace", "default"),
        "metadata.name": re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", event["metadata"]["name"]),
        "eventTime": _MICRO_TIME.fullmatch(event["eventTime"]),
        "reportingController": event["reportingController"],
        "reportingInstance": 0 < len(event["reportingInstance"]) <= 128,
        "action": 0 < len(event["action"]) <= 128,
        "reason": 0 < len(event["reason"]) <= 128,
        "note": len(event["note"]) <= 1024,
        "type": event["type"] in {"Normal", "Warning"},
        "series.count": series["count"] >= 2,
        "series.lastObservedTime": _MICRO_TIME.fullmatch(series["lastObservedTime"]),
    }
    return next((field for field, fine in good.items() if not fine), "")


def _parse(path: str) -> tuple[Kind | None, str, str]:
    """Splits a path into kind, namespace and name."""
    for kind in KINDS.values():
        if path.startswith(f"{kind.path}/"):
            parts = path.removeprefix(f"{kind.path}/").split("/")
            namespace = ""
            if parts[0] == "namespaces" and len(parts) > 2:
                namespace, parts = parts[1], parts[2:]
            if parts[0] == kind.plural and len(parts) <= 2:
                return kind, namespace, parts[1] if len(parts) == 2 else ""
    return None, "", ""


def load(store: Store, path: Path) -> int:
    """Puts the objects of a YAML or JSON file (documents, and Lists in them); returns how many."""
    import yaml

    count = 0
    with path.open("rb") as file:
        for document in yaml.load_all(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            for obj in (document or {}).get("items", [document]):
                if obj and obj.get("kind") in KINDS:
                    store.put(obj)
                    count += 1
    return count


async def _serve(host: str, port: int, paths: list[Path]) -> None:
    server = FakeApiServer()
    server.host, server.port = host, port
    count = sum(load(server.store, path) for path in paths)
    async with server:
        print(f"serving {count} objects on {server.url}", flush=True)
        await asyncio.Event().wait()


def main(argv: list[str]) -> None:
    """Serves files until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tests.fakes.apiserver", description="A fake API server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    parser.add_argument("--objects", type=Path, nargs="+", default=[], help="YAML or JSON files of manifests")
    args = parser.parse_args(argv)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(args.host, args.port, args.objects))


if __name__ == "__main__":
    main(sys.argv[1:])
