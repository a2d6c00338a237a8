"""What the kernel holds of our table, taken apart piece by piece as it is found to be right."""

from collections.abc import Iterable

from kubeproxy.backends.nftables import layout
from kubeproxy.backends.nftables.steps import Rule
from kubeproxy.netlink.nft import messages, objects
from kubeproxy.netlink.nft.kernel import Kernel
from kubeproxy.netlink.nft.messages import ANONYMOUS, Table


class Held:
    """The objects of a table laid out as ours is.

    Attributes:
        chains: digests of the rules of each chain.
        sets: all other sets than those of the layout, with the milliseconds their elements stay.
    """

    def __init__(self, kernel: Kernel, table: Table) -> None:
        """Reads the table.

        Raises:
            OSError: the kernel refused, or the table changed meanwhile.
        """
        self._hooks = objects.chains(kernel, table)
        self.chains: dict[str, list[bytes]] = {name: [] for name in self._hooks}
        for rule in objects.rules(kernel, table):
            self.chains.setdefault(rule.chain, []).append(rule.digest)
        found = objects.sets(kernel, table)
        ours = layout.sets(table.family)
        fixed = {s.name for s in ours}
        self.sets = {
            s.name: s.timeout for s in found.values() if s.name not in fixed and not s.flags & ANONYMOUS
        }
        self._sound = self._is_ours(ours, found)
        self._elements: dict[str, dict[bytes, bytes]] = {}
        if self._sound:
            for named in ours:
                held = objects.elements(kernel, table, named.name)
                self._elements[named.name] = {objects.key_of(element): element for element in held}

    @property
    def sound(self) -> bool:
        """Whether the table is laid out as ours: its sets, maps and base chains are there and what they should be."""
        return self._sound

    def _is_ours(self, ours: Iterable[layout.SetType], found: dict[str, objects.SetInfo]) -> bool:
        for wanted in ours:
            held = found.get(wanted.name)
            if held is None or (held.key_type, held.data_type) != messages.types(wanted.key, wanted.data):
                return False
        return all(
            name in self._hooks and self._hooks[name].hook == hook
            for name, hook in layout.BASE_CHAINS.items()
        )

    def has_rules(self, chain: str, rules: Iterable[Rule]) -> bool:
        """Whether a chain is there and has just these rules."""
        return self.chains.get(chain) == [rule.digest for rule in rules]

    def take(self, name: str, element: bytes) -> bytes | None:
        """What a set has in the place of an element; it counts as found."""
        return self._elements[name].pop(objects.key_of(element), None)

    def leftovers(self) -> list[tuple[str, bytes]]:
        """The elements nobody wants."""
        return [(name, element) for name, held in self._elements.items() for element in held.values()]
