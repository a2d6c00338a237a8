"""`kube-proxy replay`: what happened, from a journal, on any computer."""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from kubeproxy.answers import names
from kubeproxy.cli.command import Asked, Command, CommandError
from kubeproxy.cli.output import Output
from kubeproxy.insight import moments
from kubeproxy.insight.history import Event, events
from kubeproxy.insight.journal import Journal, JournalError

DAMAGED: Final = 2
MOST_WORDS: Final = 6
"""So many changes of one event are written as text; JSON has all."""

STYLES: Final = {"drift": "red", "refused": "red", "failure": "red", "lost": "red", "sync": "dim"}


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", metavar="DIR", help="the folder of the journal, as in kube-proxy --journal DIR"
    )
    parser.add_argument(
        "--service", default="", metavar="NAMESPACE/NAME", help="only what concerns this Service"
    )
    parser.add_argument(
        "--since",
        default="",
        metavar="MOMENT",
        help="only from this moment on: 03:12:07, 2026-11-29T03:12:07Z or -10m",
    )
    parser.add_argument("--until", default="", metavar="MOMENT", help="only up to this moment")
    parser.add_argument("--no-syncs", action="store_true", help="without syncs: only what was changed")
    parser.add_argument("--json", action="store_true", help="write the events as a JSON array")


def _run(asked: Asked) -> int:
    arguments = asked.arguments
    now = time.time()
    try:
        since = moments.parse(arguments.since, now) if arguments.since else 0.0
        until = moments.parse(arguments.until, now) if arguments.until else now
    except moments.MomentError as e:
        raise CommandError(str(e)) from e
    if since > until:
        raise CommandError(f"--since {arguments.since} is after --until {arguments.until}")
    service = _service(arguments.service)
    try:
        journal = Journal(Path(arguments.folder))
        found = (
            event
            for event in events(journal)
            if since <= event.unix <= until
            and (not service or event.concerns(service))
            and not (arguments.no_syncs and event.kind == "sync")
        )
        if arguments.json:
            _write(found)
        else:
            _show(found, asked.out)
    except JournalError as e:
        raise CommandError(str(e)) from e
    for trouble in journal.troubles:
        asked.out.note(trouble)
    return DAMAGED if journal.damaged else 0


def _service(text: str) -> str:
    """The Service that is asked for, as namespace/name; "" for all."""
    if not text:
        return ""
    key = names.service(text)
    if key is None:
        raise CommandError(f"--service {text}: {names.FORM}")
    return "/".join(key)


def _write(found: Iterator[Event]) -> None:
    """Writes events as a JSON array, one in each line, without keeping them."""
    before = "[\n"
    for event in found:
        sys.stdout.write(before + msgspec.json.encode(event).decode())
        before = ",\n"
    sys.stdout.write("[]\n" if before == "[\n" else "\n]\n")


def _show(found: Iterator[Event], out: Output) -> None:
    date = ""
    for event in found:
        if (today := moments.date(event.unix)) != date:
            date = today
            out.line(f"{date} ({moments.zone(event.unix)})", "bold")
        out.line(line(event), STYLES.get(event.kind, ""))
    if not date:
        out.line("nothing was recorded of that")


def line(event: Event) -> str:
    """An event as text."""
    who = event.service or ", ".join(event.services[:2])
    if len(event.services) > 2:
        who += f" and {len(event.services) - 2} more"
    changes = event.changes
    words = "; ".join(changes[:MOST_WORDS])
    if len(changes) > MOST_WORDS:
        words += f"; and {len(changes) - MOST_WORDS} more"
    label = {"drift": "drift", "configuration": "configuration"}.get(event.kind, "")
    parts = (event.family, f"{label}:" if label else "", words)
    return f"{moments.clock(event.unix)}  {who:<24} {' '.join(part for part in parts if part)}"


COMMAND: Final = Command(
    name="replay",
    summary="List what happened, from a journal.",
    description=(
        "Lists what happened to Services, endpoints and the node, what was synced, refused and repaired, from the journal that"
        " kube-proxy --journal keeps. It needs no cluster, no kernel and no rights but to read the files."
    ),
    examples=(
        ("What happened in the last ten minutes?", "kube-proxy replay /var/lib/kube-proxy/journal --since -10m"),
        ("What happened to a Service that night?", "kube-proxy replay DIR --service shop/api --since 03:00 --until 03:30"),
        ("Where did a packet go then?", "kube-proxy explain --journal DIR --at 03:12:07 --from node --to api.shop"),
    ),
    statuses=((0, "the journal was read"), (DAMAGED, "some of it is damaged; the rest is listed")),
    options=_options,
    run=_run,
    sources=False,
)  # fmt: skip
