"""Corrects the iptables rules: computes what is to be sent to the programs.

Chains of ours hold exactly the rules of the frame; an unchanged one is not written, so it keeps its counters.
Into the kernel's chains we put single rules, on top. Each table is changed completely or not at all.
"""

from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet

from kubeproxy.backends.ipvs.frame import HOOKS, OUT, Chains
from kubeproxy.backends.programs import FILTER, NAT, InputRefusedError, Tables
from kubeproxy.backends.shared import saved, static_chains
from kubeproxy.backends.shared.isolation import isolate
from kubeproxy.backends.shared.static_chains import Chain

_HOOKED = frozenset(where for where, _ in HOOKS)


class Rules:
    """The rules of one family."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._held: Chains = {}

    @property
    def drops(self) -> AbstractSet[str]:
        """The rules of Services that are there."""
        return frozenset(self._held.get(OUT, ()))

    def read(self, ours: Collection[Chain]) -> None:
        """Reads what is there, whichever program wrote it.

        Args:
            ours: the chains that are ours.

        Raises:
            SyncError: the tables could not be read.
        """
        held: Chains = {}
        for table, chain, rule in saved.parse(self._tables.save()):
            where = table, chain
            if rule is None:
                if where in ours or where in _HOOKED:
                    held[where] = []
            elif where in held:
                held[where].append(rule)
        self._held = held

    def adopt(self, wanted: Chains) -> dict[str, InputRefusedError]:
        """Corrects what was read; returns the rules of Services that were refused.

        Raises:
            SyncError: the tables could not be written; or every rule of a Service is refused.
            InputRefusedError: rules that belong to no Service were refused.
        """
        try:
            self.change(wanted)
        except InputRefusedError:
            there = self.drops
            new = [rule for rule in wanted[OUT] if rule not in there]
            if not new:
                raise
            self.change({**wanted, OUT: [rule for rule in wanted[OUT] if rule in there]})
            return dict(isolate(new, self._add, InputRefusedError))
        return {}

    def change(self, wanted: Chains) -> None:
        """Corrects what was read or sent before.

        Raises:
            SyncError: the tables could not be written.
            InputRefusedError: the rules were refused.
        """
        lines = _difference(self._held, wanted)
        for table, line in static_chains.on_top(HOOKS, lambda at, rule: rule in self._held.get(at, ())):
            lines[table].append(line)
        hooks: Chains = {where: [] for where in _HOOKED}
        for where, rule in HOOKS:
            hooks[where].append(rule)
        for table, text in lines.items():
            if text:
                self._tables.restore(table, text)
            self._held.update(
                {at: rules for at, rules in (*hooks.items(), *wanted.items()) if at[0] == table}
            )

    def _add(self, rules: Sequence[str]) -> None:
        """Adds rules of Services."""
        table, chain = OUT
        self._tables.restore(table, static_chains.filled(chain, rules))
        self._held[OUT] = [*self._held[OUT], *rules]


def _difference(held: Chains, wanted: Chains) -> dict[str, list[str]]:
    """The input for each table; chains are declared before rules lead to them."""
    lines: dict[str, list[str]] = {NAT: [], FILTER: []}
    changed = []
    for where, rules in wanted.items():
        there = held.get(where)
        if there == rules:
            continue
        table, chain = where
        if where == OUT and there is not None:
            # There may be as many as Services, and their order does not matter.
            before, after = dict.fromkeys(there), dict.fromkeys(rules)
            lines[table] += static_chains.filled(chain, (rule for rule in after if rule not in before))
            lines[table] += [f"-D {chain} {rule}\n" for rule in before if rule not in after]
            continue
        changed.append(where)
        lines[table].append(static_chains.declared(chain))
    for where in changed:
        lines[where[0]] += static_chains.filled(where[1], wanted[where])
    return lines
