"""`kube-proxy check`: on Windows, asks what only a real HNS answers, and prints what to report."""

import argparse
import os
import sys
from typing import Final

import msgspec

from kubeproxy.cli.command import Asked, Command, CommandError
from kubeproxy.config.defaults import NETWORK_VARIABLE
from kubeproxy.machine import of_this_host
from kubeproxy.machine.base import Machine
from kubeproxy.windows.calls import Calls
from kubeproxy.windows.errors import HcnError, HnsMissingError
from kubeproxy.windows.questions import HnsFinding, ask

LEFT: Final = 2


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--network",
        default=os.environ.get(NETWORK_VARIABLE, ""),
        metavar="NAME",
        help=f"the HNS network of the network plug-in; without it that of {NETWORK_VARIABLE}",
    )
    parser.add_argument("--json", action="store_true", help="write the answers and the documents as JSON")


def _run(asked: Asked) -> int:
    from kubeproxy.windows.binding import system_binding

    if sys.platform != "win32":
        raise CommandError("check asks the Host Networking Service of Windows, and this is not Windows")
    try:
        calls = system_binding()
    except HnsMissingError as e:
        raise CommandError(str(e)) from e
    return answer(asked, calls, of_this_host())


def answer(asked: Asked, calls: Calls, machine: Machine) -> int:
    """Asks, and writes the answers.

    Args:
        asked: the question.
        calls: the functions of HNS.
        machine: this host.

    Raises:
        CommandError: HNS does not answer, or has no such network.
    """
    if not asked.arguments.network:
        raise CommandError("--network NAME is missing: Get-HnsNetwork lists the networks")
    found: list[HnsFinding] = []
    try:
        for finding in ask(calls, asked.arguments.network, machine.socket):
            found.append(finding)
            if not asked.arguments.json:
                _show(finding)
    except (HcnError, LookupError) as e:
        raise CommandError(str(e.args[0]) if isinstance(e, LookupError) else str(e)) from e
    if asked.arguments.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
    else:
        sys.stdout.write("\nPlease send all of it with your report: docs/windows.md says where.\n")
    return 0 if found[-1].answer == "yes" else LEFT


def _show(finding: HnsFinding) -> None:
    sys.stdout.write(f"{finding.question} {finding.answer}\n")
    for each in finding.exchanges:
        sys.stdout.write(f"    {each.call} {each.sent}\n")
        sys.stdout.write(f"      -> {each.error or each.returned}\n")
    sys.stdout.flush()


COMMAND: Final = Command(
    name="check",
    summary="on Windows, ask what only a real HNS answers",
    description=(
        "On Windows, asks the Host Networking Service the questions that its documentation leaves open, with an endpoint"
        " and load balancers at addresses for documentation, and removes them. Prints the documents that were sent and"
        " returned. Other objects are not touched."
    ),
    examples=(("Ask about the network of flannel", "kube-proxy check --network cbr0"),),
    statuses=(
        (0, "all was asked and removed"),
        (LEFT, "something could not be removed; the last lines name it"),
    ),
    options=_options,
    run=_run,
    sources=False,
)
