"""Brings the iptables rules there: what is to be sent to the programs.

Chains of ours hold exactly what the frame says; an unchanged one is not touched, so its counters go on. Into the kernel's
chains we put single rules, on top. Each table is changed wholly or not at all.
"""

from kubeproxy.backends.ipvs.frame import HOOKS, OUT, Chain, Chains
from kubeproxy.backends.programs import FILTER, NAT, Tables
from kubeproxy.backends.shared import saved


class Rules:
    """The rules of one family."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._held: Chains = {}

    def adopt(self, wanted: Chains) -> None:
        """Compares with what is there, whoever put it there, and mends it.

        Raises:
            SyncError: the tables could not be read or written.
            RefusedError: the rules were refused.
        """
        hooks = {where for where, _ in HOOKS}
        held: dict[Chain, list[str]] = {}
        for table, chain, rule in saved.parse(self._tables.save()):
            where = table, chain
            if rule is None:
                if where in wanted or where in hooks:
                    held[where] = []
            elif where in held:
                held[where].append(rule)
        self._held = {where: rules for where, rules in held.items() if where in wanted}
        lines = _difference(self._held, wanted)
        for where, rule in reversed(HOOKS):
            if rule not in held.get(where, ()):
                lines[where[0]].append(f"-I {where[1]} {rule}\n")
        self._send(lines, wanted)

    def change(self, wanted: Chains) -> None:
        """Goes on from what was sent before.

        Raises:
            SyncError: the tables could not be written.
            RefusedError: the rules were refused.
        """
        self._send(_difference(self._held, wanted), wanted)

    def _send(self, lines: dict[str, list[str]], wanted: Chains) -> None:
        self._held = {}
        for table, text in lines.items():
            if text:
                self._tables.restore(table, text)
        self._held = wanted


def _difference(held: Chains, wanted: Chains) -> dict[str, list[str]]:
    """The input for each table; chains are declared before rules lead to them."""
    lines: dict[str, list[str]] = {NAT: [], FILTER: []}
    anew = []
    for where, rules in wanted.items():
        there = held.get(where)
        if there == rules:
            continue
        table, chain = where
        if where == OUT and there is not None:
            # As long as there are Services, and in no order.
            before, after = dict.fromkeys(there), dict.fromkeys(rules)
            lines[table] += [f"-A {chain} {rule}\n" for rule in after if rule not in before]
            lines[table] += [f"-D {chain} {rule}\n" for rule in before if rule not in after]
            continue
        anew.append(where)
        lines[table].append(f":{chain} - [0:0]\n")
    for where in anew:
        lines[where[0]] += [f"-A {where[1]} {rule}\n" for rule in wanted[where]]
    return lines
