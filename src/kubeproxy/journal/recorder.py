"""Records what changes in a running daemon: objects and the node, syncs, refused Services, and drift.

Records are collected in memory and given to the writing thread once a second at most. If it cannot write, or
is too slow, they are dropped, and the journal is continued with all that is known as soon as that is
possible.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from kubeproxy import __version__
from kubeproxy.api.addresses import Family
from kubeproxy.backends.base import Change
from kubeproxy.config.load import RunOptions
from kubeproxy.hub import Hub
from kubeproxy.journal import records
from kubeproxy.journal.records import Reason, Record
from kubeproxy.journal.writer import Batch, JournalWriter, Outcome
from kubeproxy.model.complaints import Name
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key
from kubeproxy.reconcile.ledger import Recorded
from kubeproxy.reconcile.reconciler import Reconciler, Synced, Trouble

FLUSH_SECONDS: Final = 1.0
"""So long a record waits in memory at most, unless the disk is slow."""

RETRY_SECONDS: Final = 60.0
"""After so long writing is tried again when it has failed."""

MOST_WAITING: Final = 100_000
"""So many records wait at most."""

_END_SECONDS: Final = 2.0
"""So long the end of the program waits for the last records to be written."""

Addresses = Callable[[Family], Sequence[str]]
"""Lists the local addresses of a family."""


class RecordedLoop(Struct):
    """What is known of one control loop.

    Attributes:
        loop: it.
        node: the node that was recorded last.
        changes: what the sync that ends now has changed.
        refused: the refused Services that were recorded last.
    """

    loop: Reconciler
    node: NodeConfig | None = None
    changes: Sequence[Change] = ()
    refused: Mapping[Key, str] = {}


class Recorder:
    """The journal of a running daemon."""

    def __init__(
        self, options: RunOptions, addresses: Addresses, clock: Callable[[], float] = time.time
    ) -> None:
        """Nothing is recorded before `follow`.

        Args:
            options: what the program runs with: where the journal is, how large it may be, the name of the
                node.
            addresses: lists the node's addresses.
            clock: the time of day, in Unix time.
        """
        self._node = options.config.node_name
        self._addresses = addresses
        self._clock = clock
        self._events = asyncio.get_running_loop()
        self._writer = JournalWriter(Path(options.journal), options.journal_bytes, self._wrote)
        self._hub: Hub | None = None
        self._mode = ""
        self._loops: list[RecordedLoop] = []
        self._waiting: list[Record] = []
        self._before: list[Record] = []  # what waits for the segment before that
        self._opening: Iterable[Record] | None = None  # with what the next batch begins a segment
        self._reason: Reason | None = None  # why it has to begin one
        self._writing = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """All that was recorded is written."""
        return not (self._writing or self._waiting or self._before or self._opening or self._reason)

    def follow(self, hub: Hub, mode: str, loops: Sequence[Reconciler]) -> None:
        """Records from now on what these do, and nothing else.

        Args:
            hub: the objects, all of which are known.
            mode: the mode.
            loops: the control loops, the one of the primary family first.
        """
        reason: Reason = "start" if self._hub is None else "exchange"
        if hub is not self._hub:
            if self._hub is not None:
                self._hub.follow(None)
            hub.follow(self._stored)
        self._hub, self._mode, self._loops = hub, mode, [RecordedLoop(loop) for loop in loops]
        for each in self._loops:
            self._subscribe(each)
        self._begin(reason)
        self._schedule(0)

    async def run(self) -> None:
        """Ends the journal when it is cancelled."""
        try:
            await self._events.create_future()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._waiting.append(records.Ended(self._clock()))
            self._writer.put(self._batch(last=True))
            await asyncio.to_thread(self._writer.join, _END_SECONDS)

    def _subscribe(self, each: RecordedLoop) -> None:
        """Listens to a control loop; what it does is ignored when another one is followed."""

        def recorded(done: Recorded) -> None:
            each.changes = done.changes

        def synced(done: Synced) -> None:
            if each in self._loops:
                self._synced(each, done)

        def troubled(trouble: Trouble) -> None:
            if each in self._loops:
                self._add(records.TroubleSeen(self._clock(), each.loop.family, trouble.kind, trouble.words))

        each.loop.ledger.subscribe(recorded)
        each.loop.on_sync(synced)
        each.loop.on_trouble(troubled)

    def _stored(self, name: Name, rows: tuple[Any, ...] | None) -> None:
        self._add(records.of_object(self._clock(), name, rows))

    def _synced(self, each: RecordedLoop, done: Synced) -> None:
        now, family = self._clock(), each.loop.family
        if each.loop.node is not each.node:
            self._add(self._planned(now, each))
        keys = tuple(change.key for change in each.changes)
        delay = now - min(done.triggered) if done.triggered else -1.0
        some = keys if len(keys) <= records.MOST_KEYS else ()
        self._add(records.SyncDone(now, family, done.full, done.seconds, done.waited, delay, len(keys), some))
        refused = each.loop.ledger.refused
        if refused is not each.refused:
            for key in each.refused.keys() | refused.keys():
                if each.refused.get(key) != refused.get(key):
                    self._add(records.Refusal(now, family, *key, refused.get(key, "")))
            each.refused = refused

    def _planned(self, now: float, each: RecordedLoop) -> Record:
        each.node = each.loop.node
        family = each.node.family
        primary = each is self._loops[0]
        return records.Planned(now, self._mode, primary, each.node, tuple(self._addresses(family)))

    def _begin(self, reason: Reason) -> None:
        """All that is known now, to begin a segment with. What waits happened before."""
        assert self._hub is not None
        now = self._clock()
        first: list[Record] = [records.Opened(now, reason, __version__, self._node)]
        first += [self._planned(now, each) for each in self._loops]
        first += self._beside_objects(now, self._hub)
        objects = list(self._hub.state.stored())  # made into records by the thread that writes
        self._opening = chain(
            first, (records.of_object(now, name, rows) for name, rows in objects), (records.Whole(now),)
        )
        self._before = [] if reason in {"start", "lost"} else [*self._before, *self._waiting]
        self._waiting = []

    def _beside_objects(self, now: float, hub: Hub) -> Iterator[Record]:
        yield records.NodeStored(now, hub.node)
        yield records.RangesStored(now, hub.service_cidrs)
        for each in self._loops:
            each.refused = each.loop.ledger.refused
            for key, words in each.refused.items():
                yield records.Refusal(now, each.loop.family, *key, words)

    def _add(self, record: Record) -> None:
        if self._reason == "lost":  # the next segment begins with all that is known
            return
        self._waiting.append(record)
        if len(self._waiting) > MOST_WAITING:
            self._drop()
        if self._timer is None and not self._writing:
            self._schedule(FLUSH_SECONDS)

    def _schedule(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._events.call_later(seconds, self._flush)

    def _flush(self) -> None:
        self._timer = None
        if self._writing:
            return
        if self._reason is not None:
            self._begin(self._reason)
        self._writing = True
        self._writer.put(self._batch())

    def _batch(self, *, last: bool = False) -> Batch:
        batch = Batch(self._before, self._opening, self._waiting, last)
        self._before, self._opening, self._waiting, self._reason = [], None, [], None
        return batch

    def _drop(self) -> None:
        """Forgets what waits; the next segment begins with all that is known."""
        self._before, self._opening, self._waiting, self._reason = [], None, [], "lost"

    def _wrote(self, outcome: Outcome) -> None:
        """A batch is done; called in the thread that writes."""
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._events.call_soon_threadsafe(self._done, outcome)

    def _done(self, outcome: Outcome) -> None:
        self._writing = False
        written, full = outcome
        if not written:
            self._drop()
            self._schedule(RETRY_SECONDS)
            return
        if full:
            self._reason = self._reason or "full"
        if self._opening is not None:
            self._schedule(0)
        elif self._waiting or self._reason is not None:
            self._schedule(FLUSH_SECONDS)
