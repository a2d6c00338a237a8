"""`kube-proxy verify`: whether the kernel does what the plans say."""

import argparse
import asyncio
import os
from collections.abc import Sequence
from typing import Final

from kubeproxy.cli.command import Asked, Command, CommandError
from kubeproxy.cli.output import Output
from kubeproxy.insight import origin, snapshot
from kubeproxy.insight.reference.verify import Against, AgainstError, against_reference

DIFFERS: Final = 2
MOST_LINES: Final = 50
"""So many differences are written for people; JSON has all."""


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--against", choices=("reference",), required=True,
        help="compare with the rules that Kubernetes' kube-proxy has in this kernel, by what they do with packets",
    )  # fmt: skip
    parser.add_argument(
        "--rules", default="", metavar="KIND",
        help="which rules to compare if the kernel has several kinds, e.g. 'iptables (legacy)'",
    )  # fmt: skip


def _run(asked: Asked) -> int:
    from kubeproxy.machine.linux import LinuxMachine

    machine = LinuxMachine()
    try:
        with asked.out.progress("reading Services and EndpointSlices"):
            taken = asyncio.run(
                snapshot.take(
                    origin.find(asked.flags, machine, os.environ), machine, node=asked.arguments.node
                )
            )
        for trouble in taken.troubles:
            asked.out.note(trouble)
        with asked.out.progress("comparing rules with plans"):
            results = against_reference(taken, machine, asked.arguments.rules)
    except (origin.OriginError, snapshot.SnapshotError, AgainstError) as e:
        raise CommandError(str(e)) from e
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


COMMAND: Final = Command(
    name="verify",
    summary="Compare the kernel with what Services ask for.",
    description="Compares the kernel of this node with what Services ask for. Nothing is changed.",
    examples=(
        ("Before a migration: do the rules of Kubernetes' kube-proxy do what this program would do?",
         "kube-proxy verify --against reference --kubeconfig /var/lib/kube-proxy/kubeconfig.conf"),
        ("And what would differ in nftables mode?",
         "kube-proxy verify --against reference --config /var/lib/kube-proxy/config.conf --proxy-mode nftables"),
    ),
    statuses=((0, "nothing differs"), (DIFFERS, "something differs, or could not be compared")),
    options=_options,
    run=_run,
)  # fmt: skip
