"""What the table is to hold: the plans, what they compile to, and what of that is shared."""

from collections.abc import Iterable, Mapping

from kubeproxy.backends.base import Change
from kubeproxy.backends.nftables import frame
from kubeproxy.backends.nftables.compile import Compiler, ServiceElements
from kubeproxy.backends.nftables.transaction import Transaction
from kubeproxy.backends.nftables.uses import UseCounts
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, ServicePlan
from kubeproxy.netlink.nft.messages import TableName

NOTHING = ServiceElements.nothing()


class Content:
    """The content of one family's table.

    Attributes:
        table: the table.
        compiler: compiles plans for the node.
        uses: what Services need together.
        plans: the plans that are, or are to be, in the kernel.
    """

    def __init__(
        self, table: TableName, node: NodeConfig, plans: Mapping[Key, ServicePlan] | None = None
    ) -> None:
        """Sets the plans; nothing is counted before they are compiled."""
        self.table = table
        self.compiler = Compiler(node)
        self.uses = UseCounts()
        self.plans: dict[Key, ServicePlan] = dict(plans or {})

    def set_node(self, node: NodeConfig, transaction: Transaction) -> None:
        """Replaces the node, if no Service depends on the difference, which is added to a transaction."""
        before, after = frame.elements(self.compiler.node), frame.elements(node)
        self.compiler = Compiler(node)
        for name, elements in after.items():
            transaction.delete((name, e) for e in before[name] if e not in elements)
            transaction.add((name, e) for e in elements if e not in before[name])

    def compile(self, key: Key) -> ServiceElements:
        """What a Service needs."""
        return self.compiler.compile(self.plans[key])

    def difference(self, changes: Iterable[Change]) -> Transaction:
        """The transaction that makes some changes of Services, which count as made from now on."""
        compiler, uses = self.compiler, self.uses
        transaction = Transaction(self.table)
        gone = []
        for c in changes:
            before, after = compiler.compile(c.before), compiler.compile(c.after)
            own_objects(transaction, before, after)
            for chain in uses.acquire(after.chains - before.chains):
                transaction.shared_chain(chain, compiler.statements)
            gone += uses.release(before.chains - after.chains)
            delete, add = uses.difference(before, after)
            transaction.delete(delete)
            transaction.add(add)
            if c.after is None:
                del self.plans[c.key]
            else:
                self.plans[c.key] = c.after
        needed = set(uses.chains)
        for chain in gone:
            if chain not in needed:
                transaction.drop_shared_chain(chain)
        return transaction


def own_objects(transaction: Transaction, before: ServiceElements, after: ServiceElements) -> None:
    """Changes one Service's own chains, sets and maps from one state to another."""
    old_sets, new_sets = before.own_sets, after.own_sets
    for name in old_sets.keys() - new_sets.keys():
        transaction.drop_set(name)
    for name in sorted(before.own_maps - after.own_maps):
        transaction.drop_map(name)
    for name in sorted(after.own_maps - before.own_maps):
        transaction.make_table(name)
    for name, timeout in new_sets.items():
        if old_sets.get(name) != timeout:
            transaction.make_set(name, timeout)
    for name, rules in after.own_chains.items():
        if before.own_chains.get(name) != rules:
            transaction.chain(name, rules, exists=name in before.own_chains)
    for name in before.own_chains.keys() - after.own_chains.keys():
        transaction.drop_chain(name)
