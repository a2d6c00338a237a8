"""How the fake API server sends lists and watches, faults included."""

import asyncio
import gzip
from typing import Protocol

from aiohttp import web

from tests.fakes.lines import Fault, Lines, abort, bookmark, change, event
from tests.fakes.refusals import status
from tests.fakes.store import Kind, Selector, Store

COMPRESSED_BYTES = 128 * 1024
"""Larger lists are compressed for those who accept it."""

LAST_BOOKMARK_SECONDS = 2.0
"""So long before the end of a watch there is a bookmark more."""


async def send_list(request: web.Request, body: bytes, fault: Fault) -> web.StreamResponse:
    """Sends a list, compressed if it is large."""
    if not fault.then:
        headers = {}
        if len(body) > COMPRESSED_BYTES and "gzip" in request.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, 1)
            headers = {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
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


class Server(Protocol):
    """What a watch must know of its server; see `FakeApiServer`.

    Attributes:
        bookmarks: how often all watches were to send a bookmark at once.
        expirations: how often all watches were ended.
    """

    store: Store
    streaming: bool | None
    bookmark_seconds: float
    bookmarks: int
    expirations: int

    @property
    def cached(self) -> bool: ...


async def send_watch(
    server: Server,
    request: web.Request,
    kind: Kind,
    fits: Selector,
    position: int,
    fault: Fault,
) -> web.StreamResponse:
    """Sends a watch, until its timeoutSeconds.

    Args:
        server: whose.
        request: how it was asked for.
        kind: of the objects.
        fits: whether it concerns an object.
        position: the resourceVersion it begins after; 0 for what there is now.
        fault: what goes wrong.
    """
    query, store = request.query, server.store
    listing = query.get("sendInitialEvents") == "true"
    wants_bookmarks = query.get("allowWatchBookmarks") == "true"
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    lines = Lines(request, response, fault)
    if listing or not position:
        position = store.version
        await lines.send(
            event("ADDED", stored.data)
            for _, stored in sorted(store.objects[kind.kind].items())
            if fits(stored)
        )
        if listing and server.streaming and wants_bookmarks:
            await lines.send([bookmark(kind, position, ends_list=True)])
    loop = asyncio.get_running_loop()
    ends = loop.time() + float(query.get("timeoutSeconds", 1800))
    last = ends - LAST_BOOKMARK_SECONDS
    bookmarked, bookmarks, expirations = loop.time(), server.bookmarks, server.expirations
    while (now := loop.time()) < ends and expirations == server.expirations and not lines.over:
        if position < store.oldest:
            await lines.send([event("ERROR", _too_old(server, position))])
            break
        version = store.version
        changes = [change(c.before, c.after, fits) for c in store.since(kind.kind, position)]
        # A server whose history is older than the client's keeps silent until it has caught up.
        position = max(position, version)
        await lines.send(line for line in changes if line is not None)
        due = min(bookmarked + server.bookmark_seconds, last if bookmarked < last else ends)
        if bookmarks != server.bookmarks or now >= due:
            bookmarked, bookmarks = now, server.bookmarks
            if position == version and wants_bookmarks:
                await lines.send([bookmark(kind, version)])
        elif store.version <= position and expirations == server.expirations and not lines.over:
            await store.changed(max(0.0, min(ends, due) - loop.time()))
    return response


def _too_old(server: Server, version: int) -> bytes:
    """The words of the watch cache, or those of etcd."""
    message = (
        f"too old resource version: {version} ({server.store.oldest})"
        if server.cached
        else "The resourceVersion for the provided watch is too old."
    )
    return status(410, "Expired", message)
