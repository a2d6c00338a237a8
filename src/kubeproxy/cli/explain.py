"""`kube-proxy explain`: why a packet goes where it goes."""

import argparse
from typing import Final

from msgspec import UNSET
from msgspec.structs import replace

from kubeproxy.answers.answer import Answer
from kubeproxy.answers.seen import Followed, Live, TracedPacket
from kubeproxy.api.addresses import FAMILIES, family_of, join
from kubeproxy.cli.command import Asked, Command, CommandError
from kubeproxy.cli.output import Output
from kubeproxy.machine.base import Machine

STATUSES: Final = {"forward": 0, "pass": 0, "drop": 3, "reject": 4}
DIFFERS: Final = 5
MOST_RULES: Final = 12
"""So many of the things the kernel holds, and of the differences, are shown."""

MOST_ENDPOINTS: Final = 20
"""So many endpoints are shown that packets reach, and so many of the others."""

LIVE_PACKETS: Final = 5
"""So many packets are traced if no number is given, ..."""

MOST_LIVE: Final = 1000
"""... and so many at most."""

LIVE_SECONDS: Final = 30.0
"""So long packets are waited for if no time is given, ..."""

MOST_SECONDS: Final = 86_400.0
"""... and so long at most."""

KERNEL: Final = {
    "agrees": "holds what is planned",
    "differs": "differs from what is planned",
    "unread": "was not compared",
}


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
    parser.add_argument(
        "--live", type=int, nargs="?", const=LIVE_PACKETS, metavar="N",
        help=f"trace N real packets of the flow, {LIVE_PACKETS} if no number is given, and compare them with the prediction",
    )  # fmt: skip
    parser.add_argument(
        "--connect", action="store_true", help="with --live and --from node: make these connections, too"
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=float, default=LIVE_SECONDS, metavar="SECONDS",
        help=f"how long --live waits for packets; {LIVE_SECONDS:g} if not given",
    )  # fmt: skip
    parser.add_argument(
        "--at", default="", metavar="MOMENT",
        help="answer for a former moment, from the journal: 03:12:07, 2026-11-29T03:12:07Z or -10m",
    )  # fmt: skip
    parser.add_argument("--follow", action="store_true", help="list the open connections of the flow")


def _run(asked: Asked) -> int:
    from kubeproxy.machine import of_this_host

    arguments = asked.arguments
    if arguments.live is not None and not 1 <= arguments.live <= MOST_LIVE:
        raise CommandError(f"--live {arguments.live}: a number from 1 to {MOST_LIVE}")
    if not 0 < arguments.timeout <= MOST_SECONDS:
        raise CommandError(f"--timeout {arguments.timeout:g}: seconds, above 0 and at most {MOST_SECONDS:g}")
    if arguments.connect and (arguments.live is None or arguments.source != "node"):
        raise CommandError("--connect makes connections of this node for --live: add --live, and --from node")
    machine = of_this_host()
    if arguments.at:
        return _past(asked, machine)
    found = _of_daemon(asked, machine)
    if found is None:
        import asyncio

        found = asyncio.run(ask(asked, machine))
    if not asked.arguments.json:
        show(found, asked.out)
    found = _see(found, asked, machine)
    if asked.arguments.json:
        asked.out.json(found)
    differs = found.kernel == "differs" or (found.live is not UNSET and found.live.differs)
    return DIFFERS if differs or found.routing else STATUSES[found.verdict]


def _past(asked: Asked, machine: Machine) -> int:
    """Answers for a former moment."""
    from kubeproxy.insight import past

    arguments = asked.arguments
    if arguments.live or arguments.follow:
        raise CommandError(
            "--live and --follow show what happens now, not what happened at the moment of --at"
        )
    try:
        with asked.out.progress("reading the journal"):
            taken, found = past.explain(asked.flags, machine, arguments)
    except past.PastError as e:
        raise CommandError(str(e)) from e
    for trouble in taken.troubles:
        asked.out.note(trouble)
    if asked.arguments.json:
        asked.out.json(found)
    else:
        show(found, asked.out, taken.past)
    return STATUSES[found.verdict]


def _of_daemon(asked: Asked, machine: Machine) -> Answer | None:
    """The answer of the running kube-proxy; None if none runs, or it has another configuration."""
    arguments = asked.arguments
    if asked.flags or arguments.node:
        return None
    from kubeproxy.insight import daemon

    addresses: tuple[str, ...] = ()
    if arguments.source.startswith("pod/"):
        if machine.holder() is None:
            return None
        addresses = _of_pod(asked, machine)
    try:
        return daemon.ask(machine, arguments.source, arguments.destination, arguments.interface, addresses)
    except daemon.RefusedQuestionError as e:
        raise CommandError(str(e)) from e


def _of_pod(asked: Asked, machine: Machine) -> tuple[str, ...]:
    """The addresses of the Pod that is asked about: only its object is read."""
    import asyncio

    from kubeproxy.answers import packets
    from kubeproxy.cli import reading
    from kubeproxy.insight import snapshot

    source = asked.arguments.source
    try:
        path = packets.pod_path(source)
        found = reading.configuration(asked, machine)
        objects, troubles = asyncio.run(snapshot.objects(found, machine, [path]))
        return packets.pod_addresses(source, path, objects, troubles)
    except (packets.PacketError, snapshot.SnapshotError) as e:
        raise CommandError(str(e)) from e


async def ask(asked: Asked, machine: Machine) -> Answer:
    """Answers the question from a reading of the cluster.

    Raises:
        CommandError: it cannot be answered.
    """
    from kubeproxy.answers import asking, packets
    from kubeproxy.cli import reading

    arguments = asked.arguments
    try:
        path = packets.pod_path(arguments.source)
        taken = await reading.cluster(asked, machine, paths=[path] if path else [])
        found = await asking.ask(taken, machine, arguments.source, arguments.destination, arguments.interface)
    except (packets.PacketError, asking.QuestionError) as e:
        raise CommandError(str(e)) from e
    for trouble in taken.troubles:
        asked.out.note(trouble)
    return found


def _see(found: Answer, asked: Asked, machine: Machine) -> Answer:
    """Adds what is seen of real packets and connections, and shows it."""
    arguments, out = asked.arguments, asked.out
    elsewhere = f"node {found.node} is not this host" if arguments.node and found.kernel == "unread" else ""
    if arguments.follow:
        flows = Followed(cannot=elsewhere) if elsewhere else _flows(found, machine)
        found = replace(found, flows=flows)
        if not arguments.json:
            show_flows(flows, out)
    if arguments.live:
        import asyncio

        from kubeproxy.answers import live

        with out.progress(f"waiting for {arguments.live} packets, {arguments.timeout:g} s at most"):
            seen = (
                Live(cannot=elsewhere)
                if elsewhere
                else asyncio.run(
                    live.watch(machine, found, arguments.live, arguments.timeout, connect=arguments.connect)
                )
            )
        found = replace(found, live=seen)
        if not arguments.json:
            show_live(seen, arguments.live, out)
    return found


def _flows(found: Answer, machine: Machine) -> Followed:
    """The open connections of the flow of an answer."""
    from kubeproxy import backends
    from kubeproxy.answers import followed
    from kubeproxy.backends.base import SyncError
    from kubeproxy.backends.relayed import RELAYED, group_of
    from kubeproxy.insight import daemon
    from kubeproxy.nodewatch import local_addresses

    local = [each for family in FAMILIES for each in local_addresses(machine, family)]
    if not found.service or backends.mode(found.mode).forwards or found.protocol not in RELAYED:
        return followed.follow(machine, found, local)
    name = f"{found.service}:{found.port_name}" if found.port_name else found.service
    try:
        carried = daemon.flows(
            machine,
            family_of(found.destination),
            group_of(name, found.protocol),
            (found.destination, found.port),
            sorted(followed.sources(found, local)),
            followed.MOST + 1,
        )
    except SyncError as e:
        return Followed(cannot=str(e))
    return followed.of_relay(found, carried)


def show(found: Answer, out: Output, asked_at: str = "") -> None:
    """Writes an answer as text; `asked_at` is the former moment that it is for."""
    at = f", at {asked_at}" if asked_at else ""
    out.line(
        f"{found.source} -> {join(found.destination, found.port)}/{found.protocol}   on node {found.node},"
        f" {found.mode} mode{at}",
        "bold",
    )
    for stage in found.stages:
        good = found.verdict in {"forward", "pass"}
        style = {"verdict": "green" if good else "red", "routing": "red"}.get(stage.name, "")
        out.line(f"  {stage.name:<14}{stage.text}", style)
    label = "to"
    for to in found.endpoints[:MOST_ENDPOINTS]:
        at = f"{join(to.address, to.port)}"
        where = " ".join(part for part in (to.node, to.zone) if part)
        notes = [where] if where else []
        notes += ["terminating"] * to.terminating + ["masqueraded"] * to.masquerade
        out.line(f"  {label:<14}{at:<24} {100 * to.share:5.1f} %  {', '.join(notes)}".rstrip())
        label = ""
    _show_more(len(found.endpoints), MOST_ENDPOINTS, out)
    label = "not to"
    other_family = [each for each in found.excluded if each.reason == "other family"]
    excluded = [each for each in found.excluded if each.reason != "other family"]
    if not found.endpoints and not excluded:
        excluded, other_family = other_family, []
    for other in excluded[:MOST_ENDPOINTS]:
        at = join(other.address, other.port) if other.port else other.address
        detail = f": {other.detail}" if other.detail else ""
        out.line(f"  {label:<14}{at:<24} {other.reason}{detail} (EndpointSlice {other.slice})")
        label = ""
    _show_more(len(excluded), MOST_ENDPOINTS, out)
    if other_family:
        out.line(f"  {label:<14}{len(other_family)} endpoints of the other IP family")
    why = f": {found.unread}" if found.unread else ""
    out.line(f"  {'kernel':<14}{KERNEL[found.kernel]}{why}", "red" if found.kernel == "differs" else "")
    for difference in found.differences[:MOST_RULES]:
        out.line(f"  {'':<14}{difference}", "red")
    _show_more(len(found.differences), MOST_RULES, out)
    for rule in found.rules[:MOST_RULES]:
        out.line(f"  {'':<14}{rule.text}{f'   (rule {rule.number})' if rule.number else ''}", "dim")
    _show_more(len(found.rules), MOST_RULES, out)


def _show_more(count: int, most: int, out: Output) -> None:
    """Writes how many lines are left out, if some are."""
    if count > most:
        out.line(f"  {'':<14}and {count - most} more; --json has all", "dim")


def show_flows(found: Followed, out: Output) -> None:
    """Writes open connections as text."""
    if found.cannot:
        out.line(f"  {'connections':<14}were not listed: {found.cannot}")
        return
    total = sum(found.endpoints.values())
    out.line(f"  {'connections':<14}{total} open")
    for endpoint, count in found.endpoints.items():
        out.line(f"  {'':<14}{endpoint:<24} {count}")
    for flow in found.flows[:MOST_RULES]:
        note = "" if flow.expected else "   new connections do not go there"
        out.line(
            f"  {'':<14}{flow.client} -> {flow.endpoint} {flow.state}{note}",
            "" if flow.expected else "yellow",
        )
    if total > MOST_RULES:
        out.line(f"  {'':<14}and {total - MOST_RULES} more; --json lists them")


def show_live(found: Live, wanted: int, out: Output) -> None:
    """Writes traced packets as text."""
    from kubeproxy.answers.live import shown

    if found.cannot:
        out.line(f"  {'live':<14}packets cannot be traced: {found.cannot}")
        return
    text = (
        f"{len(found.packets)} packets in {found.seconds:g} s: {found.matches} MATCH, {found.differs} DIFFERS"
    )
    if found.losses:
        text += f"; {found.losses} times the kernel had more to report than could be received"
    if not found.packets:
        text += "; none came: the client did not connect, or its packets do not reach this node, or not its nf_tables (tc, XDP)"
    elif len(found.packets) < wanted:
        text += f"; no more than {len(found.packets)} of {wanted} came"
    out.line(f"  {'live':<14}{text}", "red" if found.differs else "")
    groups: dict[str, list[TracedPacket]] = {}
    for packet in found.packets:
        groups.setdefault(shown(packet, packet.source.rpartition(":")[0]), []).append(packet)
    for first, *others in groups.values():
        label = "MATCH" if first.match else "DIFFERS"
        same = f"   ({len(others)} more like this)" if others else ""
        out.line(f"  {'':<14}{label:<8}{shown(first, first.source)}{same}", "" if first.match else "red")


COMMAND: Final = Command(
    name="explain",
    summary="Explain why a packet goes where it goes.",
    description=(
        "Explains what happens to the first packet of a connection and why, and whether the kernel holds what is planned.\n"
        "A kube-proxy that runs here answers from what it knows; otherwise Services and endpoints are read."
    ),
    examples=(
        ("Where do connections of a Pod to a Service go?", "kube-proxy explain --from 10.244.1.2 --to api.shop:80"),
        ("What happens to a client outside of the cluster at a node port?", "kube-proxy explain --from 203.0.113.7 --to :30080"),
        ("Do real packets do that, and which rule drops them?", "kube-proxy explain --from 10.244.1.2 --to api.shop:80 --live 20"),
        ("Why does an endpoint not answer this node?", "kube-proxy explain --from node --to 10.244.1.12:8080 --live --connect"),
        ("Where do the connections that are open now go?", "kube-proxy explain --from 10.244.1.2 --to api.shop:80 --follow"),
        ("Where did they go last night?", "kube-proxy explain --from 10.244.1.2 --to api.shop:80 --at 03:12:07"),
        ("And on another node, from manifests?", "kube-proxy explain --from node --to 10.96.0.10:53/udp --manifests DIR --node n2"),
    ),
    statuses=(
        (0, "the packet is forwarded, or is for no Service"),
        (3, "it is dropped"),
        (4, "it is rejected"),
        (DIFFERS, "the kernel does not hold what is planned, routing drops the packet, or a traced packet was treated differently"),
    ),
    options=_options,
    run=_run,
)  # fmt: skip
