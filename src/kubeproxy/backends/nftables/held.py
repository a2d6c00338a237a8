"""What the kernel holds of our table, taken apart piece by piece as it is found to be right."""

from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from kubeproxy.backends.nftables import layout
from kubeproxy.backends.nftables.steps import Rule
from kubeproxy.netlink.nft import objects, types
from kubeproxy.netlink.nft.kernel import NftKernel
from kubeproxy.netlink.nft.messages import ANONYMOUS, TableName

KEY_AT = 12
"""Where in an element its key begins."""


class FoundTable:
    """The objects of a table that may be laid out as ours.

    Attributes:
        chains: digests of the rules of each chain.
        maps: maps of endpoints that are not always there.
        sets: sets that are none of the layout's, with the milliseconds their elements stay.
        sound: the table is laid out as ours: its sets, maps and base chains are there and what they should be.
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
        """What is held in the place of an element that is not; keys are looked at only if there is such a one."""
        by_key = self._by_key.get(name)
        if by_key is None:
            by_key = self._by_key[name] = {objects.key_of(each): each for each in held}
        found = by_key.get(objects.key_of(element))
        return found if found in held else None

    def take_rest(self, name: str, front: bytes) -> list[bytes]:
        """What an interval set still has for a front, besides what was taken; it counts as found.

        The kernel refuses an interval that overlaps another one. So the other one has to go in the same transaction.
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
        """Reads a set only now: rules can be mended before 100,000 elements are read."""
        del self._unread[name]
        held = self._elements[name] = set(objects.elements(self._kernel, self._table, name))
        return held

    def leftovers(self, gone: AbstractSet[str]) -> list[tuple[str, bytes]]:
        """The elements nobody wants, those of maps that go anyway apart."""
        for name in list(self._unread):
            self._read(name)
        return [
            (name, element) for name, held in self._elements.items() if name not in gone for element in held
        ]


def _is(held: objects.SetInfo | None, wanted: layout.SetType) -> bool:
    """Whether a set is the one that is wanted."""
    data = 0 if wanted.data is None else types.number(wanted.data)
    return held is not None and (held.key_type, held.data_type) == (types.number(wanted.key), data)
