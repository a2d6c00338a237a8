"""Follows one kind of object by list and watch of the Kubernetes API.

A round is one watch. The first is a streaming list (KEP-3157): the server sends the existing objects, a
bookmark that ends the list, and then the changes. If the server refuses that, a plain list is requested.
After a watch that failed or ended, the next round resumes at the last resourceVersion seen; only if the
server cannot do that (410, an ERROR event, a history other than the known one) there is a new list.

During a new list all objects stay; those that were deleted are known at its end. No periodic resync is
needed: the sink receives states, not changes, and compares them itself.

The server's bookmarks, about one a minute, also serve as heartbeat. A watch without data is restarted; if the
next has none either, the server may have been restored from a backup: it never answers a watch from a version
that it has not reached (kubernetes#107457). Then a new list without a version is requested.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec import Struct

from kubeproxy.api.jsontext import BROKEN, reason
from kubeproxy.log import V2, V5, V6
from kubeproxy.sources.backoff import Backoff
from kubeproxy.sources.base import Sink, Status
from kubeproxy.sources.client import Client
from kubeproxy.sources.errors import ApiError, SilentError, UnreachableError, api_error
from kubeproxy.sources.events import Page, decode_event, decode_head, decode_page, older
from kubeproxy.sources.known import KnownObjects

log = logging.getLogger(__name__)

PAGE: Final = 500
_GOOD_SPELL: Final = 30.0
_LONGEST_RETRY_AFTER: Final = 300.0
_REPEAT_MESSAGE: Final = 300.0
_TRANSIENT: Final = frozenset({401, 403, 408, 429, 502, 503, 504})
"""Statuses after which the watch can resume at the same version."""


class Resource(Struct, frozen=True, gc=False):
    """What to list and watch.

    Attributes:
        kind: the Kubernetes kind, one of `api.types.KINDS`.
        path: of its collection, over all namespaces.
        labels: label selector, or empty.
        fields: field selector, or empty.
        fields_optional: the field selector only saves traffic, and is omitted if the server does not support
            it.
        absent: statuses that mean that the server does not have this resource at all.
    """

    kind: str
    path: str
    labels: str = ""
    fields: str = ""
    fields_optional: bool = False
    absent: frozenset[int] = frozenset()


class Timing(Struct, frozen=True, gc=False):
    """Clock, timeouts and random numbers, so that tests can replace them.

    Attributes:
        now: monotonic clock, in seconds.
        sleep: waits for seconds.
        random: gives numbers from 0 up to 1.
        watch: shortest life of a watch in seconds; the longest is twice that.
        first_event: seconds until the first event of a streaming list, and between its events.
        heartbeat: seconds without data after which a watch of a server that sends bookmarks (one a minute)
            fails.
    """

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    random: Callable[[], float] = random.random
    watch: float = 300.0
    first_event: float = 30.0
    heartbeat: float = 150.0


class Reflector:
    """Reports the objects of one kind to a sink."""

    def __init__(
        self,
        resource: Resource,
        client: Client,
        sink: Sink,
        complete: Callable[[], None],
        timing: Timing = Timing(),  # noqa: B008 immutable
    ) -> None:
        """Prepares; `run` begins.

        Args:
            resource: what to watch.
            client: the API server.
            sink: receives the objects.
            complete: called once, after the first list was reported completely.
            timing: clock, timeouts and random numbers.
        """
        self.status = Status(resource.kind)
        self._resource = resource
        self._fields = resource.fields
        self._client = client
        self._objects = KnownObjects(resource.kind, sink)
        self._complete = complete
        self._timing = timing
        self._backoff = Backoff(timing.random)
        self._version = ""
        self._resumable = False
        self._bookmarks = False
        self._silent = 0
        self._connected_at: float | None = None
        self._reported = ("", 0.0)
        self._recovered = ""

    async def run(self) -> None:
        """Reports until cancelled; returns only if the server never had the resource (`Resource.absent`)."""
        while True:
            pause = 0.0
            self._connected_at = None
            try:
                await self._round()
                continue
            except ApiError as e:
                if e.status in self._resource.absent and not self.status.lists:
                    return
                self._judge(e)
                trouble, pause, recovered = str(e), e.retry_after, "the API server accepts the request again"
            except UnreachableError as e:
                trouble, recovered = str(e), "the API server answers again"
            except Exception as e:
                log.exception("%(resource)s: unexpected error, listing again", {"resource": self._where})
                self._resumable = False
                trouble, recovered = repr(e), "the watch is back"
            finally:
                self.status.connected = False
            await self._pause(trouble, pause, recovered)

    @property
    def _where(self) -> str:
        """The collection's URL, for messages."""
        return f"{self._client.server}{self._resource.path}"

    def forget(self) -> None:
        """Reports everything that was set as gone."""
        self._objects.clear()
        self.status.objects = 0

    async def _round(self) -> None:
        """One watch, with a list before it if one is due. Returns when the watch ended normally."""
        if self._resumable:
            await self._watch(listing=False)
            return
        try:
            await self._watch(listing=True)
        except SilentError:
            if self._resumable:
                raise
            await self._list_pages()  # a server too old to know streaming lists never ends one
        except ApiError as e:
            if self._resumable or e.status not in {400, 422}:
                raise
            log.log(
                V5,
                "%(resource)s: no streaming list (%(err)s), requesting a plain one",
                {"resource": self._where, "err": e},
            )
            await self._list_pages()

    async def _watch(self, *, listing: bool) -> None:
        timing = self._timing
        seconds = timing.watch * (1 + timing.random())
        query = {
            **self._query(),
            "watch": "1",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, int(seconds))),
        }
        if self._version:
            query["resourceVersion"] = self._version
        if listing:
            query |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        began, silent = timing.now(), True
        async with self._client.stream(self._resource.path, query, timing.first_event) as stream:
            self._connected()
            if listing:
                self._objects.begin_list()
            try:
                while True:
                    stream.silence = self._patience(seconds, listing=listing)
                    lines = await stream.lines()
                    if not lines:
                        break
                    self._silent, silent = 0, False
                    self.status.received = timing.now()
                    for line in lines:
                        listing = self._handle(line, listing=listing)
                    await asyncio.sleep(0)
            except SilentError:
                self._fell_silent(listing=listing)
                raise
        if listing:
            raise UnreachableError("the server ended the streaming list before it was complete")
        if timing.now() - began < 1:
            raise UnreachableError("the server ended the watch at once")
        if silent:
            self._fell_silent(listing=False)

    def _patience(self, seconds: float, *, listing: bool) -> float:
        """Seconds without data after which the watch fails."""
        if listing:
            return self._timing.first_event
        return self._timing.heartbeat if self._bookmarks else seconds + self._timing.first_event

    def _fell_silent(self, *, listing: bool) -> None:
        if listing:
            return
        self._silent += 1
        if self._silent >= 2:
            self._silent = 0
            self._relist(any_version=True)

    async def _list_pages(self) -> None:
        """Lists in pages, from the server's cache if it has one.

        A first list accepts any version in the cache (resourceVersion 0), a later one nothing older than the
        last known version. The server ignores the limit in both cases, as for client-go, which spares etcd
        the reads of all nodes.
        """
        query = self._query()
        if self._version:
            query |= {"resourceVersion": self._version, "resourceVersionMatch": "NotOlderThan"}
        else:
            query |= {"resourceVersion": "0", "limit": str(PAGE)}
        self._objects.begin_list()
        while True:
            try:
                page = await self._page(query)
            except ApiError as e:
                if not e.expired or "continue" not in query:
                    raise
                # The first pages are too old to be continued: request everything in one response, of one
                # version.
                page = await self._page(self._query())
            for number, item in enumerate(page.items or ()):
                self._objects.set(item)
                if number % 256 == 255:
                    await asyncio.sleep(0)
            if not page.metadata.more:
                break
            query = {**self._query(), "limit": str(PAGE), "continue": page.metadata.more}
        self._end_list(page.metadata.resource_version)

    async def _page(self, query: dict[str, str]) -> Page:
        body = await self._client.request("GET", self._resource.path, query=query)
        try:
            page = decode_page(body)
        except BROKEN as e:
            raise UnreachableError(f"the server's list cannot be read: {reason(e)}") from None
        if page.kind != (kind := f"{self._resource.kind}List"):
            raise UnreachableError(f"the server sent kind {page.kind!r:.80} in place of {kind}")
        self.status.received = self._timing.now()
        return page

    def _query(self) -> dict[str, str]:
        query = {"labelSelector": self._resource.labels, "fieldSelector": self._fields}
        return {key: value for key, value in query.items() if value}

    def _handle(self, line: bytes, *, listing: bool) -> bool:
        """Handles one line of a watch. Returns whether the list is still incomplete."""
        if log.isEnabledFor(V6):
            log.log(
                V6,
                "%(resource)s: %(event).500s",
                {"resource": self._where, "event": line.decode(errors="replace")},
            )
        try:
            event = decode_event(line)
            match event.type:
                case "ADDED" | "MODIFIED":
                    version = self._objects.set(event.object)
                case "DELETED":
                    head = decode_head(event.object)
                    self._objects.delete(head)
                    version = head.version
                case "BOOKMARK":
                    head = decode_head(event.object)
                    self._bookmarks = True
                    if listing and head.ends_list:
                        self._end_list(head.version)
                        return False
                    version = head.version
                case "ERROR":
                    raise api_error(event.object)
                case _:
                    log.warning(
                        "%(resource)s: ignoring a watch event of unknown type %(eventType)s",
                        {"resource": self._where, "eventType": event.type},
                    )
                    return listing
        except BROKEN as e:
            self._relist()
            raise UnreachableError(f"the server sent a line that is no watch event: {reason(e)}") from None
        if event.type != "BOOKMARK":
            self.status.event = self._timing.now()
            self.status.objects = len(self._objects)
        if not listing:
            self._advance(version)
        return listing

    def _end_list(self, version: str) -> None:
        self._objects.end_list()
        self._version = self.status.version = version
        self._resumable = True
        self._silent = 0
        self.status.objects = len(self._objects)
        self.status.lists += 1
        log.log(
            V2,
            "%(resource)s: listed, %(count)d objects at resourceVersion %(resourceVersion)s",
            {"resource": self._where, "count": len(self._objects), "resourceVersion": version},
        )
        if self.status.lists == 1:
            self._complete()

    def _relist(self, *, any_version: bool = False) -> None:
        """Makes the next round start with a list: not older than the known version, or of any version."""
        self._resumable = False
        if any_version:
            self._version = self.status.version = ""

    def _advance(self, version: str) -> None:
        """Records where to resume. Versions only increase (KEP-5504), unless the history was replaced."""
        if older(version, self._version):
            before = self._version
            self._relist(any_version=True)
            raise UnreachableError(f"the server went back from resourceVersion {before} to {version}")
        if version:
            self._version = self.status.version = version

    def _judge(self, error: ApiError) -> None:
        """Decides how the next round starts after a refusal."""
        if error.too_large:
            self._relist(any_version=True)
        elif error.expired:
            self._relist(any_version=not self._resumable)
        elif error.status == 400 and not self._resumable and self._fields and self._resource.fields_optional:
            log.info(
                "%(resource)s: the server does not support the field selector %(fieldSelector)s, it is omitted",
                {"resource": self._where, "fieldSelector": self._fields},
            )
            self._fields = ""
        elif error.status not in _TRANSIENT:
            self._relist(any_version=error.bad_version)

    def _connected(self) -> None:
        self._connected_at = self._timing.now()
        self.status.connected = True
        self.status.trouble = ""
        if self._recovered:
            log.info("%(resource)s: %(recovery)s", {"resource": self._where, "recovery": self._recovered})
            self._recovered = ""

    def _consequence(self) -> str:
        """What the next round does, and what is used meanwhile."""
        if not self.status.lists:
            return "nothing is known of it yet, retrying"
        if not self._resumable:
            return "what is known stays in force, listing again"
        return "what is known stays in force, resuming the watch"

    async def _pause(self, trouble: str, retry_after: float, recovered: str) -> None:
        """Waits before the next round, and logs why, every five minutes while the reason is the same."""
        now = self._timing.now()
        if self._connected_at is not None and now - self._connected_at >= _GOOD_SPELL:
            self._backoff.reset()
        delay = max(self._backoff.next(), min(retry_after, _LONGEST_RETRY_AFTER))
        self.status.errors += 1
        self.status.trouble = trouble
        before, when = self._reported
        if trouble != before or now - when >= _REPEAT_MESSAGE:
            self._reported = trouble, now
            self._recovered = recovered
            log.warning(
                "%(resource)s: %(reason)s; %(consequence)s",
                {"resource": self._where, "reason": trouble, "consequence": self._consequence()},
            )
        await self._timing.sleep(delay)
