"""Keeps the kernel's nftables table equal to the plans of one IP family.

A change is compiled twice, as it was and as it is to be; the elements that differ go to the kernel in one
transaction, so a packet meets the one or the other. Nothing is listed for that.

`load` reads the table once and compares. A table that is not laid out as ours, such as the reference's, is
replaced in one transaction; one that is ours is corrected.
"""

import logging
from collections import ChainMap
from collections.abc import Callable, Collection, Mapping, Sequence

from kubeproxy.api.addresses import IPV4
from kubeproxy.backends.base import Change, Failures, HeldState, KernelComparison, StaleError, SyncError
from kubeproxy.backends.nftables import describe, frame, layout, part
from kubeproxy.backends.nftables.content import NOTHING, Content, own_objects
from kubeproxy.backends.nftables.held import FoundTable, HeldTable, as_table, read
from kubeproxy.backends.nftables.load import TableLoad
from kubeproxy.backends.nftables.steps import TableSteps, steps
from kubeproxy.backends.nftables.transaction import Transaction
from kubeproxy.backends.nftables.watch import watch
from kubeproxy.backends.shared.threads import in_thread
from kubeproxy.model.distribution import Distribution
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, ServicePlan
from kubeproxy.model.select import Endpoint
from kubeproxy.netlink.nft import messages, objects
from kubeproxy.netlink.nft.fake import FakeNftKernel
from kubeproxy.netlink.nft.kernel import NftKernel, TransactionRefusedError
from kubeproxy.netlink.nft.lookout import Lookout
from kubeproxy.netlink.nft.messages import IP, IP6, TableName

log = logging.getLogger(__name__)

_LARGE = 2_000
"""From about so many elements on, a change is compiled and sent in a thread: it takes 10 ms and more."""


class NFTablesDriver:
    """The nftables driver of one IP family. See `backends.base.Driver`."""

    def __init__(self, kernel: NftKernel, node: NodeConfig) -> None:
        self._kernel = kernel
        self._table = TableName(IP if node.family == IPV4 else IP6, layout.TABLE)
        self._content = Content(self._table, node)
        self._had: Mapping[Key, ServicePlan] = {}
        self._lookout: Lookout | None = None
        self._others = 0

    async def load(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        """See `Driver`."""
        try:
            failures = await in_thread(self.load_blocking, node, plans)
        except OSError as e:
            raise SyncError(str(e)) from e
        if self._lookout is not None:
            self._lookout.catch_up(lambda: self._kernel.others() == self._others)
        return failures

    async def apply(self, node: NodeConfig, changes: Sequence[Change]) -> Failures:
        """See `Driver`."""
        try:
            # Microseconds, so it is done at once in the event loop, unless a Service is large.
            if sum(_size(c.before) + _size(c.after) for c in changes) < _LARGE:
                self._apply(node, changes)
            else:
                await in_thread(self._apply, node, changes)
        except OSError as e:
            raise StaleError(str(e)) from e
        return {}

    async def read(self) -> HeldTable:
        """See `Readable`."""
        try:
            return await in_thread(read, self._kernel, self._table)
        except OSError as e:
            raise SyncError(str(e)) from e

    def difference(self, held: HeldState, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> TableSteps:
        """See `Readable`."""
        table = as_table(held)
        return steps(table, self._loaded(table, node, plans))

    def describe(self, node: NodeConfig, plan: ServicePlan) -> list[str]:
        """See `Readable`."""
        return describe.service(plan, node, self._table)

    async def read_part(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> HeldTable:
        """See `Comparable`."""
        try:
            return await in_thread(part.read, self._kernel, self._table, node, plans.values())
        except OSError as e:
            raise SyncError(str(e)) from e

    def compare(
        self, held: HeldState, node: NodeConfig, plans: Mapping[Key, ServicePlan]
    ) -> KernelComparison:
        """See `Comparable`."""
        table = as_table(held)
        return part.compare(table, self._loaded(table, node, plans))

    def _loaded(self, table: HeldTable, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> FakeNftKernel:
        """A kernel in memory that held this, after a `load`."""
        kernel = table.in_memory()
        NFTablesDriver(kernel, node).load_blocking(node, plans)
        return kernel

    async def intact(self) -> bool:
        """See `Driver`. The watch reports changes when they happen."""
        return True

    def watch(self, disturbed: Callable[[str], None]) -> bool:
        """See `Driver`."""
        self._lookout = watch(self._kernel.namespace, self._table, disturbed)
        self._lookout.join()
        return self._kernel.others() != self._others

    async def close(self) -> None:
        """See `Driver`."""
        if self._lookout is not None:
            self._lookout.close()
            self._lookout = None
        self._kernel.close()

    def _apply(self, node: NodeConfig, changes: Sequence[Change]) -> None:
        transaction = self._content.difference(changes)
        if node != self._content.compiler.node:
            self._content.set_node(node, transaction)
        try:
            self._commit(transaction)
        except OSError:
            # What is programmed is what was; a full sync follows.
            for c in changes:
                if c.before is None:
                    self._content.plans.pop(c.key, None)
                else:
                    self._content.plans[c.key] = c.before
            raise

    def _commit(self, transaction: Transaction) -> None:
        self._kernel.commit(transaction.beforehand())
        self._kernel.commit(transaction.messages())
        self._kernel.commit(transaction.afterwards())

    def load_blocking(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        """See `Driver.load`; done in this thread. Also raises the errors of the kernel."""
        while True:
            self._listen(on=True)
            self._others = self._kernel.others()
            if self._lookout is not None:
                self._lookout.look()
            self._content = Content(self._table, node, plans)
            comment = objects.table_comment(self._kernel, self._table)
            held = FoundTable(self._kernel, self._table) if comment == layout.COMMENT else None
            if held is not None and held.sound:
                return self._correct(held)
            # A large load takes the kernel twice as long while a process receives notifications. Changes by
            # other programs meanwhile are detected by the number of transactions: then everything is
            # compared.
            self._listen(on=False)
            failures = self._write(there=comment is not None)
            self._listen(on=True)
            if self._lookout is None or self._kernel.others() == self._others:
                return failures

    def _listen(self, *, on: bool) -> None:
        if self._lookout is not None:
            (self._lookout.join if on else self._lookout.leave)()

    def _write(self, *, there: bool) -> Failures:
        """Writes the whole table, in place of the one that is there, if any."""
        if there:
            log.info("Table %(table)s has another layout, replacing it", {"table": self._table})
            if self._replace():
                self._remember(())
                return {}
        made = frame.table(self._table, self._content.compiler.node)
        self._kernel.commit([messages.delete_table(self._table), *made] if there else made)
        # What was just written is known, so it is not read.
        return self._correct(FoundTable(HeldTable(tuple(made)).in_memory(), self._table))

    def _correct(self, held: FoundTable) -> Failures:
        failures = TableLoad(self._content, held, self._commit, self._had).run()
        self._remember(failures)
        return failures

    def _remember(self, failures: Collection[Key]) -> None:
        """After a full sync: what each Service has, refused ones, too."""
        kept = {key: self._had[key] for key in failures if key in self._had}
        self._had = ChainMap(self._content.plans, kept) if kept else self._content.plans

    def _replace(self) -> bool:
        """Replaces a table by ours, in one transaction; returns whether that was accepted.

        Clients with session affinity keep their endpoints: the sets that remember them have the names of the
        reference.
        """
        compiler, uses = self._content.compiler, self._content.uses
        transaction = Transaction(self._table)
        there = objects.sets(self._kernel, self._table)
        for key in self._content.plans:
            compiled = self._content.compile(key)
            own_objects(transaction, NOTHING, compiled)
            for chain in uses.acquire(compiled.chains):
                transaction.shared_chain(chain, compiler.statements)
            transaction.add(uses.difference(NOTHING, compiled)[1])
            for name in compiled.own_sets.keys() & there.keys():
                transaction.add(
                    (name, client) for client in objects.elements(self._kernel, self._table, name)
                )
        try:
            self._kernel.commit(
                [
                    messages.delete_table(self._table),
                    *frame.table(self._table, compiler.node),
                    *transaction.beforehand(),
                    *transaction.messages(),
                ]
            )
        except TransactionRefusedError as e:
            log.warning(
                "Table %(table)s cannot be replaced in one transaction, deleting it first, packets may be lost: %(err)s",
                {"table": self._table, "err": e},
            )
            self._content.uses.clear()
            return False
        return True


def _slots(endpoints: Sequence[Endpoint], distribution: Distribution | None) -> int:
    """How many slots endpoints have."""
    if distribution is None:
        return len(endpoints)
    return distribution.table_size or sum(distribution.weights) or len(endpoints)


def _size(plan: ServicePlan | None) -> int:
    """About how many elements a Service needs."""
    return sum(
        (1 + len(p.external_ips) + len(p.load_balancer_ips) + bool(p.node_port))
        * (1 + max(_slots(p.cluster, p.cluster_distribution), _slots(p.local, p.local_distribution)))
        + len(p.load_balancer_ips) * len(p.source_ranges)
        + (len(p.external_ips) + bool(p.node_port)) * len(p.external_ranges)
        for p in (plan.ports if plan else ())
    )
