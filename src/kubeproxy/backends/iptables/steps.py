"""The difference of one Service as input of `iptables-restore`.

A `Fragment` is complete in itself: fragments of different Services can be sent in any order, together or
apart. That is what lets a first sync be sent in pieces and a refused Service be left out.
"""

from collections.abc import Iterable, Iterator

from msgspec import Struct

from kubeproxy.backends.iptables.compile import ServiceRules, Shared
from kubeproxy.backends.programs import NAT
from kubeproxy.backends.shared.static_chains import declared, removed
from kubeproxy.model.plan import Key


class Fragment(Struct, gc=False):
    """Input for one Service, in the order in which it is sent.

    Packets are refused before the rules that route them are deleted, and until such rules are there.

    Attributes:
        key: the Service; None for what belongs to none.
        refusals: new rules, table filter.
        nat: everything of table nat.
        welcome: old rules to be deleted, table filter.
    """

    key: Key | None
    refusals: list[str]
    nat: list[str]
    welcome: list[str]

    def __bool__(self) -> bool:
        return bool(self.refusals or self.nat or self.welcome)


def fragment(
    key: Key | None,
    write: dict[str, str],
    drop: Iterable[str],
    put: Iterable[tuple[Shared, str]],
    take: Iterable[tuple[Shared, str]],
) -> Fragment:
    """Writes a difference as input.

    Args:
        key: the Service.
        write: own chains to fill again, in an order in which jumps find their targets.
        drop: own chains to delete.
        put: fronts to add, in the order in which they are to be met.
        take: fronts to delete.
    """
    out = Fragment(key, [], [], [])
    nat = out.nat
    nat += map(declared, write)
    nat += write.values()
    # Each front is put on top, so the last one first.
    for (table, chain), rule in reversed(list(put)):
        (nat if table == NAT else out.refusals).append(f"-I {chain} {rule}\n")
    for (table, chain), rule in take:
        (nat if table == NAT else out.welcome).append(f"-D {chain} {rule}\n")
    nat += removed((), list(drop))
    return out


def cut(whole: Fragment, lines: int) -> Iterator[Fragment]:
    """Splits a fragment into parts of about this many lines, to be sent in order; all fronts work after each.

    A chain is emptied and filled in the same part, before those that lead to it.
    """
    count = next((i for i, line in enumerate(whole.nat) if line[0] != ":"), 0)
    units = [
        declared + filled for declared, filled in zip(whole.nat[:count], whole.nat[count:], strict=False)
    ]
    units += whole.nat[2 * count :]
    part, size = Fragment(whole.key, whole.refusals, [], []), 0
    for unit in units:
        part.nat.append(unit)
        size += unit.count("\n")
        if size >= lines:
            yield part
            part, size = Fragment(whole.key, [], [], []), 0
    part.welcome = whole.welcome
    yield part


def between(key: Key, before: ServiceRules, after: ServiceRules) -> Fragment:
    """The difference between two plans of a Service."""
    old, new = dict.fromkeys(before.fronts), dict.fromkeys(after.fronts)
    return fragment(
        key,
        {c: text for c, text in after.chains.items() if before.chains.get(c) != text},
        [c for c in before.chains if c not in after.chains],
        [front for front in new if front not in old],
        [front for front in old if front not in new],
    )
