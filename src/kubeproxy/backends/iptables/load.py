"""A full sync of iptables mode: what the tables hold is read once, and what differs is corrected.

A first sync is sent in as few inputs as the programs can process. What is refused is bisected to the Service
that causes it; of that one the kernel keeps what it had. What no Service needs is deleted last.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from kubeproxy.backends.base import Failures
from kubeproxy.backends.iptables import batches
from kubeproxy.backends.iptables.batches import STAGES, RuleWriter
from kubeproxy.backends.iptables.compile import (
    NOTHING,
    RuleContext,
    ServiceRules,
    chains_of,
    compile_service,
    front_of,
)
from kubeproxy.backends.iptables.frame import Frame
from kubeproxy.backends.iptables.held import FoundRules, unreferenced
from kubeproxy.backends.iptables.steps import Fragment, between, fragment
from kubeproxy.backends.programs import FILTER, NAT, InputRefusedError
from kubeproxy.backends.shared.isolation import isolate
from kubeproxy.model.plan import Key, ServicePlan, fronts_of

log = logging.getLogger(__name__)


class RulesLoad:
    """One full sync.

    Attributes:
        rules: how many rules of ours there are in each table, when it is done.
    """

    def __init__(self, writer: RuleWriter, wanted: Frame, dialect: RuleContext) -> None:
        """Prepares it.

        Args:
            writer: changes the tables.
            wanted: the rules that do not depend on Services.
            dialect: how the rules of Services are written.
        """
        self._writer = writer
        self._tables = writer.tables
        self._wanted = wanted
        self._dialect = dialect
        self.rules: Counter[str] = wanted.rules()

    def run(self, given: Mapping[Key, ServicePlan]) -> Failures:
        """Does it; returns the Services that were refused.

        Raises:
            InputRefusedError: what is common to all Services was refused.
            SyncError: the tables could not be read or written, or every Service was refused.
        """
        plans, wanted = list(given.values()), self._wanted
        held = FoundRules(self._tables, wanted)
        inputs = held.frame_input(wanted)
        replacement = inputs.pop(NAT, []) if NAT in held.unreadable else []
        for table, lines in inputs.items():
            self._writer.write(table, lines)
        failures: dict[Key, str] = {}
        parts = (
            batches.parts(self._tables.variant, plans) if held.cold and not replacement else [(plans, False)]
        )
        for number, (part, at_once) in enumerate(parts):
            if not (at_once and self._stream(part, failures, first=number == 0)):
                found = (held.towards(p.key, self._counted(p, self.rules)) for p in part)
                fragments: Iterable[Fragment] = (f for f in found if f)
                if replacement:
                    fragments = self._replace(replacement, list(fragments))
                for piece in batches.pieces(self._tables.variant, fragments):
                    self._isolate(piece, failures)
        self._sweep(held, failures, self._losses(given, failures, self._dialect))
        return failures

    @staticmethod
    def _losses(
        plans: Mapping[Key, ServicePlan], failures: Failures, dialect: RuleContext
    ) -> Callable[[str], bool]:
        """Whether a rule of a refused Service is for a front that belongs to another Service now."""
        if not failures:
            return lambda _: False
        owners = {front: key for key, plan in plans.items() for front in fronts_of(plan)}
        lost = {front.front for key in failures for front in plans[key].lost}

        def is_lost(rule: str) -> bool:
            front = front_of(rule, dialect)
            owner = owners.get(front) if front is not None else None
            return front in lost or (owner is not None and not _names(rule, owner))

        return is_lost

    def _replace(self, static: list[str], fragments: list[Fragment]) -> list[Fragment]:
        """Writes all rules of a table that cannot be read, if possible in one input, without a gap.

        Args:
            static: the input that empties the chains that belong to no Service, and fills them with the
                static rules.
            fragments: all Services, as if the table held no rules of them.

        Returns:
            What is still to be done.
        """
        log.warning(
            "%(ipFamily)s: another program put something into table %(table)s that the iptables programs cannot read:"
            " writing all our rules in it again",
            {"ipFamily": self._tables.family, "table": NAT},
        )
        if sum(map(batches.nat_lines, fragments)) < batches.NF_TABLES_FIRST_LINES:
            try:
                self._writer.send([Fragment(None, [], static, []), *fragments])
            except InputRefusedError as e:
                log.warning("The rules were refused together and are sent in pieces: %(err)s", {"err": e})
            else:
                return []
        self._writer.write(NAT, static)
        return fragments

    def _stream(self, plans: Sequence[ServicePlan], failures: dict[Key, str], *, first: bool) -> bool:
        """A first sync, each rule sent as it is made; returns whether it was accepted.

        Args:
            plans: new Services.
            failures: Services of which table filter refuses something are put into it; the rest of them is
                deleted.
            first: no other Service's rules are there.
        """
        refusals: list[Fragment] = []
        rules: Counter[str] = Counter()

        def lines() -> Iterator[str]:
            if first and self._tables.variant == "nf_tables":
                # The program keeps a sorted list of the chains it must read, and walks it for each line; a
                # command that concerns all chains makes it keep no list. This one prints the few rules there
                # are.
                yield "-S\n"
            # The legacy program keeps chains in a sorted list, and inserts fastest at its beginning.
            chains = sorted({chain for p in plans for chain in chains_of(p)}, reverse=True)
            yield from (f":{chain} - [0:0]\n" for chain in chains)
            for p in plans:
                f = between(p.key, NOTHING, self._counted(p, rules))
                if f.refusals:
                    refusals.append(Fragment(f.key, f.refusals, [], []))
                yield from (line for line in f.nat if line[0] != ":")

        try:
            self._writer.write(NAT, lines())
        except InputRefusedError as e:
            log.warning("The first sync was refused as a whole and is done in pieces: %(err)s", {"err": e})
            return False
        refused: dict[Key, str] = {}
        if refusals:
            self._narrow(FILTER, STAGES[0][1], refusals, refused)
        if refused:
            gone = (
                between(p.key, compile_service(p, self._dialect), NOTHING) for p in plans if p.key in refused
            )
            self._writer.send([Fragment(f.key, [], f.nat, []) for f in gone])
            failures.update(refused)
        self.rules.update(rules)
        return True

    def _isolate(self, fragments: list[Fragment], failures: dict[Key, str]) -> None:
        """Sends fragments; puts those that are refused into `failures`."""
        for table, part in STAGES:
            left = [f for f in fragments if part(f) and f.key not in failures]
            if left:
                self._narrow(table, part, left, failures)
            if table == NAT:
                self._writer.take_back([f for f in left if f.key in failures])

    def _narrow(
        self,
        table: str,
        part: Callable[[Fragment], list[str]],
        fragments: list[Fragment],
        failures: dict[Key, str],
    ) -> None:
        """Sends one part of fragments; if it is refused, splits them at the suspect and tries each piece."""

        def send(piece: Sequence[Fragment]) -> None:
            self._writer.write(table, (line for f in piece for line in part(f)))

        def suspect(piece: Sequence[Fragment], error: InputRefusedError) -> int:
            return _suspect(piece, part, error.line)

        for guilty, error in isolate(fragments, send, InputRefusedError, suspect):
            assert guilty.key is not None
            failures[guilty.key] = str(error)

    def _sweep(self, held: FoundRules, failures: Failures, is_lost: Callable[[str], bool]) -> None:
        """Deletes what no Service needs any more; what a refused one or another program uses stays.

        Args:
            held: what is left.
            failures: Services that were refused.
            is_lost: whether a rule of one of them is for a front that belongs to another Service, so that it
                is deleted.
        """
        chains, fronts = held.leftovers()
        if not failures:
            try:
                self._writer.send([fragment(None, {}, chains, (), fronts)])
            except InputRefusedError as e:
                log.warning("Rules of deleted Services cannot all be removed: %(err)s", {"err": e})
            else:
                return
        fronts = [
            (where, rule)
            for where, rule in fronts
            if is_lost(rule) or not any(_names(rule, key) for key in failures)
        ]
        self._writer.send([fragment(None, {}, (), (), fronts)])
        removable = unreferenced(self._tables, chains)
        self._writer.send([fragment(None, {}, removable, (), ())])
        if not failures:
            stay = ", ".join(sorted({*chains}.difference(removable)))
            log.warning(
                "Chains of no Service stay, because rules of other programs lead to them: %(chains)s",
                {"chains": stay},
            )

    def _counted(self, plan: ServicePlan, rules: Counter[str]) -> ServiceRules:
        """Compiles a plan, and adds its rules to a count."""
        compiled = compile_service(plan, self._dialect)
        rules.update(compiled.rules())
        return compiled


def _names(rule: str, key: Key) -> bool:
    """Whether a rule's comment names a Service."""
    namespace, name = key
    return any(f'"{namespace}/{name}{end}' in rule for end in (":", " ", '"'))


def _suspect(piece: Sequence[Fragment], part: Callable[[Fragment], list[str]], line: int) -> int:
    """Which fragment a line of the input belongs to; the middle one if the line is not known."""
    count = 0
    for i, f in enumerate(piece):
        count += sum(lines.count("\n") for lines in part(f))
        if 0 < line <= count:
            return i
    return len(piece) // 2
