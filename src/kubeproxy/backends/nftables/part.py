"""The part of the table that concerns some Services, read object by object, at the cost of these Services.

Read are the base chains and all chains that they and the elements of these Services lead to, the sets that
rules of these look up, and of the sets' elements those of the Services' fronts: at each front whatever set it
may be in, so that an element that should not be there is found, too. The result is a table as `held` has it,
smaller than the one in the kernel.
"""

import errno
from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from kubeproxy.backends.base import KernelComparison
from kubeproxy.backends.nftables import layout, packing
from kubeproxy.backends.nftables.compile import Compiler, ServiceElements
from kubeproxy.backends.nftables.held import KEY_AT, HeldTable, chain_message, rule_message, set_message
from kubeproxy.backends.nftables.steps import steps
from kubeproxy.backends.shared.compared import compared
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import ServicePlan
from kubeproxy.netlink import wire
from kubeproxy.netlink.nft import messages, objects, references
from kubeproxy.netlink.nft.fake import FakeNftKernel
from kubeproxy.netlink.nft.kernel import NftKernel
from kubeproxy.netlink.nft.messages import NftMessage, TableName

_FRONTS = (layout.SERVICE_IPS, layout.DROP_SERVICES, layout.REJECT_SERVICES, layout.FIREWALL_IPS)
_NODE_PORTS = (
    layout.SERVICE_NODEPORTS,
    layout.DROP_NODEPORTS,
    layout.REJECT_NODEPORTS,
    layout.FIREWALL_NODEPORTS,
)
_FRAME = (layout.SERVICE_CIDRS, layout.NODEPORT_IPS)
"""Sets whose elements do not depend on Services."""

_NODE_PORT_BYTES = 8


def read(kernel: NftKernel, table: TableName, node: NodeConfig, plans: Iterable[ServicePlan]) -> HeldTable:
    """Reads the part of the table that concerns these plans.

    Raises:
        OSError: the kernel refused, or the table changed meanwhile.
    """
    comment = objects.table_comment(kernel, table)
    if comment is None:
        return HeldTable(())
    compiler = Compiler(node)
    part = _PartReader(kernel, table)
    for plan in plans:
        part.take(compiler.compile(plan), list(compiler.fronts(plan)))
    part.follow((*layout.BASE_CHAINS, *layout.FIXED_CHAINS))
    return HeldTable((messages.add_table(table, comment), *part.messages()), part=True)


class _PartReader:
    """What was read so far, by name."""

    def __init__(self, kernel: NftKernel, table: TableName) -> None:
        self._kernel, self._table = kernel, table
        self._sets: dict[str, NftMessage | None] = {}
        self._chains: dict[str, NftMessage | None] = {}
        self._rules: dict[str, list[NftMessage]] = {}
        self._elements: dict[str, dict[bytes, None]] = {}
        for each in layout.sets(table.family):
            self._set(each.name)
        for name in _FRAME:
            self._elements[name] = dict.fromkeys(objects.elements(kernel, table, name))

    def messages(self) -> Iterator[NftMessage]:
        """The messages that would make it, in an order in which they can be sent."""
        yield from (made for made in self._sets.values() if made is not None)
        yield from (made for made in self._chains.values() if made is not None)
        for rules in self._rules.values():
            yield from rules
        for name, elements in self._elements.items():
            yield from messages.add_elements(self._table, name, sorted(elements))

    def take(self, compiled: ServiceElements, fronts: Iterable[bytes]) -> None:
        """Reads what there is of a Service."""
        for name in compiled.own_sets:
            self._set(name)
        self.follow([chain.name for chain in compiled.chains])
        self.follow(compiled.own_chains)
        for name in compiled.own_maps:
            if self._set(name):
                found = objects.elements(self._kernel, self._table, name)
                self._elements[name] = dict.fromkeys(found)
        for name, element in compiled.elements:
            if name not in compiled.own_maps:
                self._element(name, element)
        for front in fronts:
            for name, key in self._keys(front):
                self._element(name, packing.member(key))
        if compiled.firewalls:
            ends = {(layout.firewall_sources(front), KEY_AT + len(front)) for front in compiled.firewalls}
            for name, end in ends:
                for element in objects.elements(self._kernel, self._table, name):
                    if element[KEY_AT:end] in compiled.firewalls:
                        self._elements.setdefault(name, {})[element] = None

    def follow(self, names: Iterable[str]) -> None:
        """Reads chains with their rules, and what these name."""
        pending = list(names)
        while pending:
            name = pending.pop()
            if not self._chain(name):
                continue
            asked = wire.text(1, self._table.name) + wire.text(2, name)
            # Read to its end before the next request: the answers come through one socket.
            for body in list(self._kernel.dump(messages.GETRULE, self._table.family, asked)):
                a = wire.attributes(body)
                if (wire.string(a[1]), wire.string(a[2])) != (self._table.name, name):
                    continue  # kernels that do not filter list every rule
                self._rules[name].append(rule_message(self._table, a))
                for looked_up in references.sets(a[4]):
                    self._set(looked_up)
                pending += references.chains(a[4]) - self._chains.keys()

    def _keys(self, front: bytes) -> Iterator[tuple[str, bytes]]:
        """Where a front may be, and with which keys."""
        at_node = len(front) == _NODE_PORT_BYTES
        for name in _NODE_PORTS if at_node else _FRONTS:
            yield name, front
        if not at_node:
            for count in range(1, layout.DIRECT + 1):
                name = layout.endpoints(self._table.family, count).name
                for number in range(count):
                    yield name, front + packing.slot(number)

    def _element(self, name: str, wanted: bytes) -> None:
        """Reads what a set has at the key of an element."""
        if not self._set(name):
            return
        found = objects.element(self._kernel, self._table, name, _only_key(wanted))
        if found is not None:
            self._elements.setdefault(name, {})[found] = None
            if chain := references.target(found):
                self.follow([chain] if chain not in self._chains else ())

    def _set(self, name: str) -> bool:
        """Reads a set without its elements; returns whether it is there."""
        if name not in self._sets:
            body = self._ask(messages.GETSET, wire.text(2, name))
            self._sets[name] = None if body is None else set_message(self._table, wire.attributes(body))
        return self._sets[name] is not None

    def _chain(self, name: str) -> bool:
        """Reads a chain without its rules; returns whether it is there and new."""
        if name in self._chains:
            return False
        body = self._ask(messages.GETCHAIN, wire.text(3, name))
        self._chains[name] = None if body is None else chain_message(self._table, wire.attributes(body))
        if body is not None:
            self._rules[name] = []
        return body is not None

    def _ask(self, kind: int, name: bytes) -> memoryview | None:
        """One object; None if there is none."""
        try:
            found = self._kernel.ask(kind, self._table.family, wire.text(1, self._table.name) + name)
        except wire.NetlinkError as e:
            if e.errno != errno.ENOENT:
                raise
            return None
        return found[0] if found else None


def _only_key(element: bytes) -> bytes:
    """An element without what it maps to."""
    key = objects.key_of(element)
    return wire.attribute(1, key)


def compare(held: HeldTable, kernel: FakeNftKernel) -> KernelComparison:
    """What a kernel in memory held, compared with what a `load` left there.

    Args:
        held: what it held.
        kernel: the kernel after the `load`.
    """
    sent = steps(held, kernel)
    if not sent:
        return KernelComparison()
    left = tuple(kernel.listing())
    found = compared(
        lambda: HeldTable(_without(held.made, left)).commands(),
        lambda: HeldTable(_without(left, held.made)).commands(),
        sent,
    )
    if not held.part:
        return found
    # A chain or set that these Services do not need may be another's.
    kinds = {messages.NEWCHAIN: 3, messages.NEWSET: 2}
    kept = {wire.string(wire.attributes(m.body)[kinds[m.kind]]) for m in left if m.kind in kinds}
    return replace(found, foreign=tuple(line for line in found.foreign if _name(line) in kept))


def _name(command: str) -> str:
    """The chain or set that a command is about: "add rule ip TABLE NAME ..."."""
    return command.split(" ", 5)[4]


def _without(made: Iterable[NftMessage], others: Iterable[NftMessage]) -> tuple[NftMessage, ...]:
    """Messages without the elements that are in others, too.

    There may be a million, and putting them into words is slow.
    Ends of intervals are separate elements, so all of a set of intervals stay.
    """
    known: dict[str, set[bytes]] = {}
    for message in others:
        if message.kind == messages.NEWSETELEM:
            a = wire.attributes(message.body)
            known.setdefault(wire.string(a[2]), set()).update(objects.split(bytes(a[3])))
    found = []
    for message in made:
        if message.kind == messages.NEWSETELEM:
            a = wire.attributes(message.body)
            name = wire.string(a[2])
            if name != layout.SERVICE_CIDRS:
                rest = [e for e in objects.split(bytes(a[3])) if e not in known.get(name, ())]
                found += messages.add_elements(TableName(message.family, wire.string(a[1])), name, rest)
                continue
        found.append(message)
    return tuple(found)
