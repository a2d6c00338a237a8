"""Keeps the kernel's iptables rules equal to the plans of one IP family.

A change of one Service is compiled twice, as it was and as it is to be, and only the difference is sent: its
own chains that differ, its own rules in shared chains. Nothing is listed and nothing of other Services is
touched.

A full sync reads the tables once and compares. What is right stays, with its packet counters: a restart, or a
take-over from the reference, writes only what changed.

Each input changes one table, completely or not at all. What the kernel refuses is bisected to the Service
that causes it, and that Service keeps what it had.
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from kubeproxy.api.addresses import IPV4
from kubeproxy.backends.base import Change, Failures, HeldState, KernelComparison, StaleError, SyncError
from kubeproxy.backends.fake_tables import FakeTables
from kubeproxy.backends.iptables import batches, describe, names, part
from kubeproxy.backends.iptables.affinity import AffinityWarning
from kubeproxy.backends.iptables.batches import RuleWriter
from kubeproxy.backends.iptables.compile import (
    RuleContext,
    compile_service,
)
from kubeproxy.backends.iptables.frame import frame
from kubeproxy.backends.iptables.load import RulesLoad
from kubeproxy.backends.iptables.steps import Fragment, between
from kubeproxy.backends.iptables.watch import watch
from kubeproxy.backends.programs import FILTER, NAT, InputRefusedError, Tables, Variant
from kubeproxy.backends.shared import held_rules
from kubeproxy.backends.shared.held_rules import HeldRules, RuleSteps
from kubeproxy.backends.shared.threads import in_thread
from kubeproxy.figures import Figure
from kubeproxy.log import V2
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, ServicePlan, with_same_firewall
from kubeproxy.netlink import nfacct
from kubeproxy.netlink.nft.lookout import Lookout

log = logging.getLogger(__name__)

LARGE_CLUSTER_ENDPOINTS = 1000
"""Above this number of endpoints their rules have no comments, as in the reference."""

_TRIES = 3
"""How often a full sync is tried if it is refused while other programs change the tables."""

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


class IPTablesDriver:
    """The iptables driver of one IP family. See `backends.base.Driver`.

    Attributes:
        elsewhere: the number of endpoints of Services that it is not given.
    """

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
        self.elsewhere = 0
        self._endpoints = 0
        self._fingerprint: object = None
        self._before: object = None
        self._grown: Counter[str] = Counter()
        self._lookout: Lookout | None = None
        self._rules: Counter[str] = Counter()
        self._writer = RuleWriter(tables)

    @property
    def variant(self) -> Variant:
        """See `ByPrograms`."""
        return self._tables.variant

    async def load(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        """See `Driver`. Runs in a thread, because the programs are slow."""
        failures = await in_thread(self.load_blocking, node, plans)
        self._affinity.look(plans.values())
        if self._lookout is not None:
            self._lookout.catch_up(lambda: self._tables.fingerprint() == self._before)
        return failures

    async def apply(self, node: NodeConfig, changes: Sequence[Change]) -> Failures:
        """See `Driver`. Runs in a thread, too."""
        await in_thread(self._apply, node, changes)
        self._affinity.look(c.after for c in changes if c.after is not None)
        return {}

    async def read(self) -> HeldRules:
        """See `Readable`."""
        return await in_thread(held_rules.read, self._tables)

    def difference(self, held: HeldState, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> RuleSteps:
        """See `Readable`."""
        return held_rules.steps(self._loaded(held_rules.as_rules(held), node, plans))

    def describe(self, node: NodeConfig, plan: ServicePlan) -> list[str]:
        """See `Readable`."""
        return describe.service(plan, self._dialect(node))

    async def read_part(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> HeldRules:
        """See `Comparable`."""
        wanted = frame(node, drop_invalid=self._drop_invalid, counters=self._counters)
        return await in_thread(part.read, self._tables, wanted, list(plans.values()), self._dialect(node))

    def compare(
        self, held: HeldState, node: NodeConfig, plans: Mapping[Key, ServicePlan]
    ) -> KernelComparison:
        """See `Comparable`."""
        return held_rules.compare(self._loaded(held_rules.as_rules(held), node, plans))

    def _loaded(self, held: HeldRules, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> FakeTables:
        """Tables in memory that held this, after a `load`."""
        tables = held.in_memory()
        driver = IPTablesDriver(tables, counters=self._counters, drop_invalid=self._drop_invalid)
        if held.part and not part.has_comments(held):
            driver.elsewhere = LARGE_CLUSTER_ENDPOINTS
        driver.load_blocking(node, plans)
        return tables

    async def intact(self) -> bool:
        """See `Driver`."""
        return await in_thread(self._is_intact)

    def watch(self, disturbed: Callable[[str], None]) -> bool:
        """See `Driver`. The kernel sends no notifications of changes of legacy tables."""
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
            yield Figure(f"{name}last", "gauge", text, self._writer.written[table], labels)
        if self._counters and self._tables.family == IPV4:
            for name, counter, text in _COUNTERS:
                with contextlib.suppress(OSError):
                    yield Figure(name, "counter", text, nfacct.packets(self._tables.machine, counter))

    async def close(self) -> None:
        """See `Driver`."""
        if self._lookout is not None:
            self._lookout.close()

    def load_blocking(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        """See `Driver.load`; done in this thread. Also raises the errors of the kernel."""
        self._writer.written.clear()
        try:
            failures = self._undisturbed(node, plans)
        except InputRefusedError as e:
            raise SyncError(str(e)) from e
        self._fingerprint = self._tables.fingerprint()
        return failures

    def _apply(self, node: NodeConfig, changes: Sequence[Change]) -> None:
        # A change by another program, before or during this one, must still be detected: it is not corrected
        # here.
        intact = self._is_intact()
        entries = self._tables.entries()
        self._writer.written.clear()
        try:
            self._partial(node, changes)
        except InputRefusedError as e:
            # Either a Service is the cause, or another program changed our rules: only `load` can
            # distinguish.
            raise StaleError(str(e)) from e
        now = self._tables.fingerprint()
        if intact and self._grew_from(entries):
            self._fingerprint = now

    def _undisturbed(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        """A full sync; if another program changed the tables during it, it is repeated at once."""
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
        """Whether another program changed the tables during a full sync; not known for legacy tables."""
        return self._tables.variant == "nf_tables" and self._tables.fingerprint() != self._before

    def _grew_from(self, before: Mapping[str, int]) -> bool:
        """Whether the tables are larger by just what the last partial sync put there."""
        after = self._tables.entries()
        return all(after.get(table) == count + self._grown[table] for table, count in before.items())

    def _is_intact(self) -> bool:
        return self._lookout is not None or self._tables.fingerprint() == self._fingerprint

    def _partial(self, node: NodeConfig, changes: Sequence[Change]) -> None:
        endpoints = self._endpoints + sum(
            batches.endpoints(c.after) - batches.endpoints(c.before) for c in changes
        )
        if _is_large(endpoints) != _is_large(self._endpoints):
            raise StaleError(f"with {endpoints} endpoints the comments of all endpoints' rules change")
        dialect = self._dialect(node)
        rules = Counter(self._rules)
        chains = 0

        def fragments() -> Iterator[Fragment]:
            nonlocal chains
            # In several inputs a front that passes to another Service gets its new rule, above the old one,
            # first.
            for c in sorted(changes, key=_more_lost):
                same = with_same_firewall(c.before, c.after)
                before = compile_service(c.before, dialect, same)
                after = compile_service(c.after, dialect, same)
                chains += len(after.chains) - len(before.chains)
                rules.subtract(before.rules())
                rules.update(after.rules())
                yield between(c.key, before, after)

        for piece in batches.pieces(self._tables.variant, fragments()):
            self._writer.send(piece)
        self._grown = Counter(rules)
        self._grown.subtract(self._rules)
        self._grown[NAT] += 2 * chains
        self._endpoints = endpoints
        self._rules = rules

    def _full(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        self._endpoints = self.elsewhere + sum(map(batches.endpoints, plans.values()))
        wanted = frame(node, drop_invalid=self._drop_invalid, counters=self._counters)
        load = RulesLoad(self._writer, wanted, self._dialect(node))
        failures = load.run(plans)
        self._rules = load.rules
        return failures

    def _dialect(self, node: NodeConfig) -> RuleContext:
        return RuleContext(node, counters=self._counters, comments=not _is_large(self._endpoints))


def _more_lost(change: Change) -> int:
    """How many more fronts belong to another Service than before."""
    before, after = change.before, change.after
    return (len(after.lost) if after else 0) - (len(before.lost) if before else 0)


def _is_large(endpoints: int) -> bool:
    return endpoints > LARGE_CLUSTER_ENDPOINTS
