"""Keeps the kernel's iptables rules equal to the plans of one IP family.

A change of one Service is compiled twice, as it was and as it is to be, and only the difference is sent: its own
chains that differ, its own rules in shared chains. Nothing is listed and nothing of other Services is touched.

A full sync reads the tables once and compares. What is right stays, with its packet counters: a restart, or a
take-over from the reference, sends nothing but what really changed.

Each input changes one table, wholly or not at all. What the kernel refuses is narrowed down to the Service that
causes it, and that one is left as it was.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from kubeproxy.api.addresses import IPV4
from kubeproxy.backends.base import Change, Failures, HeldState, StaleError, SyncError
from kubeproxy.backends.iptables import names, rehearsal
from kubeproxy.backends.iptables.affinity import AffinityWarning
from kubeproxy.backends.iptables.difference import FoundRules, Fragment, between, cut, fragment, unreferenced
from kubeproxy.backends.iptables.rules import (
    NOTHING,
    RuleContext,
    ServiceRules,
    chains_of,
    compile_service,
    front_of,
)
from kubeproxy.backends.iptables.static import frame
from kubeproxy.backends.iptables.watch import watch
from kubeproxy.backends.programs import FILTER, NAT, InputRefusedError, Tables, Variant
from kubeproxy.backends.shared import held_rules
from kubeproxy.backends.shared.held_rules import HeldRules, RuleSteps
from kubeproxy.backends.shared.isolation import isolate
from kubeproxy.figures import Figure
from kubeproxy.log import V2
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, ServicePlan, fronts_of, with_same_firewall
from kubeproxy.netlink import nfacct
from kubeproxy.netlink.nft.lookout import Lookout

log = logging.getLogger(__name__)

LARGE_CLUSTER_ENDPOINTS = 1000
"""Above so many endpoints their rules carry no comments, as in the reference."""

_NF_TABLES_LINES = 4000
"""The nf_tables programs need time quadratic in the chains of one input, so theirs are kept to about this length."""

_NF_TABLES_FIRST_LINES = 100_000
"""The first input of a first sync is spared that, see `_stream`; it has to fit into one message to the kernel."""

_LINES_PER_ENDPOINT = 4

_TRIES = 3
"""So often a full sync is tried if it is refused while others change the tables."""

_COUNTERS = (
    (
        "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
        names.INVALID_COUNTER,
        "Packets dropped because they belong to no connection.",
    ),
    (
        "kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
        names.LOCALHOST_COUNTER,
        "Packets to node ports on localhost.",
    ),
)

_STAGES: tuple[tuple[str, Callable[[Fragment], list[str]]], ...] = (
    (FILTER, lambda f: f.refusals),
    (NAT, lambda f: f.nat),
    (FILTER, lambda f: f.welcome),
)


class IPTablesDriver:
    """The iptables driver of one IP family. See `backends.base.Driver`."""

    def __init__(self, tables: Tables, *, counters: bool, drop_invalid: bool) -> None:
        """Makes a driver.

        Args:
            tables: the tables to write to.
            counters: the nfacct counters exist and rules may count into them.
            drop_invalid: packets in conntrack state INVALID are to be dropped.
        """
        self._tables = tables
        self._affinity = AffinityWarning(tables)
        self._counters = counters
        self._drop_invalid = drop_invalid
        self._endpoints = 0
        self._fingerprint: object = None
        self._before: object = None
        self._grown: Counter[str] = Counter()
        self._lookout: Lookout | None = None
        self._rules: Counter[str] = Counter()
        self._written: Counter[str] = Counter()

    @property
    def variant(self) -> Variant:
        """See `ByPrograms`."""
        return self._tables.variant

    async def load(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        """See `Driver`. Runs in a thread: the programs take their time."""
        failures = await asyncio.to_thread(self.load_blocking, node, plans)
        self._affinity.look(plans.values())
        if self._lookout is not None:
            self._lookout.catch_up(lambda: self._tables.fingerprint() == self._before)
        return failures

    async def apply(self, node: NodeConfig, changes: Sequence[Change]) -> Failures:
        """See `Driver`. Runs in a thread, too."""
        await asyncio.to_thread(self._apply, node, changes)
        self._affinity.look(c.after for c in changes if c.after is not None)
        return {}

    async def read(self) -> HeldRules:
        """See `Readable`."""
        return await asyncio.to_thread(held_rules.read, self._tables)

    def difference(self, held: HeldState, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> RuleSteps:
        """See `Readable`."""
        tables = rehearsal.as_rules(held).in_memory()
        IPTablesDriver(tables, counters=self._counters, drop_invalid=self._drop_invalid).load_blocking(
            node, plans
        )
        return held_rules.steps(tables)

    def describe(self, node: NodeConfig, plan: ServicePlan) -> list[str]:
        """See `Readable`."""
        return rehearsal.describe(plan, self._dialect(node))

    async def intact(self) -> bool:
        """See `Driver`."""
        return await asyncio.to_thread(self._is_intact)

    def watch(self, disturbed: Callable[[str], None]) -> bool:
        """See `Driver`. Legacy tables tell nothing."""
        if self._tables.variant == "legacy":
            return False
        self._lookout = watch(self._tables, disturbed)
        self._lookout.join()
        return self._tables.fingerprint() != self._before

    def figures(self) -> Iterable[Figure]:
        """See `Measured`."""
        for table in (FILTER, NAT):
            labels = {"table": table, "ip_family": self._tables.family}
            name = "kubeproxy_sync_proxy_rules_iptables_"
            text = "Rules in the kernel."
            yield Figure(f"{name}total", "gauge", text, self._rules[table], labels)
            text = "Rules the last sync wrote."
            yield Figure(f"{name}last", "gauge", text, self._written[table], labels)
        if self._counters and self._tables.family == IPV4:
            for name, counter, text in _COUNTERS:
                with contextlib.suppress(OSError):
                    yield Figure(name, "counter", text, nfacct.packets(self._tables.machine, counter))

    async def close(self) -> None:
        """See `Driver`."""
        if self._lookout is not None:
            self._lookout.close()

    def load_blocking(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        """See `Driver.load`; done in this thread. Raises what the kernel says, too."""
        self._written.clear()
        try:
            failures = self._undisturbed(node, plans)
        except InputRefusedError as e:
            raise SyncError(str(e)) from e
        self._fingerprint = self._tables.fingerprint()
        return failures

    def _apply(self, node: NodeConfig, changes: Sequence[Change]) -> None:
        # A change by another program, before or during this one, must still be detected: it is not corrected here.
        intact = self._is_intact()
        entries = self._tables.entries()
        self._written.clear()
        try:
            self._partial(node, changes)
        except InputRefusedError as e:
            # Perhaps a Service is at fault, perhaps another program changed our rules: only `load` can tell.
            raise StaleError(str(e)) from e
        now = self._tables.fingerprint()
        if intact and self._grew_from(entries):
            self._fingerprint = now

    def _undisturbed(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        """A full sync; one during which another program changed the tables is done again at once."""
        for left in reversed(range(_TRIES)):
            self._before = self._tables.fingerprint()
            if self._lookout is not None:
                self._lookout.look()
            try:
                failures = self._full(node, plans)
            except InputRefusedError as e:
                if not left or not self._is_race():
                    raise
                refused = str(e)
            else:
                if not failures or not left or not self._is_race():
                    return failures
                refused = "; ".join(failures.values())
            log.log(
                V2, "%(ipFamily)s: trying again now, another program changed the tables meanwhile: %(err)s",
                {"ipFamily": self._tables.family, "err": refused},
            )  # fmt: skip
        raise AssertionError

    def _is_race(self) -> bool:
        """Whether another program changed the tables during a full sync. Of legacy tables the kernel does not tell who did."""
        return self._tables.variant == "nf_tables" and self._tables.fingerprint() != self._before

    def _grew_from(self, before: Mapping[str, int]) -> bool:
        """Whether the tables are larger by just what the last partial sync put there."""
        after = self._tables.entries()
        return all(after.get(table) == count + self._grown[table] for table, count in before.items())

    def _is_intact(self) -> bool:
        return self._lookout is not None or self._tables.fingerprint() == self._fingerprint

    def _partial(self, node: NodeConfig, changes: Sequence[Change]) -> None:
        endpoints = self._endpoints + sum(_endpoints(c.after) - _endpoints(c.before) for c in changes)
        if _is_large(endpoints) != _is_large(self._endpoints):
            raise StaleError(f"with {endpoints} endpoints the comments of all endpoints' rules change")
        dialect = self._dialect(node)
        rules = Counter(self._rules)
        chains = 0

        def fragments() -> Iterator[Fragment]:
            nonlocal chains
            # In several inputs a front that changes hands gets its new rule, on top of the old one, first.
            for c in sorted(changes, key=_more_lost):
                same = with_same_firewall(c.before, c.after)
                before = compile_service(c.before, dialect, same)
                after = compile_service(c.after, dialect, same)
                chains += len(after.chains) - len(before.chains)
                rules.subtract(before.rules())
                rules.update(after.rules())
                yield between(c.key, before, after)

        for piece in self._pieces(fragments()):
            self._send(piece)
        self._grown = Counter(rules)
        self._grown.subtract(self._rules)
        self._grown[NAT] += 2 * chains
        self._endpoints = endpoints
        self._rules = rules

    def _full(self, node: NodeConfig, given: Mapping[Key, ServicePlan]) -> Failures:
        plans = list(given.values())
        self._endpoints = sum(map(_endpoints, plans))
        dialect = self._dialect(node)
        wanted = frame(node, drop_invalid=self._drop_invalid, counters=self._counters)
        held = FoundRules(self._tables, wanted)
        self._rules = wanted.rules()
        inputs = held.frame_input(wanted)
        anew = inputs.pop(NAT, []) if NAT in held.unreadable else []
        for table, lines in inputs.items():
            self._write(table, lines)
        failures: dict[Key, str] = {}
        parts = self._parts(plans) if held.cold and not anew else [(plans, False)]
        for number, (part, at_once) in enumerate(parts):
            if not (at_once and self._stream(part, dialect, failures, first=number == 0)):
                found = (held.towards(p.key, self._counted(p, dialect, self._rules)) for p in part)
                fragments: Iterable[Fragment] = (f for f in found if f)
                if anew:
                    fragments = self._replace(anew, list(fragments))
                for piece in self._pieces(fragments):
                    self._isolate(piece, failures)
        self._sweep(held, failures, self._losses(given, failures, dialect))
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

    def _replace(self, anew: list[str], fragments: list[Fragment]) -> list[Fragment]:
        """Writes all rules of a table that cannot be read, if possible so that no packet finds it without.

        Args:
            anew: the input that empties the chains that are no Service's, and fills them with what is always there.
            fragments: all Services, as if nothing of them were there.

        Returns:
            What is still to be done.
        """
        log.warning(
            "%(ipFamily)s: somebody put into table %(table)s what the iptables programs cannot read: all our rules in it are written anew",
            {"ipFamily": self._tables.family, "table": NAT},
        )
        if sum(map(_nat_lines, fragments)) < _NF_TABLES_FIRST_LINES:
            try:
                self._send([Fragment(None, [], anew, []), *fragments])
            except InputRefusedError as e:
                log.warning("They were refused together and are sent in pieces: %(err)s", {"err": e})
            else:
                return []
        self._write(NAT, anew)
        return fragments

    def _stream(
        self, plans: Sequence[ServicePlan], dialect: RuleContext, failures: dict[Key, str], *, first: bool
    ) -> bool:
        """A first sync, each rule sent as it is made; returns whether it was accepted.

        Args:
            plans: new Services.
            dialect: how their rules are written.
            failures: Services of which table filter refuses something are put into it; the rest of them is deleted.
            first: no other Service's rules are there.
        """
        refusals: list[Fragment] = []
        rules: Counter[str] = Counter()

        def lines() -> Iterator[str]:
            if first and self._tables.variant == "nf_tables":
                # The program notes in a sorted list, which it walks for each line, of which chains it must know more;
                # a command that concerns all chains makes it note none. This one prints the little there is.
                yield "-S\n"
            # The legacy program keeps chains in a sorted list, whose beginning is where one is put in fastest.
            chains = sorted({chain for p in plans for chain in chains_of(p)}, reverse=True)
            yield from (f":{chain} - [0:0]\n" for chain in chains)
            for p in plans:
                f = between(p.key, NOTHING, self._counted(p, dialect, rules))
                if f.refusals:
                    refusals.append(Fragment(f.key, f.refusals, [], []))
                yield from (line for line in f.nat if line[0] != ":")

        try:
            self._write(NAT, lines())
        except InputRefusedError as e:
            log.warning("The first sync was refused as a whole and is done in pieces: %(err)s", {"err": e})
            return False
        refused: dict[Key, str] = {}
        if refusals:
            self._narrow(FILTER, _STAGES[0][1], refusals, refused)
        if refused:
            gone = (between(p.key, compile_service(p, dialect), NOTHING) for p in plans if p.key in refused)
            self._send([Fragment(f.key, [], f.nat, []) for f in gone])
            failures.update(refused)
        self._rules.update(rules)
        return True

    def _parts(self, plans: Sequence[ServicePlan]) -> Iterator[tuple[Sequence[ServicePlan], bool]]:
        """As many Services at a time as the programs can digest, by an estimate of their lines.

        Yields:
            Some Services, and whether all that comes of them can be sent at once: one alone may be too much.
        """
        if self._tables.variant == "legacy":
            yield plans, True
            return
        start = size = 0
        limit = _NF_TABLES_FIRST_LINES
        for end, plan in enumerate(plans, 1):
            size += _lines(plan)
            if size >= limit or end == len(plans):
                yield plans[start:end], size < 2 * limit
                start, size, limit = end, 0, _NF_TABLES_LINES

    def _pieces(self, fragments: Iterable[Fragment]) -> Iterator[list[Fragment]]:
        """As many fragments at a time as the programs can digest; one that is too much by itself comes in parts."""
        if self._tables.variant == "legacy":
            yield list(fragments)
            return
        piece: list[Fragment] = []
        size = 0
        for whole in fragments:
            lines = _nat_lines(whole)
            for f in cut(whole, _NF_TABLES_LINES) if lines >= 2 * _NF_TABLES_LINES else (whole,):
                piece.append(f)
                size += min(lines, _NF_TABLES_LINES)
                if size >= _NF_TABLES_LINES:
                    yield piece
                    piece, size = [], 0
        if piece:
            yield piece

    def _isolate(self, fragments: list[Fragment], failures: dict[Key, str]) -> None:
        """Sends fragments; those that are refused are told in `failures`."""
        for table, part in _STAGES:
            left = [f for f in fragments if part(f) and f.key not in failures]
            if left:
                self._narrow(table, part, left, failures)
            if table == NAT:
                self._take_back([f for f in left if f.key in failures])

    def _narrow(
        self,
        table: str,
        part: Callable[[Fragment], list[str]],
        fragments: list[Fragment],
        failures: dict[Key, str],
    ) -> None:
        """Sends one part of fragments; when it is refused, splits them at the suspect and tries each piece."""

        def send(piece: Sequence[Fragment]) -> None:
            self._write(table, (line for f in piece for line in part(f)))

        def suspect(piece: Sequence[Fragment], error: InputRefusedError) -> int:
            return _suspect(piece, part, error.line)

        for guilty, error in isolate(fragments, send, InputRefusedError, suspect):
            assert guilty.key is not None
            failures[guilty.key] = str(error)

    def _sweep(self, held: FoundRules, failures: Failures, is_lost: Callable[[str], bool]) -> None:
        """Deletes what no Service wants any more; what a refused one or somebody else uses stays.

        Args:
            held: what is left.
            failures: Services that were refused.
            is_lost: whether a rule of one of them is for a front that belongs to another Service, so that it goes.
        """
        chains, fronts = held.leftovers()
        if not failures:
            try:
                self._send([fragment(None, {}, chains, (), fronts)])
            except InputRefusedError as e:
                log.warning(
                    "Not all that is left of Services that are gone can be removed: %(err)s", {"err": e}
                )
            else:
                return
        fronts = [
            (where, rule)
            for where, rule in fronts
            if is_lost(rule) or not any(_names(rule, key) for key in failures)
        ]
        self._send([fragment(None, {}, (), (), fronts)])
        removable = unreferenced(self._tables, chains)
        self._send([fragment(None, {}, removable, (), ())])
        if not failures:
            stay = ", ".join(sorted({*chains}.difference(removable)))
            log.warning(
                "Rules that are not ours lead to chains that stay for their sake: %(chains)s",
                {"chains": stay},
            )

    def _send(self, fragments: Sequence[Fragment]) -> None:
        """Sends fragments together."""
        for table, part in _STAGES:
            if lines := [line for f in fragments for line in part(f)]:
                try:
                    self._write(table, lines)
                except InputRefusedError:
                    if table == NAT:
                        self._take_back(fragments)
                    raise

    def _take_back(self, fragments: Sequence[Fragment]) -> None:
        """Deletes what was put into table filter for fragments whose part in table nat was refused."""
        if lines := [f"-D {line.removeprefix('-I ')}" for f in fragments for line in f.refusals]:
            try:
                self._write(FILTER, lines)
            except InputRefusedError as e:
                log.warning(
                    "What was added to table %(table)s for a refused Service stays until the next full sync: %(err)s",
                    {"table": FILTER, "err": e},
                )

    def _write(self, table: str, lines: Iterable[str]) -> None:
        """Changes a table, and counts the rules that takes."""

        def counted() -> Iterator[str]:
            for line in lines:
                self._written[table] += line.count("\n-A ") + line.startswith(("-A ", "-I "))
                yield line

        self._tables.restore(table, counted())

    @staticmethod
    def _counted(plan: ServicePlan, dialect: RuleContext, rules: Counter[str]) -> ServiceRules:
        """Compiles a plan, and adds its rules to a count."""
        compiled = compile_service(plan, dialect)
        rules.update(compiled.rules())
        return compiled

    def _dialect(self, node: NodeConfig) -> RuleContext:
        return RuleContext(node, counters=self._counters, comments=not _is_large(self._endpoints))


def _names(rule: str, key: Key) -> bool:
    """Whether a rule's comment names a Service."""
    namespace, name = key
    return any(f'"{namespace}/{name}{end}' in rule for end in (":", " ", '"'))


def _suspect(piece: Sequence[Fragment], part: Callable[[Fragment], list[str]], line: int) -> int:
    """Which fragment a line of the input belongs to; the middle one if that is not told."""
    count = 0
    for i, f in enumerate(piece):
        count += sum(lines.count("\n") for lines in part(f))
        if 0 < line <= count:
            return i
    return len(piece) // 2


def _nat_lines(f: Fragment) -> int:
    """How many lines a fragment has for table nat: each of its texts may be several."""
    return sum(text.count("\n") for text in f.nat)


def _lines(plan: ServicePlan) -> int:
    """About how many lines a new Service comes to."""
    ranges = sum(len(port.source_ranges) for port in plan.ports)
    return _LINES_PER_ENDPOINT * (_endpoints(plan) + len(plan.ports)) + ranges


def _endpoints(plan: ServicePlan | None) -> int:
    return sum(port.known_endpoints for port in plan.ports) if plan else 0


def _more_lost(change: Change) -> int:
    """How many more fronts belong to another Service than before."""
    before, after = change.before, change.after
    return (len(after.lost) if after else 0) - (len(before.lost) if before else 0)


def _is_large(endpoints: int) -> bool:
    return endpoints > LARGE_CLUSTER_ENDPOINTS
