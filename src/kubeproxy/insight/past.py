"""`explain` for a former moment.

The same answer, from what the journal says was known, with what happened around it.
"""

import argparse
import asyncio
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec.structs import replace

from kubeproxy.answers.answer import Answer
from kubeproxy.answers.asking import QuestionError, ask
from kubeproxy.answers.snapshot import Snapshot
from kubeproxy.config import ConfigError
from kubeproxy.insight import journal as journals
from kubeproxy.insight import moments, origin
from kubeproxy.insight.history import Event, events
from kubeproxy.insight.journal import Journal, JournalError
from kubeproxy.machine.base import Machine
from kubeproxy.model.explain import Stage


class PastError(Exception):
    """The question about a former moment cannot be answered; the message says why."""


def take(
    flags: Mapping[str, Any], machine: Machine, at: str, node: str = ""
) -> tuple[Journal, float, Snapshot]:
    """The journal, the moment, and the cluster at that moment.

    Args:
        flags: the flags of the daemon that were given with the command.
        machine: this host.
        at: the moment, as people name it.
        node: the node to answer for; "" for the one that the journal is of.

    Raises:
        PastError: it is not known.
    """
    try:
        moment = moments.parse(at, time.time())
        found = Journal(journals.folder(flags, machine, os.environ))
        snapshot = journals.snapshot(found, moment)
    except (moments.MomentError, JournalError, origin.OriginError, ConfigError) as e:
        raise PastError(str(e)) from e
    if node and node != snapshot.name:
        raise PastError(f"--node {node}: the journal is of node {snapshot.name}, and says nothing of others")
    return found, moment, snapshot


def since(flags: Mapping[str, Any], machine: Machine, at: str, node: str = "") -> tuple[Snapshot, Snapshot]:
    """The cluster at a moment, and as it is now, or was when the journal ended: for `plan --at`.

    Args:
        flags: the flags of the daemon that were given with the command.
        machine: this host.
        at: the moment, as people name it.
        node: the node to answer for; "" for the one that the journal is of.

    Raises:
        PastError: it is not known.
    """
    found, _, then = take(flags, machine, at, node)
    try:
        return then, journals.snapshot(found, time.time())
    except JournalError as e:
        raise PastError(str(e)) from e


def explain(
    flags: Mapping[str, Any], machine: Machine, arguments: argparse.Namespace
) -> tuple[Snapshot, Answer]:
    """Explains a packet at a former moment.

    Args:
        flags: the flags of the daemon that were given with the command.
        machine: this host.
        arguments: those of `explain`.

    Raises:
        PastError: it cannot be explained.
    """
    journal, moment, snapshot = take(flags, machine, arguments.at, arguments.node)
    try:
        answer = asyncio.run(
            ask(snapshot, machine, arguments.source, arguments.destination, arguments.interface)
        )
        around = tuple(_around(journal, moment, answer.service)) if answer.service else ()
    except (QuestionError, JournalError) as e:
        raise PastError(str(e)) from e
    return snapshot, replace(answer, stages=(*answer.stages, *around), at=moments.rfc3339(moment))


def _around(journal: Journal, moment: float, service: str) -> Iterator[Stage]:
    """What happened to a Service last before a moment, whether the kernel had it, and what happened next."""
    segment = journal.containing(moment)
    last: Event | None = None
    synced: Event | None = None
    coming: Event | None = None
    for event in events(journal, segment):
        own = event.service == service
        synced_ = event.kind == "sync" and event.concerns(service)
        if event.unix > moment:
            if own and coming is None:
                coming = event
            if synced_ and synced is None:
                synced = event
        elif own and event.kind != "accepted":
            last, synced = event, None
        elif synced_ and last is not None and synced is None:
            synced = event
    since = journals.shown(segment.opened.at)
    yield Stage("changed last", _words(last) if last else f"not between {since} and then")
    if last is not None:
        yield Stage("programmed", _programmed(last, synced, moment))
    yield Stage("changed next", _words(coming) if coming else "not in this part of the journal")


def _words(event: Event) -> str:
    return f"{moments.clock(event.unix)} {'; '.join(event.changes)}"


def _programmed(last: Event, synced: Event | None, moment: float) -> str:
    if last.kind == "refused":
        return "no: the kernel refused it, and kept what it had"
    if synced is None:
        return "no sync changed this Service in the kernel after that"
    words = f"{moments.clock(synced.unix)} ({synced.family}), {moments.span(max(0.0, synced.unix - last.unix))} after it was received"
    return f"not yet at that moment: {words}" if synced.unix > moment else words
