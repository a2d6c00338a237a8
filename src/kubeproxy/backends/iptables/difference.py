"""What the kernel holds, what it should hold, and the input that leads from one to the other.

A `Fragment` is the difference of one Service, complete in itself: fragments of different Services can be sent in any
order, together or apart. That is what lets a first sync be sent in pieces and a refused Service be left out.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from msgspec import Struct

from kubeproxy.backends.iptables import names
from kubeproxy.backends.iptables.rules import ServiceRules, Shared
from kubeproxy.backends.iptables.static import Frame
from kubeproxy.backends.programs import NAT, TABLES, Tables, target
from kubeproxy.backends.shared import saved
from kubeproxy.model.plan import Key

_UNREADABLE = re.compile(r"# Table `(\w+)' is incompatible")
"""What `iptables-save` of the nf_tables kind prints in place of such a table."""


class Fragment(Struct, gc=False):
    """Input for one Service, to be sent in this order: packets are refused before their way in goes, and until it is there.

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
    """Puts a difference into words.

    Args:
        key: the Service.
        write: own chains to fill anew, in an order in which jumps find their targets.
        drop: own chains to delete.
        put: fronts to add, in the order in which they are to be met.
        take: fronts to delete.
    """
    out = Fragment(key, [], [], [])
    nat = out.nat
    for chain in write:
        nat.append(f":{chain} - [0:0]\n")
    nat += write.values()
    # Each front is put on top, so the last one first.
    for (table, chain), rule in reversed(list(put)):
        (nat if table == NAT else out.refusals).append(f"-I {chain} {rule}\n")
    for (table, chain), rule in take:
        (nat if table == NAT else out.welcome).append(f"-D {chain} {rule}\n")
    gone = list(drop)
    nat += [f":{chain} - [0:0]\n" for chain in gone]
    nat += [f"-X {chain}\n" for chain in gone]
    return out


def cut(whole: Fragment, lines: int) -> Iterator[Fragment]:
    """Cuts a fragment into some of about so many lines, to be sent in their order; each leaves what works working.

    A chain is emptied and filled in one of them, and before those that lead to it.
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


class FoundRules:
    """What the kernel holds of ours, taken apart piece by piece as it is found to be right.

    Attributes:
        cold: nothing of any Service was found.
        unreadable: tables in which others have put what the iptables programs cannot read, so that they read nothing.
    """

    def __init__(self, tables: Tables, frame: Frame) -> None:
        """Reads the tables.

        Raises:
            SyncError: a table could not be read.
        """
        self._tables = tables
        self.unreadable: set[str] = set()
        self._owned: dict[str, int] = {}
        self._rules: dict[Shared, list[str]] = {}
        known = {*frame.chains, *frame.shared, *frame.common, *(where for where, _ in frame.hooks)}
        self._read(tables.save(), known)
        tails = {(where, rule) for where, rules in frame.tail.items() for rule in rules}
        self._fronts: dict[Shared, Counter[str]] = {
            where: Counter(rule for rule in self._rules.get(where, ()) if (where, rule) not in tails)
            for where in frame.shared
        }
        self.cold = not self._owned and not any(self._fronts.values())

    def _read(self, lines: Iterable[str], known: set[Shared]) -> None:
        for table, chain, rule in saved.parse(self._readable(lines)):
            if rule is None:
                if (table, chain) in known:
                    self._rules[table, chain] = []
                elif table == NAT and names.is_owned(chain):
                    self._owned[chain] = 0
            elif table == NAT and chain in self._owned:
                self._owned[chain] = hash((self._owned[chain], rule))
            elif (rules := self._rules.get((table, chain))) is not None:
                rules.append(rule)

    def _readable(self, lines: Iterable[str]) -> Iterator[str]:
        """Notes what is said in place of a table that cannot be read."""
        for line in lines:
            if line.startswith("#") and (found := _UNREADABLE.match(line)):
                self.unreadable.add(found[1])
            yield line

    def _has(self, where: Shared, rule: str) -> bool:
        """Whether a rule is in a chain that is not ours alone."""
        table, chain = where
        if table in self.unreadable:
            return self._tables.has(table, chain, rule)
        return rule in self._rules.get(where, ())

    def frame_input(self, frame: Frame) -> dict[str, list[str]]:
        """The input for each table that brings the frame there; nothing for a table where it is there."""
        tables: dict[str, list[str]] = {table: [] for table in TABLES}
        for where in (*frame.chains, *frame.shared, *frame.common):
            if where not in self._rules:
                tables[where[0]].append(f":{where[1]} - [0:0]\n")
        for (table, chain), wanted in frame.chains.items():
            if self._rules.get((table, chain), []) != wanted:
                tables[table].append(f":{chain} - [0:0]\n")
                tables[table] += [f"-A {chain} {rule}\n" for rule in wanted]
        for (table, chain), wanted in frame.tail.items():
            present = self._rules.get((table, chain), [])
            tables[table] += [f"-A {chain} {rule}\n" for rule in wanted if rule not in present]
        for where, rule in frame.extras:
            if not self._has(where, rule):
                tables[where[0]].append(f"-A {where[1]} {rule}\n")
        for where, rule in reversed(frame.hooks):
            if not self._has(where, rule):
                tables[where[0]].append(f"-I {where[1]} {rule}\n")
        return {table: lines for table, lines in tables.items() if lines}

    def towards(self, key: Key, after: ServiceRules) -> Fragment:
        """The difference between what is held and what a Service should have; what is right counts as found."""
        write = {c: text for c, text in after.chains.items() if self._owned.pop(c, None) != _digest(text)}
        put = []
        for where, rule in after.fronts:
            held = self._fronts[where]
            if held[rule]:
                held[rule] -= 1
            else:
                put.append((where, rule))
        return fragment(key, write, (), put, ())

    def leftovers(self) -> tuple[list[str], list[tuple[Shared, str]]]:
        """Own chains and fronts that no Service wants, when all Services have been looked at."""
        fronts = [(where, rule) for where, held in self._fronts.items() for rule in held.elements()]
        return list(self._owned), fronts


def _digest(text: str) -> int:
    value = 0
    for line in text.splitlines():
        value = hash((value, line.split(" ", 2)[2]))
    return value


def unreferenced(tables: Tables, chains: Iterable[str]) -> list[str]:
    """Those of some chains of table nat that can be deleted together: nothing that stays leads to them."""
    removable = dict.fromkeys(chains)
    leads_to: dict[str, list[str]] = {}
    for table, chain, rule in saved.parse(tables.save()):
        if table == NAT and rule is not None:
            leads_to.setdefault(chain, []).append(target(rule))
    stay = [chain for chain in leads_to if chain not in removable]
    while stay:
        for to in leads_to.get(stay.pop(), ()):
            if to in removable:
                del removable[to]
                stay.append(to)
    return list(removable)
