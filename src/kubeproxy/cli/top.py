"""`kube-proxy top`: the current traffic of Services."""

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from kubeproxy.cli.command import Asked, Command, CommandError
from kubeproxy.cli.output import Output
from kubeproxy.machine.base import Machine
from kubeproxy.model.plan import Key

if TYPE_CHECKING:
    from kubeproxy.insight.snapshot import LiveCluster
    from kubeproxy.insight.top.values import Top
    from kubeproxy.insight.top.watch import TopWatch

INTERVAL: Final = 2.0
LEAST_SECONDS: Final = 0.2
MOST_SECONDS: Final = 3600.0
POLL_SECONDS: Final = 0.25
MOST_SERVICES: Final = 40


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "service",
        nargs="?",
        default="",
        metavar="SERVICE",
        help="only this Service, with its endpoints: NAMESPACE/NAME, NAME.NAMESPACE or NAME",
    )
    parser.add_argument("--once", action="store_true", help="write what one interval showed, and end")
    parser.add_argument(
        "--interval", type=float, default=INTERVAL, metavar="SECONDS",
        help=f"time between two readings; {INTERVAL:g} if not given",
    )  # fmt: skip
    parser.add_argument(
        "--accounting",
        action="store_true",
        help="set sysctl net.netfilter.nf_conntrack_acct to 1 meanwhile, so that bytes are counted",
    )


@contextlib.contextmanager
def _accounting(machine: Machine, *, wanted: bool) -> Iterator[None]:
    """Lets the kernel count bytes of new connections until the block ends, and puts the setting back."""
    from kubeproxy.insight.top.flows import ACCOUNTING

    try:
        written = wanted and machine.set_sysctl(ACCOUNTING, 1)
    except OSError as e:
        raise CommandError(f"--accounting: sysctl {ACCOUNTING} cannot be set: {e.strerror or e}") from e
    try:
        yield
    finally:
        if written:
            machine.set_sysctl(ACCOUNTING, 0)


def _run(asked: Asked) -> int:
    from kubeproxy.insight import snapshot

    interval = asked.arguments.interval
    if not LEAST_SECONDS <= interval <= MOST_SECONDS:
        raise CommandError(
            f"--interval {interval:g}: seconds, at least {LEAST_SECONDS:g} and at most {MOST_SECONDS:g}"
        )
    try:
        asyncio.run(_answer(asked))
    except snapshot.SnapshotError as e:
        raise CommandError(str(e)) from e
    return 0


async def _answer(asked: Asked) -> None:
    from kubeproxy.cli.reading import READING, configuration, service
    from kubeproxy.insight import snapshot
    from kubeproxy.insight.top import changes
    from kubeproxy.insight.top.watch import TopWatch
    from kubeproxy.machine import of_this_host

    arguments, out = asked.arguments, asked.out
    machine = of_this_host()
    async with contextlib.AsyncExitStack() as stack:
        with out.progress(READING):
            found = configuration(asked, machine)
            cluster = await stack.enter_async_context(snapshot.follow(found, machine, node=arguments.node))
        taken = cluster.snapshot
        if not taken.own:
            raise CommandError(
                f"node {taken.name} is not this host: what its kernel counts can only be read there"
            )
        only = service(arguments.service, taken)
        stack.enter_context(_accounting(machine, wanted=arguments.accounting))
        watch = stack.enter_context(contextlib.closing(TopWatch(taken, machine)))
        changes.note_first(watch, cluster)
        if not (arguments.once or arguments.json) and sys.stdin.isatty() and sys.stdout.isatty():
            from kubeproxy.insight.top import terminal

            await terminal.show(watch, cluster, only, arguments.interval, out.console, machine)
            return
        with out.progress(f"watching for {arguments.interval:g} s"):
            seen = await once(watch, cluster, only, arguments.interval, machine)
    if arguments.json:
        out.json(seen)
    else:
        show(seen, out, details=only is not None)


async def once(
    watch: "TopWatch", cluster: "LiveCluster", only: Key | None, interval: float, machine: Machine
) -> "Top":
    """Two readings, an interval apart."""
    from kubeproxy.insight import daemon
    from kubeproxy.insight.top import changes

    watch.look(everything=True)
    end = time.monotonic() + interval
    while (left := end - time.monotonic()) > 0:
        await asyncio.sleep(min(left, POLL_SECONDS))
        watch.poll()
    changes.follow(watch, cluster)
    watch.observed = await asyncio.to_thread(daemon.observed, machine)
    watch.look(everything=True)
    return watch.top(None if only is None else [only])


def show(found: "Top", out: Output, *, details: bool) -> None:
    """Writes figures as text."""
    from kubeproxy.insight.top import table

    out.line(table.about(found))
    for text, style in table.observations(found):
        out.line(text, style)
    for text, style in table.lines(found, most=MOST_SERVICES, details=details):
        out.line(text, style)
    ports = sum(len(service.ports) for service in found.services)
    if not details and ports > MOST_SERVICES:
        out.line(f"and {ports - MOST_SERVICES:,} more ports of Services; --json lists all")
    for trouble in found.troubles:
        out.note(trouble)


COMMAND: Final = Command(
    name="top",
    summary="Show the current traffic of Services.",
    description=(
        "Shows new and open connections of Services, bytes, the shares of endpoints, and connections that were not answered\n"
        "or were reset. It reads what the kernel of this node counts, and changes nothing."
    ),
    examples=(
        ("Which Services are busy, and which endpoints do not answer?", "kube-proxy top"),
        ("What does one Service do, endpoint by endpoint?", "kube-proxy top shop/api"),
        ("Figures of ten seconds, for a program", "kube-proxy top --once --interval 10 --json"),
    ),
    statuses=((0, "the figures were shown"),),
    options=_options,
    run=_run,
)  # fmt: skip
