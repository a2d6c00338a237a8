"""`kube-proxy plan`: what a start would change in the kernel of this node."""

import argparse
import asyncio
from typing import Final

from msgspec.structs import replace

from kubeproxy.cli import reading
from kubeproxy.cli.command import Asked, Command, CommandError
from kubeproxy.cli.output import Output
from kubeproxy.insight.changes import Piece, counted
from kubeproxy.insight.planned import NODE_PORT, PlannedChanges, ServiceChange, of_kernel, of_manifests
from kubeproxy.machine.base import Machine

CHANGES: Final = 2
MOST_SERVICES: Final = 50
"""So many Services are written in text without --diff; JSON has all."""

SIGNS: Final = {"new": "+", "gone": "-", "changed": "~", "common": "~"}
STYLES: Final = {"+": "green", "-": "red", "~": "yellow", "!": "bold red"}


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--diff", action="store_true", help="write every line that changes, in the syntax of the system's own tools"
    )  # fmt: skip
    parser.add_argument(
        "--mode",
        default="",
        metavar="MODE",
        help="plan for another mode: iptables, nftables, ipvs, userspace or ebpf",
    )
    parser.add_argument(
        "--against", default="", metavar="FILE",
        help="compare with the manifests of a file or folder, not with the kernel: what changes from them",
    )  # fmt: skip
    parser.add_argument(
        "--at", default="", metavar="MOMENT",
        help="compare with the plans of a former moment, from the journal: 03:12:07, 2026-11-29T03:12:07Z or -10m",
    )  # fmt: skip


def _run(asked: Asked) -> int:
    from kubeproxy.machine import of_this_host

    arguments, out, machine = asked.arguments, asked.out, of_this_host()
    if arguments.at:
        return _since(asked, machine)
    found = reading.configuration(asked, machine)
    places = found.options.config.ebpf
    machine = of_this_host(places.cgroup, places.pins)
    taken = asyncio.run(reading.cluster(asked, machine, found=found))
    if arguments.against:
        other = replace(found, options=replace(found.options, manifests=(arguments.against,)))
        try:
            before = asyncio.run(reading.cluster(asked, machine, found=other))
        except FileNotFoundError as e:
            raise CommandError(f"--against {arguments.against}: there is no such file or folder") from e
        return _report(of_manifests(before, taken, arguments.against), asked)
    with out.progress("reading the kernel"):
        planned = asyncio.run(of_kernel(taken, machine))
    return _report(planned, asked)


def _since(asked: Asked, machine: Machine) -> int:
    """What changed since a former moment, from the journal."""
    from kubeproxy.insight import past

    arguments = asked.arguments
    if arguments.against or arguments.mode:
        raise CommandError(
            "--at compares with the plans of a former moment, and takes no --against and no --mode"
        )
    try:
        then, now = past.since(asked.flags, machine, arguments.at, arguments.node)
    except past.PastError as e:
        raise CommandError(str(e)) from e
    return _report(of_manifests(then, now, f"the journal at {then.past}"), asked)


def _report(planned: PlannedChanges, asked: Asked) -> int:
    """Writes what changes; returns the exit status."""
    for trouble in planned.troubles:
        asked.out.note(trouble)
    if asked.arguments.json:
        asked.out.json(planned)
    else:
        show(planned, asked.out, diff=asked.arguments.diff)
    if planned.cannot:
        raise CommandError(planned.cannot)
    return 0 if planned.nothing else CHANGES


def show(found: PlannedChanges, out: Output, *, diff: bool) -> None:
    """Writes what changes as text."""
    if found.cannot:
        return
    against = f", compared with {found.against}" if found.against else ", compared with the kernel"
    out.line(f"{found.mode} mode on node {found.node}{against}", "bold")
    for each in found.changes if diff else found.changes[:MOST_SERVICES]:
        _show_change(each, out, diff=diff)
    if not diff and len(found.changes) > MOST_SERVICES:
        out.line(f"  and {len(found.changes) - MOST_SERVICES:,} more; --diff or --json shows all")
    for old in found.removed:
        out.line(f"  - {old.family} {old.what}: {counted(len(old.lines), 'piece')} removed", STYLES["-"])
        for line in old.lines if diff else ():
            out.line(f"      - {line}", STYLES["-"])
    for unread in found.unread:
        out.line(f"  not compared: {unread}", "red")
    if found.flows_unread:
        out.line(f"  open connections were not counted: {found.flows_unread}")
    if found.nothing:
        out.line("nothing changes" if not found.unread else "nothing changes in what was compared", "green")
        return
    size = counted(found.lines, "line") + (f", {counted(found.writes, 'write')}" if found.writes else "")
    out.line(f"{size}; {found.untouched:,} of {counted(found.services, 'Service')} are not touched")


def _show_change(change: ServiceChange, out: Output, *, diff: bool) -> None:
    sign = SIGNS[change.change]
    name = f"Service {change.service}" if change.service else "common to all Services"
    if not change.service and change.change == "gone":
        name = "a Service that does not exist"
    out.line(f"  {sign} {change.family} {name:<32} {change.what}   ({counted(len(change.pieces), 'line')})", STYLES[sign])  # fmt: skip
    ports = [front for front in change.lost if front.startswith(NODE_PORT)]
    for port in ports:
        out.line(f"  ! {change.family} {name:<32} {port} leaves", STYLES["!"])
    if change.flows:
        what = "flow that leads there" if change.flows == 1 else "flows that lead there"
        out.line(
            f"      {change.flows:,} established {what}: TCP stays until it ends, UDP and SCTP are deleted"
        )
    for piece in change.pieces if diff else ():
        _show_piece(piece, out)


def _show_piece(piece: Piece, out: Output) -> None:
    if piece.held:
        out.line(f"      - {piece.held}", STYLES["-"])
    if piece.wanted:
        out.line(f"      + {piece.wanted}", STYLES["+"])


COMMAND: Final = Command(
    name="plan",
    summary="Show what a start would change in the kernel.",
    description=(
        "Shows what a start with this configuration would change in the kernel of this node, Service by Service, and the open\n"
        "connections that it touches. Nothing is changed. + a Service is new, - it is gone, ~ it changes, ! a node port leaves."
    ),
    examples=(
        ("What would these manifests change?", "kube-proxy plan --manifests new/"),
        ("Every line of it, in the syntax of the system's own tools", "kube-proxy plan --manifests new/ --diff"),
        ("What would another mode change?", "kube-proxy plan --mode nftables"),
        ("What do two sets of manifests differ in, on any machine?", "kube-proxy plan --manifests new/ --against old/ --node n1"),
    ),
    statuses=((0, "nothing would change"), (CHANGES, "something would change")),
    options=_options,
    run=_run,
)  # fmt: skip
