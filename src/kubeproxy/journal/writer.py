"""The thread that writes a journal.

It does all that takes time: encoding, compressing, writing and removing files. A sync never waits for it. It
is a daemon thread, so that a file system that does not answer cannot keep the program from ending.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from kubeproxy.journal import frames, records
from kubeproxy.journal.folder import JournalFolder
from kubeproxy.journal.records import Record

log = logging.getLogger(__name__)

FRAME_BYTES: Final = 256 * 1024
"""About so many bytes, before compression, become one frame."""

SHARE: Final = 4
"""A segment is full with this part of the limit, and what is known of all objects may take as much: so the
journal always has the last segment beside the one that is begun."""

Outcome = tuple[bool, bool]
"""Whether a batch was written, and whether the next one should begin a segment."""


class Batch(Struct, frozen=True):
    """What is written at once.

    Attributes:
        before: what happened before another segment is begun.
        opening: what that one begins with; None for no other segment.
        changes: what happened since.
        last: the program ends.
    """

    before: Sequence[Record] = ()
    opening: Iterable[Record] | None = None
    changes: Sequence[Record] = ()
    last: bool = False


class JournalWriter:
    """Writes batches, one after the other."""

    def __init__(self, path: Path, limit: int, done: Callable[[Outcome], None]) -> None:
        """Nothing is written before the first batch.

        Args:
            path: the folder.
            limit: how many bytes all files may have.
            done: called in the thread after each batch.
        """
        self._folder = JournalFolder(path, limit)
        self._done = done
        self._batches: queue.SimpleQueue[Batch] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._full_at = limit // SHARE
        self._failing = False
        self._too_small = False

    def put(self, batch: Batch) -> None:
        """Writes a batch, soon. The next may be put when `done` was called."""
        if not self._thread.is_alive() and self._thread.ident is None:
            self._thread.start()
        self._batches.put(batch)

    def join(self, seconds: float) -> None:
        """Waits for the end after the last batch, so long at most."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            batch = self._batches.get()
            outcome = self._try(batch)
            if batch.last:
                self._folder.close()
                return
            self._done(outcome)

    def _try(self, batch: Batch) -> Outcome:
        if self._too_small:
            return True, False
        if batch.opening is None and not self._folder.written:
            return False, False
        try:
            self._write(batch)
        except OSError as e:
            self._folder.end()
            if not self._failing:
                log.error(  # noqa: TRY400 the message says it all
                    "The journal in %(file)s cannot be written, changes are not recorded until it can be: %(err)s",
                    {"file": self._folder.path, "err": e},
                )
            self._failing = True
            return False, False
        except Exception:
            # The thread must not end: then nothing would be recorded, and nothing said so.
            self._folder.end()
            if not self._failing:
                log.exception("The journal in %(file)s cannot be written", {"file": self._folder.path})
            self._failing = True
            return False, False
        if self._failing:
            log.info("The journal in %(file)s is written again", {"file": self._folder.path})
            self._failing = False
        return True, self._folder.written >= self._full_at

    def _write(self, batch: Batch) -> None:
        """Writes a batch.

        Raises:
            OSError: it cannot be written.
        """
        if self._folder.written:
            self._append(batch.before)
        if batch.opening is not None:
            self._folder.open()
            self._begin(batch.opening)
        if self._folder.written:
            self._append(batch.changes)

    def _begin(self, opening: Iterable[Record]) -> None:
        limit = self._folder.limit
        self._folder.begin()
        try:
            self._append(opening, most=limit // SHARE)
        except OSError:
            self._folder.discard()
            raise
        except _TooSmallError:
            self._folder.discard()
            self._too_small = True
            log.error(  # noqa: TRY400 the message says it all
                "The journal in %(file)s is not written: --journal-size %(bytes)d is too small, what is known of all"
                " Services needs more than a quarter of it",
                {"file": self._folder.path, "bytes": limit},
            )
            return
        self._full_at = max(limit // SHARE, 2 * self._folder.written)

    def _append(self, changes: Iterable[Record], most: int = 0) -> None:
        """Writes records as frames."""
        encoded: list[bytes] = []
        size = 0
        for record in changes:
            encoded.append(records.encode(record))
            size += len(encoded[-1])
            if size >= FRAME_BYTES:
                self._frame(encoded, most)
                encoded, size = [], 0
        if encoded:
            self._frame(encoded, most)

    def _frame(self, encoded: list[bytes], most: int) -> None:
        self._folder.append(frames.pack(records.joined(encoded)))
        if most and self._folder.written > most:
            raise _TooSmallError


class _TooSmallError(Exception):
    """What is known of all objects does not fit."""
