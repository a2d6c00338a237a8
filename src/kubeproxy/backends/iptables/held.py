"""What the kernel holds of the rules of iptables mode, compared with what it should hold."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from kubeproxy.backends.iptables import names
from kubeproxy.backends.iptables.compile import ServiceRules, Shared
from kubeproxy.backends.iptables.frame import Frame
from kubeproxy.backends.iptables.steps import Fragment, fragment
from kubeproxy.backends.programs import NAT, TABLES, Tables, target
from kubeproxy.backends.shared import saved
from kubeproxy.backends.shared.static_chains import declared, filled, on_top
from kubeproxy.model.plan import Key

_UNREADABLE = re.compile(r"# Table `(\w+)' is incompatible")
"""What `iptables-save` of the nf_tables kind prints in place of such a table."""


class FoundRules:
    """What the kernel holds of our rules; each piece that is found to be right is taken out of it.

    Attributes:
        cold: nothing of any Service was found.
        unreadable: tables of which the iptables programs read nothing, because other programs put something
            into them that these programs cannot read.
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
        """Records a table that cannot be read, by the line that is printed in its place."""
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
        """The input for each table that writes the frame; none for a table that has it."""
        tables: dict[str, list[str]] = {table: [] for table in TABLES}
        for where in (*frame.chains, *frame.shared, *frame.common):
            if where not in self._rules:
                tables[where[0]].append(declared(where[1]))
        for (table, chain), wanted in frame.chains.items():
            if self._rules.get((table, chain), []) != wanted:
                tables[table] += [declared(chain), *filled(chain, wanted)]
        for (table, chain), wanted in frame.tail.items():
            present = self._rules.get((table, chain), [])
            tables[table] += filled(chain, (rule for rule in wanted if rule not in present))
        for where, rule in frame.extras:
            if not self._has(where, rule):
                tables[where[0]] += filled(where[1], [rule])
        for table, line in on_top(frame.hooks, self._has):
            tables[table].append(line)
        return {table: lines for table, lines in tables.items() if lines}

    def towards(self, key: Key, after: ServiceRules) -> Fragment:
        """The difference between what is held and what a Service needs; what is right counts as found."""
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
