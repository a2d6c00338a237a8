"""What the kernel holds of our table: as a value, and as pieces that are taken out when found to be right.

The value keeps what is read as the messages that would make it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet

from msgspec import Struct

from kubeproxy.backends.base import HeldState
from kubeproxy.backends.nftables import layout
from kubeproxy.backends.nftables.statements import Rule
from kubeproxy.netlink import wire
from kubeproxy.netlink.nft import messages, objects, text, types
from kubeproxy.netlink.nft.fake import FakeNftKernel
from kubeproxy.netlink.nft.kernel import NftKernel
from kubeproxy.netlink.nft.messages import ANONYMOUS, NftMessage, TableName

KEY_AT = 12
"""Where in an element its key begins."""

_N = wire.NESTED
_SET = (1, 2, 3, 4, 5, 6, 7, 9 | _N, 11, 13)
"""Attributes that define a set: table, name, flags, types, sizes, description, timeout, comment."""

_RULE = (1, 2, 4 | _N, 7)
"""Those of a rule: table, chain, expressions, comment and digest."""

_CHAIN = (1, 3, 4 | _N, 5, 7, 12)
"""Those of a chain: table, name, hook, policy, type, comment."""


class HeldTable(Struct, frozen=True, gc=False):
    """The table of one family.

    Attributes:
        made: the messages that would make it: the table, its sets, chains, rules and elements; none if there
            is no table.
        part: it is only what concerns some Services.
    """

    made: tuple[NftMessage, ...]
    part: bool = False

    @property
    def empty(self) -> bool:
        """See `HeldState`."""
        return not self.made

    def lines(self) -> list[str]:
        """See `HeldState`."""
        return text.render(self.made).splitlines()

    def commands(self) -> list[str]:
        """See `HeldPart`: those that make what is in the table."""
        return list(text.commands(m for m in self.made if m.kind != messages.NEWTABLE))

    def in_memory(self) -> FakeNftKernel:
        """A kernel in memory that holds the same."""
        kernel = FakeNftKernel()
        kernel.commit(self.made)
        kernel.commits.clear()
        return kernel


def read(kernel: NftKernel, table: TableName) -> HeldTable:
    """Reads the table.

    Raises:
        OSError: the kernel refused, or the table changed meanwhile.
    """
    return HeldTable(tuple(_listed(kernel, table)))


def as_table(held: HeldState) -> HeldTable:
    """What `read` returned; anything else is a mistake of the caller."""
    assert isinstance(held, HeldTable)
    return held


class FoundTable:
    """The objects of a table that may be laid out as ours.

    Attributes:
        chains: digests of the rules of each chain.
        maps: maps of endpoints that are not always there, those of single Services, too.
        sets: sets that are none of the layout's, with the milliseconds their elements stay.
        sound: the table is laid out as ours: its sets, maps and base chains are there and what they should
            be.
    """

    def __init__(self, kernel: NftKernel, table: TableName) -> None:
        """Reads the table.

        Raises:
            OSError: the kernel refused, or the table changed meanwhile.
        """
        hooks = objects.chains(kernel, table)
        self.chains: dict[str, list[bytes]] = {name: [] for name in hooks}
        for rule in objects.rules(kernel, table):
            self.chains.setdefault(rule.chain, []).append(rule.digest)
        wanted = {s.name: s for s in layout.sets(table.family)}
        self.maps: set[str] = set()
        self.sets: dict[str, int] = {}
        found = {s.name: s for s in objects.sets(kernel, table).values() if not s.flags & ANONYMOUS}
        for name in found.keys() - wanted.keys():
            if (slots := layout.parse_endpoints(table.family, name)) is not None:
                self.maps.add(name)
                wanted[name] = slots
            else:
                self.sets[name] = found[name].timeout
        self.sound = all(_is(found.get(name), s) for name, s in wanted.items()) and all(
            name in hooks and hooks[name].hook == hook for name, hook in layout.BASE_CHAINS.items()
        )
        self._kernel, self._table = kernel, table
        self._unread = dict.fromkeys(wanted)
        self._elements: dict[str, set[bytes]] = {}
        self._by_key: dict[str, dict[bytes, bytes]] = {}
        self._by_front: dict[str, dict[bytes, list[bytes]]] = {}

    def has_rules(self, chain: str, rules: Iterable[Rule]) -> bool:
        """Whether a chain is there and has just these rules."""
        return self.chains.get(chain) == [rule.digest for rule in rules]

    def take(self, name: str, element: bytes) -> bytes | None:
        """What a set has in the place of an element; it counts as found."""
        held = self._elements.get(name)
        if held is None:
            if name not in self._unread:
                return None
            held = self._read(name)
        found = element if element in held else self._rival(name, held, element) if held else None
        held.discard(found or element)
        return found

    def _rival(self, name: str, held: set[bytes], element: bytes) -> bytes | None:
        """What is held in place of a missing element; keys are compared only if one is missing."""
        by_key = self._by_key.get(name)
        if by_key is None:
            by_key = self._by_key[name] = {objects.key_of(each): each for each in held}
        found = by_key.get(objects.key_of(element))
        return found if found in held else None

    def take_rest(self, name: str, front: bytes) -> list[bytes]:
        """What an interval set still has for a front, besides what was taken; it counts as found.

        The kernel refuses an interval that overlaps another one. So the other one has to go in the same
        transaction.
        """
        if name in self._unread:
            self._read(name)
        by_front = self._by_front.get(name)
        if by_front is None:
            by_front = self._by_front[name] = defaultdict(list)
            for element in self._elements[name]:
                by_front[element[KEY_AT : KEY_AT + len(front)]].append(element)
        held = self._elements[name]
        rest = sorted(held.intersection(by_front.get(front, ())))
        held.difference_update(rest)
        return rest

    def _read(self, name: str) -> set[bytes]:
        """Reads a set only now: rules can be corrected before 100,000 elements are read."""
        del self._unread[name]
        held = self._elements[name] = set(objects.elements(self._kernel, self._table, name))
        return held

    def leftovers(self, gone: AbstractSet[str]) -> list[tuple[str, bytes]]:
        """The elements no Service needs, without those of maps that are deleted anyway."""
        for name in list(self._unread):
            self._read(name)
        return [
            (name, element) for name, held in self._elements.items() if name not in gone for element in held
        ]


def _is(held: objects.SetInfo | None, wanted: layout.SetType) -> bool:
    """Whether a set is the one that is wanted."""
    data = 0 if wanted.data is None else types.number(wanted.data)
    return held is not None and (held.key_type, held.data_type) == (types.number(wanted.key), data)


def _listed(kernel: NftKernel, table: TableName) -> Iterator[NftMessage]:
    family, only = table.family, wire.text(1, table.name)
    for body in kernel.dump_all(messages.GETTABLE, family):
        if wire.string(wire.attributes(body)[1]) == table.name:
            yield messages.add_table(table, objects.table_comment(kernel, table) or "")
            break
    else:
        return
    names = []
    for body in list(kernel.dump(messages.GETSET, family, only)):
        a = wire.attributes(body)
        names.append(wire.string(a[2]))
        yield set_message(table, a)
    for body in kernel.dump_all(messages.GETCHAIN, family):
        a = wire.attributes(body)
        if wire.string(a[1]) == table.name:
            yield chain_message(table, a)
    for body in kernel.dump(messages.GETRULE, family, only):
        a = wire.attributes(body)
        if wire.string(a[1]) == table.name:
            yield rule_message(table, a)
    for name in names:
        yield from messages.add_elements(table, name, sorted(objects.elements(kernel, table, name)))


def set_message(table: TableName, a: wire.Attributes) -> NftMessage:
    """The message that would make a listed set."""
    made = _only(a, _SET) + wire.be32(10, 0)
    return NftMessage(messages.NEWSET, 0, table.family, made, f"add set {table} {wire.string(a[2])}")


def chain_message(table: TableName, a: wire.Attributes) -> NftMessage:
    """The message that would make a listed chain."""
    return NftMessage(
        messages.NEWCHAIN, 0, table.family, _only(a, _CHAIN), f"add chain {table} {wire.string(a[3])}"
    )


def rule_message(table: TableName, a: wire.Attributes) -> NftMessage:
    """The message that would make a listed rule."""
    return NftMessage(
        messages.NEWRULE, 0, table.family, _only(a, _RULE), f"add rule {table} {wire.string(a[2])}"
    )


def _only(a: wire.Attributes, kinds: tuple[int, ...]) -> bytes:
    """Some of an object's attributes, put together again."""
    return b"".join([wire.attribute(kind, bytes(a[kind & ~_N])) for kind in kinds if kind & ~_N in a])
