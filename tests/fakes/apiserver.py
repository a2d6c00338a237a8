"""A Kubernetes API server for tests: real HTTP and TLS, lists and watches, and it misbehaves on request.

Serves Services, Endpoints, EndpointSlices, Nodes and ServiceCIDRs from a `Store`: lists (paged, selected,
compressed), watches (from a version, with bookmarks, as streaming lists), single objects, writing, and takes Events.
It is held against what a real kube-apiserver answered (tests/oracle/apiserver).

What a real server does wrong at its worst is scripted: `next` queues a `Fault` for the next request that fits;
`stop`/`start`, `terminate`, `drop`, `expire`, `store.compact` and `store.restore` do the rest.

Alone: `python -m tests.fakes.apiserver --port 8080 --objects FILE...`; then `kubectl -s http://127.0.0.1:8080 get svc`.
"""

import argparse
import asyncio
import base64
import contextlib
import re
import ssl
import sys
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec
from aiohttp import web

from tests.fakes import nodestatus, sentevents
from tests.fakes.answers import send_list, send_watch
from tests.fakes.discovery import discovery
from tests.fakes.lines import Fault, abort
from tests.fakes.lists import Lists
from tests.fakes.refusals import (
    RefusalError,
    bad_request,
    bad_version,
    forbidden,
    invalid,
    not_acceptable,
    not_found,
    too_large,
    unknown,
)
from tests.fakes.store import KINDS, Kind, Selector, Store, selector

ANONYMOUS = "system:anonymous"
_ACCEPTABLE = re.compile(r"json|yaml|protobuf|\*/\*")


class Request(NamedTuple):
    """A request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    user: str
    kind: str
    verb: str


class FakeApiServer:
    """The server. Use as an async context manager, or `start` and `stop`.

    Attributes:
        store: the objects; change them with `store.put` and `store.delete`.
        requests: everything that was asked.
        events: the Events that were posted, as patches left them.
        tokens, basics: user by bearer token, and by "name:password"; with any of them or `authority` set, others get 401.
        anonymous: True takes requests without credentials for those of the user ANONYMOUS; otherwise they get 401.
        powerless: users who may do nothing.
        forbidden: kinds that get 403.
        unserved: kinds that get 404, and their API groups with them.
        missing: kinds that get 404 although their API groups are there.
        streaming: False refuses sendInitialEvents as a server without the feature does; None ignores it.
        namespaces: those that exist, for Events; None for all.
        service_fields: False refuses the field selector spec.clusterIP, as servers before v1.31 do.
        bookmark_seconds: how often watches that want them get bookmarks; a real server sends one a minute.
        bookmarks, expirations: how often `bookmark` and `expire` were called.
    """

    def __init__(self, context: ssl.SSLContext | None = None, *, store: Store | None = None) -> None:
        self.store = store or Store()
        self.requests: list[Request] = []
        self.events: list[dict[str, Any]] = []
        self.tokens: dict[str, str] = {}
        self.basics: dict[str, str] = {}
        self.anonymous = False
        self.powerless: set[str] = set()
        self.forbidden: set[str] = set()
        self.unserved: set[str] = set()
        self.missing: set[str] = set()
        self.streaming: bool | None = True
        self.namespaces: set[str] | None = None
        self.service_fields = True
        self.bookmark_seconds = 30.0
        self.host = "127.0.0.1"
        self.port = 0
        self._context = context
        self.bookmarks = self.expirations = 0
        self._lists = Lists(self.store)
        self._faults: list[tuple[str, str, Fault]] = []
        self.transports: set[asyncio.BaseTransport] = set()
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None

    @property
    def cached(self) -> bool:
        """Whether it is a server with a watch cache, see `Lists`."""
        return self._lists.cached

    @cached.setter
    def cached(self, value: bool) -> None:
        self._lists.cached = value

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
        app.on_response_prepare.append(_mark)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        assert self._runner.server
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            self._runner.server, self.host, self.port, ssl=self._context, reuse_address=True
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    async def terminate(self) -> None:
        """Closes the port, as a server that is being stopped: open watches continue until `stop`."""
        if self._listener is None:
            return
        listener, self._listener = self._listener, None
        # asyncio forgets connections it accepted just before the port closes: they would hang for ever.
        for sock in listener.sockets:
            asyncio.get_running_loop().remove_reader(sock)
        for _ in range(5):
            await asyncio.sleep(0)
        listener.close()

    async def stop(self) -> None:
        """Closes the port and all connections."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        await self.terminate()
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
        for transport in list(self.transports):
            transport.abort()  # type: ignore[attr-defined]

    def bookmark(self) -> None:
        """Sends a bookmark to every watch that wants them, now."""
        self.bookmarks += 1
        self.store.wake()

    def expire(self) -> None:
        """Ends every watch, as after its timeoutSeconds."""
        self.expirations += 1
        self.store.wake()

    def asked(self, kind: str = "", verb: str = "") -> list[Request]:
        """The requests of a kind and verb so far."""
        return [r for r in self.requests if kind in ("", r.kind) and verb in ("", r.verb)]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        if transport is None:
            return web.Response()
        self.transports.add(transport)
        try:
            return await self._answer(request)
        except RefusalError as e:
            return e.response()
        except ConnectionError:
            return web.Response()  # the client is gone, or was dropped
        finally:
            self.transports.discard(transport)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        status = nodestatus.PATH.fullmatch(request.path)
        kind, namespace, name = (KINDS["Node"], "", status[1]) if status else _parse(request.path)
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
        if not _ACCEPTABLE.search(request.headers.get("Accept", "*/*")):
            raise not_acceptable()
        fault = self._fault(kind.kind if kind else "", "continue" if "continue" in query else verb)
        if fault.status:
            if fault.body is not None:
                headers = {"Retry-After": str(fault.retry_after)} if fault.retry_after else {}
                return web.Response(
                    body=fault.body, status=fault.status, headers=headers, content_type=fault.content_type
                )
            raise RefusalError(fault.status, fault.reason, fault.message, retry_after=fault.retry_after)
        event = _EVENT.fullmatch(request.path)
        if event:
            kind, namespace, name = sentevents.EVENTS, event[1], event[2] or ""
        if kind is None:
            return discovery(request.path, self.unserved)
        if kind.kind in self.unserved | self.missing:
            raise unknown()
        if user in self.powerless or kind.kind in self.forbidden:
            action = {"post": "create", "put": "update", "stream": "watch"}.get(verb, verb)
            raise forbidden(user, action, kind, namespace, name)
        if event:
            answer = await sentevents.take(request, self.events, namespace, name, self.namespaces)
            return abort(request) if fault.then == "drop" else answer
        if status:
            return await nodestatus.take(request, self.store, name)
        if verb in ("watch", "stream"):
            return await self._watch(request, kind, namespace, query, fault)
        if verb == "list":
            if "continue" not in query:
                self._check_version(_version(query))
            body = self._lists.page(kind, self._selector(kind, query, namespace), query)
            return await send_list(request, body, fault)
        return await self._single(request, kind, namespace, name)

    def _user(self, request: web.Request) -> str | None:
        """Who asks; None if that must be known and is not."""
        certificate = request.transport.get_extra_info("peercert") if request.transport else None
        if certificate:
            return next(str(value) for ((key, value),) in certificate["subject"] if key == "commonName")
        if not self.tokens and not self.basics and not (self._context and self._context.verify_mode):
            return "anonymous"
        if self.anonymous and "Authorization" not in request.headers:
            return ANONYMOUS
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
            raise not_found(kind, name)
        if request.method == "DELETE":
            self.store.delete(kind.kind, name, namespace)
        return web.Response(body=found.data, content_type="application/json")

    def _selector(self, kind: Kind, query: dict[str, str], namespace: str) -> Selector:
        fields = query.get("fieldSelector", "")
        if "spec.clusterIP" in fields and not self.service_fields:
            raise bad_request('Unable to find "/v1, Resource=services": field label not supported')
        try:
            found = selector(query.get("labelSelector", ""), fields)
        except ValueError as e:
            raise bad_request(str(e)) from None
        for field, _, _ in found.fields:
            if field not in kind.fields:
                raise bad_request(f"field label not supported: {field}")
        if namespace:
            found = found._replace(fields=(*found.fields, ("metadata.namespace", "=", namespace)))
        return found

    def _check_version(self, version: int) -> None:
        if version > self.store.version:
            raise too_large(version, self.store.version)

    async def _watch(
        self, request: web.Request, kind: Kind, namespace: str, query: dict[str, str], fault: Fault
    ) -> web.StreamResponse:
        version, fits = _version(query), self._selector(kind, query, namespace)
        if query.get("sendInitialEvents") == "true":
            field = "resourceVersionMatch"
            options = {"group": "meta.k8s.io", "kind": "ListOptions"}
            message = "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            if self.streaming is False:
                field = "sendInitialEvents"
                message = "Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
            if self.streaming is False or query.get(field) != "NotOlderThan":
                raise invalid('ListOptions.meta.k8s.io ""', options, field, "FieldValueForbidden", message)
            self._check_version(version)
        return await send_watch(self, request, kind, fits, version, fault)


_EVENT = re.compile(r"/apis/events\.k8s\.io/v1/namespaces/([^/]+)/events(?:/([^/]+))?")


async def _mark(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["Cache-Control"] = "no-cache, private"


def _version(query: dict[str, str]) -> int:
    """The resourceVersion a request names; 0 for any."""
    given = query.get("resourceVersion", "")
    if given and not given.isdecimal():
        raise bad_version(given)
    return int(given or 0)


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
    count = 0
    for document in _documents(path):
        for obj in (document or {}).get("items", [document]):
            if obj and obj.get("kind") in KINDS:
                store.put(obj)
                count += 1
    return count


def _documents(path: Path) -> list[Any]:
    if path.suffix == ".json":  # a YAML reader takes ten times as long
        return [msgspec.json.decode(path.read_bytes())]
    import yaml

    with path.open("rb") as file:
        return list(yaml.load_all(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


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
