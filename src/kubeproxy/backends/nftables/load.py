"""A full sync of a table that is laid out as ours: corrects differences, some hundred Services at a time.

Each Service's difference is complete in itself, so a piece that the kernel refuses can be sent in halves,
until it is known which Service it is. What no Service needs is deleted last; of a refused Service everything
stays.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from kubeproxy.backends.nftables import frame, layout, names
from kubeproxy.backends.nftables.chains import SharedChain
from kubeproxy.backends.nftables.compile import Element, ServiceElements
from kubeproxy.backends.nftables.content import NOTHING, Content, own_objects
from kubeproxy.backends.nftables.held import KEY_AT, FoundTable
from kubeproxy.backends.nftables.transaction import Transaction
from kubeproxy.backends.shared.isolation import isolate
from kubeproxy.model.plan import Key, ServicePlan
from kubeproxy.netlink.nft.kernel import TransactionRefusedError

_PIECE = 5_000
"""About how many elements are sent at a time: no slower than more of them, and they need 10 MB less."""


class _Part(NamedTuple):
    """What one Service needs, and the difference to what is there."""

    key: Key
    compiled: ServiceElements
    held: ServiceElements
    delete: list[Element]
    add: list[Element]

    @property
    def idle(self) -> bool:
        """Whether all is there already."""
        held, wanted = self.held, self.compiled
        return not (
            self.delete
            or self.add
            or held.own_chains != wanted.own_chains
            or held.own_sets != wanted.own_sets
            or held.own_maps != wanted.own_maps
        )


class TableLoad:
    """One full sync."""

    def __init__(
        self,
        content: Content,
        held: FoundTable,
        commit: Callable[[Transaction], None],
        before: Mapping[Key, ServicePlan],
    ) -> None:
        """Prepares it.

        Args:
            content: what the table is to hold.
            held: what it holds.
            commit: sends a transaction; raises TransactionRefusedError.
            before: the plans that were programmed before, as far as they are known.
        """
        self._before = before
        self._content = content
        self._held = held
        self._commit = commit
        self._wanted_chains = {*layout.FIXED_CHAINS, *layout.BASE_CHAINS}
        self._wanted_sets: set[str] = set()
        self._wanted_maps: set[str] = set()
        self._failures: dict[Key, str] = {}

    def run(self) -> dict[Key, str]:
        """Executes the sync; returns the Services that were refused.

        Raises:
            OSError: what is common to all Services was refused, or every Service.
        """
        self._frame()
        for piece in self._pieces():
            self._send(piece)
        self._sweep()
        for key in self._failures:
            del self._content.plans[key]
        return self._failures

    def _frame(self) -> None:
        """What does not depend on Services."""
        node = self._content.compiler.node
        transaction = Transaction(self._content.table)
        for name, rules in frame.rules(node).items():
            if not self._held.has_rules(name, rules):
                transaction.chain(name, rules, exists=name in self._held.chains)
        wanted = [(name, e) for name, elements in frame.elements(node).items() for e in elements]
        delete, add = self._towards(wanted)
        transaction.delete(delete)
        transaction.add(add)
        self._commit(transaction)

    def _towards(self, wanted: list[Element]) -> tuple[list[Element], list[Element]]:
        """Elements to delete and to add so that the wanted ones are there."""
        delete: list[Element] = []
        add: list[Element] = []
        for name, element in wanted:
            old = self._held.take(name, element)
            if old == element:
                continue
            if old is not None:
                delete.append((name, old))
            add.append((name, element))
        return delete, add

    def _pieces(self) -> Iterator[list[_Part]]:
        """The Services' parts, some at a time. The chains they share are made before."""
        uses = self._content.uses
        piece: list[_Part] = []
        size = 0
        for key in self._content.plans:
            compiled = self._content.compile(key)
            self._make(uses.acquire(compiled.chains))
            delete, add = self._towards(uses.difference(NOTHING, compiled)[1])
            for front in compiled.firewalls:
                delete += [
                    (layout.firewall_sources(front), element)
                    for element in self._held.take_rest(layout.firewall_sources(front), front)
                ]
            part = _Part(key, compiled, self._held_of(compiled), delete, add)
            if not part.idle:
                piece.append(part)
            self._wanted_chains |= compiled.own_chains.keys()
            self._wanted_sets |= compiled.own_sets.keys()
            self._wanted_maps |= compiled.own_maps
            size += len(add) + len(delete)
            if size >= _PIECE:
                yield piece
                piece, size = [], 0
        yield piece

    def _make(self, chains: list[SharedChain]) -> None:
        statements = self._content.compiler.statements
        transaction = Transaction(self._content.table)
        for chain in chains:
            if not self._held.has_rules(chain.name, chain.rules(statements)):
                transaction.shared_chain(chain, statements, exists=chain.name in self._held.chains)
        self._commit(transaction)

    def _held_of(self, wanted: ServiceElements) -> ServiceElements:
        """What there is of a Service's own objects."""
        chains = {
            name: rules if self._held.has_rules(name, rules) else []
            for name, rules in wanted.own_chains.items()
            if name in self._held.chains
        }
        sets = {name: self._held.sets[name] for name in wanted.own_sets if name in self._held.sets}
        return ServiceElements({}, set(), chains, sets, wanted.own_maps & self._held.maps, {})

    def _send(self, piece: list[_Part]) -> None:
        """Sends parts together; when the kernel refuses them, in halves."""
        for part, error in isolate(piece, self._send_together, TransactionRefusedError):
            self._refused(part, error)

    def _send_together(self, parts: Sequence[_Part]) -> None:
        transaction = Transaction(self._content.table)
        for part in parts:
            own_objects(transaction, part.held, part.compiled)
            transaction.delete(part.delete)
            transaction.add(part.add)
        self._commit(transaction)

    def _refused(self, part: _Part, error: TransactionRefusedError) -> None:
        self._failures[part.key] = str(error)
        self._content.uses.difference(part.compiled, NOTHING)
        self._content.uses.release(part.compiled.chains)

    def _kept(self) -> Callable[[Element], bool]:
        """Whether an element of a refused Service stays: it was programmed, or is at one of its fronts."""
        compiler, plans = self._content.compiler, self._content.plans
        had = [self._before[key] for key in self._failures if key in self._before]
        elements = {element for plan in had for element in compiler.compile(plan).elements}
        named = {front for key in self._failures for front in compiler.fronts(plans[key])}
        named |= {front for plan in had for front in compiler.fronts(plan)}
        others = {front for key in plans.keys() - self._failures for front in compiler.fronts(plans[key])}
        ends = {KEY_AT + len(front) for front in named}
        failed = [plans[key] for key in self._failures]
        own = tuple({names.port(port.name, port.protocol) for plan in failed for port in plan.ports})

        def stays(element: Element) -> bool:
            if layout.TABLES.match(element[0]):
                return element[0].endswith(own)
            fronts = {element[1][KEY_AT:end] for end in ends}
            return fronts.isdisjoint(others) and (element in elements or not fronts.isdisjoint(named))

        return stays

    def _sweep(self) -> None:
        """Deletes what no Service needs."""
        content = self._content
        chains = {chain.name: chain.slots(content.table.family) for chain in content.uses.chains}
        needed = {slots.name for slots in chains.values() if slots is not None}
        maps = self._held.maps - needed - self._wanted_maps
        stays = self._kept() if self._failures else lambda _: False
        left = [element for element in self._held.leftovers(maps) if not stays(element)]
        for start in range(0, len(left), _PIECE):
            transaction = Transaction(content.table)
            transaction.delete(left[start : start + _PIECE])
            self._commit(transaction)
        if self._failures:
            return  # what they have may lead to chains that no other Service needs
        transaction = Transaction(content.table)
        for name in self._held.chains.keys() - self._wanted_chains - chains.keys():
            transaction.drop_chain(name)
        for name in self._held.sets.keys() - self._wanted_sets:
            transaction.drop_set(name)
        for name in maps:
            transaction.drop_map(name)
        self._commit(transaction)
