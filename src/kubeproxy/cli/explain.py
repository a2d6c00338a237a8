"""`kube-proxy explain`: why a packet goes where it goes."""

import argparse
import asyncio
import os
from typing import Final

from kubeproxy.api.addresses import family_of, join
from kubeproxy.cli.command import Asked, Command, CommandError
from kubeproxy.cli.output import Output
from kubeproxy.insight import origin, packets, snapshot
from kubeproxy.insight.answer import Answer, answer
from kubeproxy.machine.base import Machine
from kubeproxy.model.explain import explain

STATUSES: Final = {"forward": 0, "pass": 0, "drop": 3, "reject": 4}
DIFFERS: Final = 5


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from", dest="source", required=True, metavar="SOURCE",
        help="who sends: an address, `node` for a process of the node, or pod/NAMESPACE/NAME",
    )  # fmt: skip
    parser.add_argument(
        "--to", dest="destination", required=True, metavar="DESTINATION",
        help="ADDRESS:PORT, SERVICE.NAMESPACE[:PORT] or :NODEPORT, with /udp or /sctp if it is not TCP",
    )  # fmt: skip
    parser.add_argument(
        "--interface",
        default="",
        metavar="NAME",
        help="the interface the packet comes in by; looked up if not given",
    )


def _run(asked: Asked) -> int:
    from kubeproxy.machine.linux import LinuxMachine

    machine = LinuxMachine()
    found = asyncio.run(ask(asked, machine))
    if asked.arguments.json:
        asked.out.json(found)
    else:
        show(found, asked.out)
    return DIFFERS if found.kernel == "differs" else STATUSES[found.verdict]


async def ask(asked: Asked, machine: Machine) -> Answer:
    """Answers the question.

    Raises:
        CommandError: it cannot be answered.
    """
    arguments = asked.arguments
    try:
        path = packets.pod_path(arguments.source)
        with asked.out.progress("reading Services and EndpointSlices"):
            taken = await snapshot.take(
                origin.find(asked.flags, machine, os.environ),
                machine,
                node=arguments.node,
                paths=[path] if path else [],
            )
        packet = packets.packet(taken, machine, arguments.source, arguments.destination, arguments.interface)
    except (origin.OriginError, snapshot.SnapshotError, packets.PacketError) as e:
        raise CommandError(str(e)) from e
    for trouble in taken.troubles:
        asked.out.note(trouble)
    family = family_of(packet.destination)
    node, manners = taken.node(family), taken.mode.manners
    if node is None or manners is None:
        raise CommandError(f"{taken.mode.name} mode cannot be explained")
    return answer(taken, explain(taken.state, node, taken.local_addresses[family], manners, packet))


def show(found: Answer, out: Output) -> None:
    """Writes an answer for people."""
    out.line(
        f"{found.source} -> {join(found.destination, found.port)}/{found.protocol}   on node {found.node},"
        f" {found.mode} mode",
        "bold",
    )
    for stage in found.stages:
        style = {"verdict": "green" if found.verdict in {"forward", "pass"} else "red"}.get(stage.name, "")
        out.line(f"  {stage.name:<14}{stage.text}", style)
    label = "to"
    for to in found.endpoints:
        at = f"{join(to.address, to.port)}"
        where = " ".join(part for part in (to.node, to.zone) if part)
        masquerade = ", masqueraded" if to.masquerade else ""
        out.line(f"  {label:<14}{at:<24} {100 * to.share:5.1f} %  {where}{masquerade}")
        label = ""
    label = "not to"
    for other in found.excluded:
        at = join(other.address, other.port) if other.port else other.address
        detail = f": {other.detail}" if other.detail else ""
        out.line(f"  {label:<14}{at:<24} {other.reason}{detail} (EndpointSlice {other.slice})")
        label = ""
    out.line(f"  {'kernel':<14}{KERNEL[found.kernel]}", "red" if found.kernel == "differs" else "")
    for difference in found.differences:
        out.line(f"  {'':<14}{difference}", "red")


KERNEL: Final = {
    "agrees": "holds what the plan of the Service asks for",
    "differs": "differs from the plan of the Service:",
    "unread": "was not compared",
}

COMMAND: Final = Command(
    name="explain",
    summary="Explain why a packet goes where it goes.",
    description="Explains what happens to the first packet of a connection, and why.",
    examples=(
        ("Where do connections of a Pod to a Service go?", "kube-proxy explain --from 10.244.1.2 --to api.shop:80"),
        ("What happens to a client outside of the cluster at a node port?", "kube-proxy explain --from 203.0.113.7 --to :30080"),
        ("And on another node, from manifests?", "kube-proxy explain --from node --to 10.96.0.10:53/udp --manifests DIR --node n2"),
    ),
    statuses=(
        (0, "the packet is forwarded, or is for no Service"),
        (3, "it is dropped"),
        (4, "it is rejected"),
        (DIFFERS, "the kernel does not hold what the plan of the Service asks for"),
    ),
    options=_options,
    run=_run,
)  # fmt: skip
