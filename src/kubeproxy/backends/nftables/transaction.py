"""Collects changes of the table and sorts them in the order in which the kernel accepts them.

Rules are deleted before the sets they name, chains are made before the elements that lead to them, old
elements are deleted before new ones of the same key.

There are three transactions. A packet that is processed while one takes effect meets the old rules until its
end, but each map as it is at that moment: an element must not lead it to a chain that was made in the same
transaction, which would be empty. And chains are deleted last: kernels before 6.2 find them still in use.
"""

from collections.abc import Iterable

from kubeproxy.backends.nftables import layout
from kubeproxy.backends.nftables.chains import SharedChain
from kubeproxy.backends.nftables.compile import Element
from kubeproxy.backends.nftables.layout import SetType
from kubeproxy.backends.nftables.statements import Rule, Statements
from kubeproxy.backends.nftables.sticky import CLIENTS
from kubeproxy.netlink.nft import messages
from kubeproxy.netlink.nft.messages import EVAL, TIMEOUT, NftMessage, TableName


class Transaction:
    """Changes that are to be made together."""

    def __init__(self, table: TableName) -> None:
        self._table = table
        self._flushed: dict[str, None] = {}
        self._dropped_sets: list[str] = []
        self._made_sets: dict[str, int] = {}
        self._made_maps: list[SetType] = []
        self._dropped_maps: list[str] = []
        self._chains: dict[str, Iterable[Rule]] = {}
        self._deleted: dict[str, list[bytes]] = {}
        self._added: dict[str, list[bytes]] = {}
        self._dropped: dict[str, None] = {}

    def chain(self, name: str, rules: Iterable[Rule], *, exists: bool = False) -> None:
        """A chain is to have these rules."""
        if exists:
            self._flushed[name] = None
        self._chains[name] = rules

    def drop_chain(self, name: str) -> None:
        """A chain is to be deleted."""
        self._flushed[name] = None
        self._dropped[name] = None

    def shared_chain(self, chain: SharedChain, statements: Statements, *, exists: bool = False) -> None:
        """A shared chain is to be there with its rules, and the map it picks from."""
        slots = chain.slots(self._table.family)
        if slots is not None and slots not in layout.sets(self._table.family):
            self._made_maps.append(slots)
        self.chain(chain.name, chain.rules(statements), exists=exists)

    def drop_shared_chain(self, chain: SharedChain) -> None:
        """A shared chain is to be deleted, and the map it picked from unless that is always there."""
        self.drop_chain(chain.name)
        slots = chain.slots(self._table.family)
        if slots is not None and slots not in layout.sets(self._table.family):
            self.drop_map(slots.name)

    def drop_map(self, name: str) -> None:
        """A map of endpoints is to be deleted."""
        self._dropped_maps.append(name)

    def make_table(self, name: str) -> None:
        """A table of Maglev hashing is to be there."""
        self._made_maps.append(layout.table(self._table.family, name))

    def make_set(self, name: str, timeout: int) -> None:
        """A set of clients is to have this timeout in milliseconds; if it exists, it keeps its clients."""
        self._made_sets[name] = timeout

    def drop_set(self, name: str) -> None:
        """A set is to be deleted."""
        self._dropped_sets.append(name)

    def delete(self, elements: Iterable[Element]) -> None:
        """Elements are to be deleted."""
        for name, element in elements:
            self._deleted.setdefault(name, []).append(element)

    def add(self, elements: Iterable[Element]) -> None:
        """Elements are to be added."""
        for name, element in elements:
            self._added.setdefault(name, []).append(element)

    def beforehand(self) -> list[NftMessage]:
        """The first transaction: what nothing leads to yet."""
        new = [name for name in self._chains if name not in self._flushed]
        return self._objects() + self._fill(new)

    def messages(self) -> list[NftMessage]:
        """The second one: what packets meet."""
        t = self._table
        out = [messages.flush_chain(t, name) for name in self._flushed]
        out += [messages.delete_set(t, name) for name in self._dropped_sets]
        out += self._fill([name for name in self._chains if name in self._flushed])
        dropped = frozenset(self._dropped_maps)  # deleted with all their elements
        for name, elements in self._deleted.items():
            if name in dropped:
                continue
            out += messages.delete_elements(t, name, elements)
        for name, elements in self._added.items():
            out += messages.add_elements(t, name, elements)
        return out

    def _objects(self) -> list[NftMessage]:
        """Makes sets and maps."""
        t = self._table
        address = layout.ADDRESSES[t.family]
        out = [
            messages.add_set(t, name, (address,), flags=TIMEOUT | EVAL, timeout=timeout, size=CLIENTS)
            for name, timeout in self._made_sets.items()
        ]
        return out + [messages.add_set(t, s.name, s.key, s.data, size=s.size) for s in self._made_maps]

    def _fill(self, names: Iterable[str]) -> list[NftMessage]:
        """Makes chains and their rules. New ones are emptied, too: they may remain from a failed attempt."""
        t = self._table
        out: list[NftMessage] = []
        for name in names:
            if name not in self._flushed:
                out += [messages.add_chain(t, name), messages.flush_chain(t, name)]
            out += [
                messages.add_rule(t, name, *rule.expressions, comment=rule.comment, digest=rule.digest)
                for rule in self._chains[name]
            ]
        return out

    def afterwards(self) -> list[NftMessage]:
        """The third one: what nothing leads to any more."""
        chains = [messages.delete_chain(self._table, name) for name in self._dropped]
        return chains + [messages.delete_set(self._table, name) for name in self._dropped_maps]
