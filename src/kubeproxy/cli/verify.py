"""`kube-proxy verify`: whether the kernel does what the plans say."""

import argparse
import asyncio
from collections.abc import Sequence
from itertools import groupby
from typing import Final

from kubeproxy.cli import reading
from kubeproxy.cli.command import Asked, Command, CommandError
from kubeproxy.cli.output import Output
from kubeproxy.insight.changes import Piece, counted
from kubeproxy.insight.kernel_diff import FamilyDiff
from kubeproxy.insight.reference.verify import Against, AgainstError, against_reference
from kubeproxy.insight.stale_flows import StaleFlow
from kubeproxy.insight.verify import Verified, verified

DIFFERS: Final = 2
MOST_LINES: Final = 50
"""The maximum number of differences in the text; JSON has all."""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--against", choices=("reference",), default="",
        help="compare with the rules that Kubernetes' kube-proxy has in this kernel, by what they do with packets",
    )  # fmt: skip
    parser.add_argument(
        "--mode", default="", metavar="MODE", help="compare with the plans of another mode: iptables, nftables or ipvs"
    )  # fmt: skip
    parser.add_argument(
        "--rules", default="", metavar="KIND",
        help="with --against: the only kind of rules to compare if the kernel has several, e.g. 'iptables (legacy)'",
    )  # fmt: skip


def _run(asked: Asked) -> int:
    if asked.arguments.rules and not asked.arguments.against:
        raise CommandError("--rules says which rules of the reference to compare: add --against reference")
    try:
        return _against(asked) if asked.arguments.against else _kernel(asked)
    except AgainstError as e:
        raise CommandError(str(e)) from e


def _kernel(asked: Asked) -> int:
    """Compares the kernel with the plans."""
    from kubeproxy.machine import of_this_host

    machine, out = of_this_host(), asked.out

    found = asyncio.run(
        verified(lambda: reading.cluster(asked, machine), machine, lambda: out.progress("reading the kernel"))
    )
    for trouble in found.troubles:
        out.note(trouble)
    if asked.arguments.json:
        out.json(found)
    else:
        _show_kernel(found, out)
    if found.cannot:
        raise CommandError(found.cannot)
    return 0 if found.same else DIFFERS


def _show_kernel(found: Verified, out: Output) -> None:
    for family in found.families:
        _show_family(family, found.mode, out)
    if found.flows_unread:
        out.line(f"conntrack: was not looked at: {found.flows_unread}")
    stale = [flow for flow in found.flows if not flow.ends]
    ending = len(found.flows) - len(stale)
    if stale:
        out.line(f"conntrack: {counted(len(stale), 'flow')} to no endpoint of the Service", "red")
    elif not found.flows_unread:
        out.line("conntrack: no flow has to be deleted", "green")
    if ending:
        out.line(
            f"conntrack: {counted(ending, 'connection')} to endpoints that are gone; they end by themselves"
        )
    for flow in sorted(found.flows, key=lambda flow: flow.ends)[:MOST_LINES]:
        out.line(f"  {_flow(flow)}")
    if len(found.flows) > MOST_LINES:
        out.line(f"  and {len(found.flows) - MOST_LINES:,} more; --json lists all")
    for line in found.remedy:
        out.line(line)


def _show_family(found: FamilyDiff, mode: str, out: Output) -> None:
    title = f"{found.family}: {mode} mode, {counted(found.services, 'Service')}, {counted(found.endpoints, 'endpoint')}: "
    if found.unread:
        out.line(f"{title}was not compared: {found.unread}", "red")
    elif not found.pieces:
        out.line(f"{title}the kernel holds what is planned", "green")
    elif found.empty:
        out.line(f"{title}the kernel has nothing of this mode", "red")
    else:
        services = len({piece.service for piece in found.pieces if piece.service})
        out.line(
            f"{title}{counted(len(found.pieces), 'difference')}, {counted(services, 'Service')} concerned",
            "red",
        )
        show_pieces(found.pieces, out)


def show_pieces(pieces: Sequence[Piece], out: Output) -> None:
    """Writes differences by Service."""
    for service, group in groupby(pieces[:MOST_LINES], lambda piece: piece.service):
        out.line(f"  Service {service}" if service else "  of no Service, or common to all", "bold")
        for piece in group:
            out.line(f"    {piece.kind:<9}in {piece.holder}" if piece.holder else f"    {piece.kind}")
            if piece.held:
                out.line(f"      kernel {piece.held}")
            if piece.wanted:
                out.line(f"      plan   {piece.wanted}")
    if len(pieces) > MOST_LINES:
        out.line(f"  and {len(pieces) - MOST_LINES:,} more; --json lists all")


def _flow(flow: StaleFlow) -> str:
    to = "not translated" if flow.endpoint == flow.front else f"sent to {flow.endpoint}"
    return f"Service {flow.service}: {flow.protocol} {flow.client} -> {flow.front}, {to}, {flow.state}"


def _against(asked: Asked) -> int:
    """Compares the rules of the reference with the plans."""
    from kubeproxy.machine import of_this_host

    machine = of_this_host()
    taken = asyncio.run(reading.cluster(asked, machine))
    for trouble in taken.troubles:
        asked.out.note(trouble)
    with asked.out.progress("comparing rules with plans"):
        results = against_reference(taken, machine, asked.arguments.rules)
    differ = any(each.comparison.differences or each.comparison.unknown for each in results)
    if asked.arguments.json:
        asked.out.json({"mode": taken.mode.name, "node": taken.name, "same": not differ, "families": results})
    else:
        _show(results, taken.mode.name, asked.out)
    return DIFFERS if differ else 0


def _show(results: Sequence[Against], mode: str, out: Output) -> None:
    for each in results:
        found = each.comparison
        same = found.kinds - len(found.differences)
        out.line(
            f"{each.family}: rules of {each.rules}, plans of {mode} mode: the same for {same:,} of {found.kinds:,}"
            " kinds of packets",
            "green" if same == found.kinds and not found.unknown else "red",
        )
        for difference in found.differences[:MOST_LINES]:
            service = f" of Service {difference.service}" if difference.service else ""
            out.line(f"  {difference.front}{service}, from {difference.source} ({difference.address})")
            out.line(f"    rules  {difference.rules}")
            out.line(f"    plan   {difference.plan}")
        if len(found.differences) > MOST_LINES:
            out.line(f"  and {len(found.differences) - MOST_LINES:,} more; --json lists all")
        for rule in found.unknown[:MOST_LINES]:
            out.line(f"  packets that meet this rule were not compared: {rule}", "red")
    for family, of_family in groupby(results, lambda each: each.family):
        first = next(of_family)
        if first.beside:
            kinds = " and of ".join((first.rules, *first.beside))
            out.note(
                f"{family}: the kernel has rules of {kinds}. A packet meets them all: each kind may refuse it, and the"
                " kind that was there first translates it. Unless all are the same as the plans, remove those that are"
                " not in use; a start of this program removes the kinds that its mode does not use"
            )


COMMAND: Final = Command(
    name="verify",
    summary="Compare the kernel with what Services ask for.",
    description=(
        "Compares what the kernel of this node holds with what Services ask for: what is missing, foreign or different,\n"
        "and tracked flows that lead to endpoints that are gone. Nothing is changed."
    ),
    examples=(
        ("Does the kernel hold what the kube-proxy that runs here should have programmed?", "kube-proxy verify"),
        ("Before a migration: do the rules of Kubernetes' kube-proxy do what this program would do?",
         "kube-proxy verify --against reference --kubeconfig /var/lib/kube-proxy/kubeconfig.conf"),
        ("And what would differ in nftables mode?",
         "kube-proxy verify --against reference --config /var/lib/kube-proxy/config.conf --mode nftables"),
    ),
    statuses=((0, "nothing differs"), (DIFFERS, "something differs, or could be compared only in part")),
    options=_options,
    run=_run,
)  # fmt: skip
