"""`kube-proxy doctor`: what is probably wrong on this node, and what to do."""

import argparse
import asyncio
import os
from collections.abc import Collection, Sequence
from typing import Final

from kubeproxy.answers.snapshot import Snapshot
from kubeproxy.cli import reading
from kubeproxy.cli.command import Asked, Command, CommandError
from kubeproxy.cli.output import Output
from kubeproxy.config import ConfigError
from kubeproxy.config.load import RunOptions
from kubeproxy.insight import origin
from kubeproxy.insight import snapshot as snapshots
from kubeproxy.insight.doctor.check import ERROR, NOTE, WARNING, Costly
from kubeproxy.insight.doctor.examine import CHECKS, Examined, examine, failed
from kubeproxy.insight.doctor.facts import Facts, Part
from kubeproxy.insight.doctor.gather import gather
from kubeproxy.machine.base import Machine

FOUND: Final = 2
MOST_LINES: Final = 5
"""So many findings of one check are written; --all and --json have all."""

_MARKS: Final = {
    ERROR: ("!!", "bold red"),
    WARNING: ("! ", "yellow"),
    NOTE: ("- ", ""),
    "ok": ("ok", "green"),
    "skipped": ("? ", ""),
}


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "service", nargs="?", default="", metavar="SERVICE",
        help="look at this Service only, and at the node: NAMESPACE/NAME, NAME.NAMESPACE or NAME",
    )  # fmt: skip
    parser.add_argument(
        "--check",
        action="append",
        default=[],
        metavar="ID",
        help="run this check only, e.g. KP050; may be repeated",
    )
    parser.add_argument("--all", action="store_true", help="write every check and every finding")
    parser.add_argument("--no-connect", action="store_true", help="do not try to connect to endpoints")


def _run(asked: Asked) -> int:
    from kubeproxy.machine import of_this_host

    only = _checks(asked.arguments.check)
    costly = {each.costly for each in CHECKS if not only or each.id in only}
    facts = look(asked, of_this_host(), costly - ({"connections"} if asked.arguments.no_connect else set()))
    results = examine(facts, only)
    found = failed(results)
    if asked.arguments.json:
        skipped = sum(each.status == "skipped" for each in results)
        asked.out.json({"healthy": not found, "skipped": skipped, "checks": results})
    else:
        show(results, asked.out, everything=asked.arguments.all)
    return FOUND if found else 0


def look(asked: Asked, machine: Machine, costly: Collection[Costly]) -> Facts:
    """Reads the facts.

    Args:
        asked: the question.
        machine: this host.
        costly: what is read of what takes long.

    Raises:
        CommandError: the question is wrong.
    """
    arguments = asked.arguments
    with asked.out.progress(reading.READING):
        taken, options = _snapshot(asked, machine)
    if arguments.service and taken.value is None:
        raise CommandError(taken.reason)
    only = reading.service(arguments.service, taken.value) if taken.value is not None else None
    with asked.out.progress("looking at the node and its endpoints"):
        return gather(machine, taken, options, only=only, costly=costly)


def _snapshot(asked: Asked, machine: Machine) -> tuple[Part[Snapshot], Part[RunOptions]]:
    """The cluster and the configuration, or why they cannot be read.

    Raises:
        CommandError, ConfigError: flags that were given are wrong.
    """
    options: Part[RunOptions] = Part(reason="the configuration of kube-proxy is not known")
    try:
        found = origin.find(asked.flags, machine, os.environ)
        options = Part(found.options)
        return Part(asyncio.run(snapshots.take(found, machine, node=asked.arguments.node))), options
    except (origin.OriginError, snapshots.SnapshotError, OSError) as e:
        if origin.SOURCES & asked.flags.keys():
            raise CommandError(str(e)) from e
        return Part(reason=f"Services cannot be read: {e}"), options
    except ConfigError as e:
        if asked.flags:
            raise
        return Part(reason=f"the configuration of kube-proxy cannot be used: {'; '.join(e.errors)}"), options


def _checks(given: Sequence[str]) -> frozenset[str]:
    """The ids of checks.

    Raises:
        CommandError: there is no such check.
    """
    known = {each.id for each in CHECKS}
    ids = frozenset(text.upper() for text in given)
    for text in sorted(ids - known):
        raise CommandError(
            f"there is no check {text}; docs/doctor.md lists them, {min(known)} to {max(known)}"
        )
    return ids


def show(results: Sequence[Examined], out: Output, *, everything: bool) -> None:
    """Writes the results as text: what is wrong first, then how much was checked."""
    for severity in (ERROR, WARNING, NOTE) if everything else (ERROR, WARNING):
        for each in results:
            if each.status == severity:
                _show(each, out, everything=everything)
    if everything:
        for each in results:
            if each.status in {"ok", "skipped"}:
                mark, style = _MARKS[each.status]
                out.line(f"{mark}  {each.id}  {each.title}{f': {each.reason}' if each.reason else ''}", style)
    for group in dict.fromkeys(each.group for each in results):
        mine = [each for each in results if each.group == group]
        count = {status: sum(each.status == status for each in mine) for status in _MARKS}
        bad = count[ERROR] + count[WARNING]
        parts = [f"{count['ok']} of {len(mine)} checks found nothing"]
        parts += [f"{bad} found something"] if bad else []
        parts += (
            [f"{count[NOTE]} with notes (--all)" if not everything else f"{count[NOTE]} with notes"]
            if count[NOTE]
            else []
        )
        parts += [f"{count['skipped']} could not look"] if count["skipped"] else []
        mark, style = ("  ", "") if bad else _MARKS["skipped" if count["skipped"] else "ok"]
        out.line(f"{mark}  {group}: {', '.join(parts)}", style)
    reasons: dict[str, list[str]] = {}
    for each in results:
        if each.status == "skipped" and not everything:
            reasons.setdefault(each.reason, []).append(each.id)
    for reason, ids in reasons.items():
        out.line(f"?   {_span(ids)} {reason}")


def _show(each: Examined, out: Output, *, everything: bool) -> None:
    shown = each.found if everything else [s for s in each.found if s.severity != NOTE][:MOST_LINES]
    for symptom in shown:
        mark, style = _MARKS[symptom.severity or WARNING]
        out.line(f"{mark}  {each.id}  {symptom.finding}", style)
        out.line(f"           {symptom.evidence}")
        out.line(f"           do: {symptom.remedy}   ({each.page})")
    left = sum(everything or symptom.severity != NOTE for symptom in each.found) - len(shown)
    if left:
        out.line(f"           and {left} more findings of {each.id}; --all writes them")


def _span(ids: Sequence[str]) -> str:
    return ", ".join(ids) if len(ids) <= 4 else f"{ids[0]} and {len(ids) - 1} others"


COMMAND: Final = Command(
    name="doctor",
    summary="Find what is probably wrong on this node, and what to do.",
    description="Checks the daemon, the kernel, Services and endpoints. Nothing is changed.",
    examples=(
        ("What is wrong on this node?", "kube-proxy doctor"),
        ("Why does this Service not answer?", "kube-proxy doctor shop/api"),
        ("Is the connection table full?", "kube-proxy doctor --check KP050"),
        (
            "Check manifests, without connecting to endpoints.",
            "kube-proxy doctor --manifests DIR --no-connect",
        ),
    ),
    statuses=((0, "nothing was found"), (FOUND, "something was found: errors or warnings")),
    options=_options,
    run=_run,
)
