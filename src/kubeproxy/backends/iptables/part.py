"""The part of the tables that concerns some Services."""

from collections.abc import Iterable, Iterator, Sequence

from kubeproxy.backends.iptables.compile import RuleContext, Shared, compile_service, front_of
from kubeproxy.backends.iptables.frame import Frame
from kubeproxy.backends.programs import NAT, Tables
from kubeproxy.backends.shared import held_rules, saved
from kubeproxy.backends.shared.held_rules import HeldRules
from kubeproxy.model.plan import ServicePlan, fronts_of


def read(tables: Tables, wanted: Frame, plans: Sequence[ServicePlan], dialect: RuleContext) -> HeldRules:
    """Reads what concerns some Services: their own chains, their rules in shared chains, and the frame.

    Of shared chains, rules for the fronts of these Services are kept, and of common ones those of the frame.

    Raises:
        SyncError: a table could not be read.
    """
    compiled = [compile_service(plan, dialect) for plan in plans]
    needed = {front for each in compiled for front in each.fronts}
    fronts = {front for plan in plans for front in fronts_of(plan)}
    ours = {
        where: {rule for w, rule in wanted.hooks + wanted.extras if w == where} for where, _ in wanted.hooks
    }
    ours |= {where: {rule for w, rule in wanted.extras if w == where} for where in wanted.common}

    def kept(where: Shared, rule: str) -> bool:
        if where in ours:
            return rule in ours[where]
        if where not in wanted.shared or rule in wanted.tail.get(where, ()):
            return True
        return (where, rule) in needed or front_of(rule, dialect) in fronts

    owned: list[Shared] = [(NAT, chain) for c in compiled for chain in c.chains]
    places = [*wanted.chains, *wanted.shared, *ours, *owned]
    held: dict[str, tuple[list[str], list[str]]] = {}
    numbers = []
    for table, chain, rules in _chains(tables, dict.fromkeys(places)):
        declared, found = held.setdefault(table, ([], []))
        declared.append(held_rules.declaration(chain))
        for number, rule in enumerate(rules, 1):
            if kept((table, chain), rule):
                found.append(f"-A {chain} {rule}")
                numbers.append((f"-t {table} -A {chain} {rule}", number))
    lines = [
        line for table, (chains, rules) in held.items() for line in (f"*{table}", *chains, *rules, "COMMIT")
    ]
    return HeldRules(tables.family, tables.variant, tuple(lines), part=True, numbers=tuple(numbers))


def _chains(tables: Tables, places: Iterable[Shared]) -> Iterator[tuple[str, str, list[str]]]:
    """Table, chain and rules of the chains that are there. Legacy tables can only be read whole: once."""
    if tables.variant == "nf_tables":
        for table, chain in places:
            rules = tables.chain(table, chain)
            if rules is not None:
                yield table, chain, rules
        return
    wanted: dict[Shared, list[str]] = {place: [] for place in places}
    there = set()
    for table, chain, rule in saved.parse(tables.save()):
        if (table, chain) in wanted:
            if rule is None:
                there.add((table, chain))
            else:
                wanted[table, chain].append(rule)
    for (table, chain), rules in wanted.items():
        if (table, chain) in there:
            yield table, chain, rules


def has_comments(held: HeldRules) -> bool:
    """Whether rules of endpoints are commented, if any are held: depends on the number of all endpoints."""
    rules = [line for line in held.saved if line.startswith("-A KUBE-SEP-")]
    return not rules or "--comment" in rules[0]
