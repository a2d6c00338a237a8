"""Inputs of `iptables-restore` of a size that the programs can process, and the rules written by them."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from kubeproxy.backends.iptables.steps import Fragment, cut
from kubeproxy.backends.programs import FILTER, NAT, InputRefusedError, Tables, Variant
from kubeproxy.model.plan import ServicePlan

log = logging.getLogger(__name__)

NF_TABLES_LINES = 4000
"""About the length of their inputs: the nf_tables programs need time quadratic in the chains of one."""

NF_TABLES_FIRST_LINES = 100_000
"""The limit for the first input of a first sync, see `load`: it must fit into one message to the kernel."""

_LINES_PER_ENDPOINT = 4

STAGES: tuple[tuple[str, Callable[[Fragment], list[str]]], ...] = (
    (FILTER, lambda f: f.refusals),
    (NAT, lambda f: f.nat),
    (FILTER, lambda f: f.welcome),
)
"""The inputs of a fragment in their order: each with its table, and what of the fragment is in it."""


class RuleWriter:
    """Changes the tables, and counts the rules it writes.

    Attributes:
        tables: the tables.
        written: the rules that were written to each table since `clear`.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.written: Counter[str] = Counter()

    def send(self, fragments: Sequence[Fragment]) -> None:
        """Sends fragments together."""
        for table, part in STAGES:
            if lines := [line for f in fragments for line in part(f)]:
                try:
                    self.write(table, lines)
                except InputRefusedError:
                    if table == NAT:
                        self.take_back(fragments)
                    raise

    def take_back(self, fragments: Sequence[Fragment]) -> None:
        """Deletes what was put into table filter for fragments whose part in table nat was refused."""
        if lines := [f"-D {line.removeprefix('-I ')}" for f in fragments for line in f.refusals]:
            try:
                self.write(FILTER, lines)
            except InputRefusedError as e:
                log.warning(
                    "What was added to table %(table)s for a refused Service stays until the next full sync: %(err)s",
                    {"table": FILTER, "err": e},
                )

    def write(self, table: str, lines: Iterable[str]) -> None:
        """Changes a table, and counts the rules that takes."""

        def counted() -> Iterator[str]:
            for line in lines:
                self.written[table] += line.count("\n-A ") + line.startswith(("-A ", "-I "))
                yield line

        self.tables.restore(table, counted())


def parts(variant: Variant, plans: Sequence[ServicePlan]) -> Iterator[tuple[Sequence[ServicePlan], bool]]:
    """As many Services at a time as the programs can process, by an estimate of their lines.

    Yields:
        Some Services, and whether all that comes of them can be sent at once: one alone may be too much.
    """
    if variant == "legacy":
        yield plans, True
        return
    start = size = 0
    limit = NF_TABLES_FIRST_LINES
    for end, plan in enumerate(plans, 1):
        size += _lines(plan)
        if size >= limit or end == len(plans):
            yield plans[start:end], size < 2 * limit
            start, size, limit = end, 0, NF_TABLES_LINES


def pieces(variant: Variant, fragments: Iterable[Fragment]) -> Iterator[list[Fragment]]:
    """As many fragments at a time as the programs can process; one that is too large by itself is split."""
    if variant == "legacy":
        yield list(fragments)
        return
    piece: list[Fragment] = []
    size = 0
    for whole in fragments:
        lines = nat_lines(whole)
        for f in cut(whole, NF_TABLES_LINES) if lines >= 2 * NF_TABLES_LINES else (whole,):
            piece.append(f)
            size += min(lines, NF_TABLES_LINES)
            if size >= NF_TABLES_LINES:
                yield piece
                piece, size = [], 0
    if piece:
        yield piece


def nat_lines(f: Fragment) -> int:
    """How many lines a fragment has for table nat: each of its texts may be several."""
    return sum(text.count("\n") for text in f.nat)


def endpoints(plan: ServicePlan | None) -> int:
    """How many endpoints a Service has, by which its rules are estimated and comments are left out."""
    return sum(port.known_endpoints for port in plan.ports) if plan else 0


def _lines(plan: ServicePlan) -> int:
    """About how many lines a new Service needs."""
    ranges = sum(len(port.source_ranges) for port in plan.ports)
    return _LINES_PER_ENDPOINT * (endpoints(plan) + len(plan.ports)) + ranges
