"""Events (events.k8s.io/v1): what `kubectl describe` shows of a Node or a Service that has trouble here.

Nothing depends on an Event. It is queued at once and written by a task of its own, so no other task waits for
it. The same Event again does not make another object: the first becomes a series, whose count is written from
time to time. A token bucket limits how many are written. An Event that cannot be written is dropped, and that
is logged once.

Source: API reference v1.36, Event v1 events.k8s.io; `_event` meets its validation.
"""

import logging
import time
from asyncio import Event as Flag
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct

from kubeproxy.clock import Clock, SystemClock
from kubeproxy.model.plan import Key

log = logging.getLogger(__name__)

BURST: Final = 25
"""How many Events may be written at once ..."""

EVERY_SECONDS: Final = 10.0
"""... and after how many seconds one more."""

SERIES_SECONDS: Final = 300.0
"""How often the count of a series is written, at most."""

KEPT_SECONDS: Final = 3600.0
"""After so many seconds the same Event is a new one: API servers delete Events after that time."""

MOST: Final = 500
"""How many different Events are kept; further ones are ignored."""

_TRIES: Final = 5
_RETRY_SECONDS: Final = 30.0
_CONTROLLER: Final = "kube-proxy"


class Api(Protocol):
    """The requests an API server answers; see `sources.client.Client`."""

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, str] | None = None,
        strategic: bool = False,
    ) -> Awaitable[bytes]:
        """Makes one request and returns the answer's body."""


class _Subject(Struct, frozen=True, gc=False):
    """The fields that are the same in all Events of a series."""

    kind: str
    namespace: str
    name: str
    reason: str
    action: str
    note: str
    warning: bool


class _Series(Struct):
    """How often it happened and which part of that has been written.

    Attributes:
        name: the Event's name.
        first: when it first happened, in seconds since 1970.
        last: when it last happened.
        seen: the same by the clock.
        count: how often.
        written: the count that was written last.
        due: when it may be written next, by the clock.
        tries: how often writing failed.
    """

    name: str
    first: float
    last: float
    seen: float
    count: int = 1
    written: int = 0
    due: float = 0.0
    tries: int = 0


class Events:
    """Queues Events, and writes them while it runs."""

    def __init__(
        self,
        node: str,
        api: Api | None,
        *,
        clock: Clock | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Nothing is written before `run`.

        Args:
            node: the own Node's name.
            api: where to write them; None: nowhere, and nothing is queued.
            clock: monotonic time.
            wall: the time of day, in seconds since 1970.
        """
        self._node = node
        self._api = api
        self._clock = clock or SystemClock()
        self._wall = wall
        self._noted: dict[_Subject, _Series] = {}
        self._wake = Flag()
        self._stamp = 0
        self._earliest = 0.0
        self._complained = False

    def write_to(self, api: Api | None) -> None:
        """From now on Events are written there; None: nowhere."""
        self._api = api

    def node(self, reason: str, action: str, note: str = "", *, warning: bool = False) -> None:
        """Records an Event of this node's Node object.

        Args:
            reason: why, in one CamelCase word.
            action: what was done or tried, in one CamelCase word.
            note: a sentence for the operator.
            warning: whether its type is Warning, else Normal.
        """
        self._note(_Subject("Node", "", self._node, reason, action, note[:1024], warning))

    def service(self, key: Key, reason: str, action: str, note: str) -> None:
        """Records a Warning of a Service on this node. Arguments as with `node`."""
        self._note(_Subject("Service", *key, reason, action, f"{self._node}: {note}"[:1024], warning=True))

    def _note(self, subject: _Subject) -> None:
        if self._api is None:
            return
        now, wall = self._clock.now(), self._wall()
        for old in [s for s, series in self._noted.items() if now - series.seen > KEPT_SECONDS]:
            del self._noted[old]
        series = self._noted.get(subject)
        if series is not None:
            series.count += 1
            series.last, series.seen = wall, now
        elif len(self._noted) < MOST:
            self._stamp = max(self._stamp + 1, int(wall * 1e9))
            name = f"{subject.name[:230].rstrip('.-')}.{self._stamp:x}"
            self._noted[subject] = _Series(name, wall, wall, now)
        self._wake.set()

    async def run(self) -> None:
        """Writes what is queued; ends only by cancellation."""
        while True:
            self._wake.clear()
            news = [
                (series.due, subject)
                for subject, series in self._noted.items()
                if series.count > series.written
            ]
            if not news:
                await self._clock.wait(self._wake, None)
                continue
            due, subject = min(news, key=lambda item: item[0])
            now = self._clock.now()
            delay = max(due, self._earliest) - now
            if delay > 0:
                await self._clock.wait(self._wake, delay)
                continue
            self._earliest = max(self._earliest, now - (BURST - 1) * EVERY_SECONDS) + EVERY_SECONDS
            await self._write_series(subject, self._noted[subject])

    async def _write_series(self, subject: _Subject, series: _Series) -> None:
        """Writes one; if that fails, perhaps later."""
        count, api = series.count, self._api
        if api is None:
            series.written = count
            return
        try:
            await self._write(api, subject, series)
        except Exception as e:  # whatever it is, it must not end the proxy
            series.tries += 1
            status: int = getattr(e, "status", 0)
            refused = 400 <= status < 500 and status not in {401, 408, 429}
            if not refused and series.tries < _TRIES:
                series.due = self._clock.now() + _RETRY_SECONDS
            else:
                series.written, series.tries = count, 0
                series.due = self._clock.now() + SERIES_SECONDS
            if not self._complained:
                self._complained = True
                log.warning(
                    "Events cannot be written at the moment, which affects nothing else: %(err)s", {"err": e}
                )
            return
        self._complained = False
        series.written, series.tries = count, 0
        series.due = self._clock.now() + SERIES_SECONDS

    async def _write(self, api: Api, subject: _Subject, series: _Series) -> None:
        path = f"/apis/events.k8s.io/v1/namespaces/{subject.namespace or 'default'}/events"
        patch = {"series": _count(series)}
        if series.written:
            try:
                await api.request("PATCH", f"{path}/{series.name}", patch)
            except Exception as e:
                if getattr(e, "status", 0) != 404:
                    raise
                # The API server has deleted it because of its age: the next one is new.
            else:
                return
        uid = self._node if subject.kind == "Node" else await _uid(api, subject)
        if uid is None:
            return
        try:
            await api.request("POST", path, self._event(subject, series, uid))
        except Exception as e:
            if getattr(e, "status", 0) != 409:
                raise
            # An earlier attempt created it, and the response was lost.
            if series.count > 1:
                await api.request("PATCH", f"{path}/{series.name}", patch)

    def _event(self, subject: _Subject, series: _Series, uid: str) -> dict[str, Any]:
        """The object; an Event of something without a namespace is in `default`."""
        regarding = {"apiVersion": "v1", "kind": subject.kind, "name": subject.name, "uid": uid}
        if subject.namespace:
            regarding["namespace"] = subject.namespace
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": series.name, "namespace": subject.namespace or "default"},
            "eventTime": _micro_time(series.first),
            "reportingController": _CONTROLLER,
            "reportingInstance": f"{_CONTROLLER}-{self._node}"[:128],
            "action": subject.action,
            "reason": subject.reason,
            "regarding": regarding,
            "note": subject.note,
            "type": "Warning" if subject.warning else "Normal",
            **({"series": _count(series)} if series.count > 1 else {}),
        }


class _Identity(Struct, frozen=True, gc=False):
    uid: str = ""


class _Object(Struct, frozen=True, gc=False):
    metadata: _Identity = _Identity()


class _List(Struct, frozen=True, gc=False):
    items: tuple[_Object, ...] | None = None


async def _uid(api: Api, subject: _Subject) -> str | None:
    """The Service's uid, by which `kubectl describe` finds its Events; None if it was deleted.

    It is not kept with the Services, so it is requested. The proxy's role allows to list Services, not to get
    one.
    """
    path = f"/api/v1/namespaces/{subject.namespace}/services"
    answer = await api.request("GET", path, query={"fieldSelector": f"metadata.name={subject.name}"})
    found = msgspec.json.decode(answer, type=_List).items
    return found[0].metadata.uid if found else None


def _count(series: _Series) -> dict[str, Any]:
    return {"count": series.count, "lastObservedTime": _micro_time(series.last)}


def _micro_time(seconds: float) -> str:
    """A time of day as MicroTime: RFC 3339 with six digits."""
    whole, micros = divmod(int(seconds * 1e6), 1_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{micros:06}Z"
