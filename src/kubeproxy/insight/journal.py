"""Reads a journal: what was known of the cluster and the node at a moment, and what happened between moments.

Each segment begins with all that was known then, so none needs the one before it. A segment that cannot be
read is named, and read as far as it can be; what was missed is found by comparing with the beginning of the
next one.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from kubeproxy import backends
from kubeproxy.answers.snapshot import Snapshot
from kubeproxy.api.rows import NodeRow
from kubeproxy.insight import moments, origin
from kubeproxy.journal import frames
from kubeproxy.journal.folder import segments
from kubeproxy.journal.frames import Damage
from kubeproxy.journal.records import (
    Ended,
    NodeStored,
    Opened,
    Planned,
    RangesStored,
    Record,
    Refusal,
    ServiceStored,
    SlicesStored,
    Whole,
    of_object,
)
from kubeproxy.machine.base import Machine
from kubeproxy.model.plan import Key
from kubeproxy.model.state import State


class JournalError(Exception):
    """The journal cannot be read, or says nothing of a moment; the message says why."""


class Past:
    """What was known at one moment.

    Attributes:
        state: the Services and their endpoints.
        node: the own Node.
        ranges: the ranges of all ServiceCIDRs.
        planned: what plans were made for, by family.
        refused: what the kernel said of the Services that it refused, by family and Service.
        last: the time of the last record; 0 before the first.
        ended: the program had ended.
    """

    def __init__(self) -> None:
        """Nothing is known."""
        self.state = State()
        self.node: NodeRow | None = None
        self.ranges: tuple[str, ...] = ()
        self.planned: dict[str, Planned] = {}
        self.refused: dict[tuple[str, Key], str] = {}
        self.last = 0.0
        self.ended = False

    def apply(self, record: Record) -> None:
        """Something happened."""
        self.last = record.at
        match record:
            case ServiceStored(_, namespace, name, exists, row):
                rows = (row,) if row is not None else ()
                self.state.put(("Service", namespace, name), rows if exists else None)
            case SlicesStored(_, kind, namespace, name, rows):
                self.state.put((kind, namespace, name), rows)
            case NodeStored(_, row):
                self.node = row
            case RangesStored(_, ranges):
                self.ranges = ranges
            case Planned():
                self.planned[record.node.family] = record
            case Refusal(_, family, namespace, name, words):
                which = family, (namespace, name)
                if words:
                    self.refused[which] = words
                else:
                    self.refused.pop(which, None)
            case Ended():
                self.ended = True

    def differences(self, after: "Past", at: float) -> Iterator[Record]:
        """What turns this into another one, as records with one time."""
        known, new = dict(self.state.stored()), dict(after.state.stored())
        for name in known.keys() | new.keys():
            if known.get(name) != new.get(name):
                yield of_object(at, name, new.get(name))
        if self.node != after.node:
            yield NodeStored(at, after.node)
        if self.ranges != after.ranges:
            yield RangesStored(at, after.ranges)
        for family, planned in after.planned.items():
            before = self.planned.get(family)
            if before is None or (before.mode, before.node) != (planned.mode, planned.node):
                yield planned
        for family, key in self.refused.keys() - after.refused.keys():
            yield Refusal(at, family, *key, "")
        for (family, key), words in after.refused.items():
            if self.refused.get((family, key)) != words:
                yield Refusal(at, family, *key, words)


class Segment(Struct, frozen=True):
    """One file of a journal.

    Attributes:
        path: the file.
        opened: its first record.
    """

    path: Path
    opened: Opened


class Journal:
    """A journal.

    Attributes:
        path: its folder.
        segments: its segments, the oldest first.
        troubles: what could not be read; it grows while the journal is read.
        damaged: something of it is damaged, not only torn by a crash.
    """

    def __init__(self, path: Path) -> None:
        """Reads the beginning of each segment.

        Raises:
            JournalError: there is none, or it was written by a newer program.
        """
        self.path = path
        self.troubles: list[str] = []
        self.damaged = False
        try:
            found = [self._begin(each) for each in segments(path)]
        except OSError as e:
            raise JournalError(f"the journal in {path} cannot be read: {e.strerror or e}") from e
        self.segments = [each for each in found if each is not None]
        if not self.segments:
            seen = f": {self.troubles[0]}" if self.troubles else ""
            raise JournalError(f"{path} holds no journal{seen}")

    def at(self, moment: float) -> Past:
        """What was known at a moment.

        Raises:
            JournalError: the journal begins later.
        """
        found = [each for each in self.segments if each.opened.at <= moment]
        while found:
            past = self._at(found.pop(), moment)
            if past is not None:
                return past
        first = self.segments[0].opened.at
        raise JournalError(
            f"the journal in {self.path} says nothing of {shown(moment)}: it begins at {shown(first)}"
        )

    def replay(self, segment: Segment | None = None) -> Iterator[tuple[Past, Record]]:
        """Each record with what was known before it, which is another value for the next one.

        What is known at the beginning of a segment is not repeated; what is different there, because the
        program did not run or could not write, comes as records, after the `Opened` of that segment.

        Args:
            segment: read only this one; None: all.
        """
        past: Past | None = None
        for each in self.segments if segment is None else (segment,):
            following = self._records(each)
            whole = self._whole(following)
            if whole is None:
                continue
            if past is not None:
                yield past, each.opened
                for record in past.differences(whole, each.opened.at):
                    yield past, record
                    past.apply(record)
            else:
                yield whole, each.opened
            past = whole
            for record in following:
                yield past, record
                past.apply(record)

    def containing(self, moment: float) -> Segment:
        """The segment that a moment is in, or the first one."""
        return next((each for each in reversed(self.segments) if each.opened.at <= moment), self.segments[0])

    def notes(self, moment: float, past: Past) -> list[str]:
        """What the reader of an answer about a moment should know: whether the program ran then."""
        later = next((each.opened for each in self.segments if each.opened.at > moment), None)
        if past.ended:
            until = f" and was started again at {shown(later.at)}" if later else ""
            return [
                f"kube-proxy did not run at that moment: it ended at {shown(past.last)}{until}; the rules were those it left"
            ]
        if later is not None and later.reason in {"start", "lost"}:
            return [
                f"what happened between {shown(past.last)}, the last record before, and {shown(later.at)} was not recorded"
            ]
        return []

    def _at(self, segment: Segment, moment: float) -> Past | None:
        """What was known at a moment in a segment; None if what was known at its beginning cannot be read."""
        # Times do not always increase: the clock of the host may have been set.
        last = max((i for i, record in enumerate(self._records(segment)) if record.at <= moment), default=-1)
        following = self._records(segment, again=True)
        past = Past()
        whole = False
        for i, record in enumerate(following):
            if whole and i > last:
                break
            past.apply(record)
            whole = whole or isinstance(record, Whole)
        return past if whole else None

    def _whole(self, following: Iterator[Record]) -> Past | None:
        """What was known at the beginning of a segment; None if that cannot be read."""
        past = Past()
        for record in following:
            past.apply(record)
            if isinstance(record, Whole):
                return past
        return None

    def _begin(self, path: Path) -> Segment | None:
        """The beginning of a segment; None if it cannot be used."""
        try:
            for item in frames.read(path):
                if isinstance(item, Damage):
                    self._note(path, item)
                    return None
                first = item.records[0] if item.records else None
                if isinstance(first, Opened):
                    return Segment(path, first)
                self._note(path, Damage("damaged", 0, "it does not begin as a segment does"))
                return None
        except frames.NewerError as e:
            raise JournalError(str(e)) from e
        except OSError as e:
            self._trouble(f"{path} cannot be read: {e.strerror or e}")
        return None  # it was begun, and nothing was written

    def _records(self, segment: Segment, *, again: bool = False) -> Iterator[Record]:
        """The records of a segment, as far as it can be read."""
        try:
            for item in frames.read(segment.path):
                if isinstance(item, Damage):
                    if not again:
                        self._note(segment.path, item)
                    return
                yield from item.records
        except frames.NewerError as e:
            raise JournalError(str(e)) from e
        except OSError as e:
            # The daemon removes old segments.
            self._trouble(f"{segment.path} cannot be read: {e.strerror or e}")

    def _note(self, path: Path, damage: Damage) -> None:
        if damage.kind == "damaged":
            self._trouble(f"{path} is damaged, nothing is used from byte {damage.offset} on: {damage.words}")

    def _trouble(self, words: str) -> None:
        self.damaged = True
        if words not in self.troubles:
            self.troubles.append(words)


def folder(flags: Mapping[str, Any], machine: Machine, environment: Mapping[str, str]) -> Path:
    """The folder of the journal that flags name, else that of the kube-proxy that runs here.

    Raises:
        JournalError: there is none.
        OriginError: its configuration cannot be read.
    """
    if given := flags.get("journal"):
        return Path(given)
    if not origin.SOURCES & flags.keys() and machine.holder() is None:
        raise JournalError("no kube-proxy runs in this network namespace: name a journal with --journal DIR")
    found = origin.find(flags, machine, environment).options.journal
    if not found:
        raise JournalError(
            "kube-proxy keeps no journal, since it has no flag --journal; name one with --journal DIR"
        )
    return Path(found)


def snapshot(journal: Journal, moment: float) -> Snapshot:
    """The cluster at a moment, for the commands.

    Raises:
        JournalError: the journal says nothing of it.
    """
    past = journal.at(moment)
    planned = sorted(past.planned.values(), key=lambda each: not each.primary)
    if not planned:
        raise JournalError(f"the journal in {journal.path} does not say what plans were made for")
    return Snapshot(
        state=past.state,
        mode=backends.mode(planned[0].mode),
        nodes=tuple(each.node for each in planned),
        local_addresses={each.node.family: each.addresses for each in planned},
        own=False,
        troubles=(*journal.troubles, *journal.notes(moment, past)),
        past=shown(moment),
    )


def shown(moment: float) -> str:
    """A moment as text."""
    return f"{moments.date(moment)} {moments.clock(moment)}"
