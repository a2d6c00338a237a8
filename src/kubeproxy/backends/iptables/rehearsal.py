"""What a `load` of iptables mode would do, and what it writes for a Service.

The difference to some plans is found by a `load` over tables in memory that hold what was read: so there is one way to compare,
the daemon's own.
"""

from kubeproxy.backends.base import HeldState
from kubeproxy.backends.iptables.rules import RuleContext, compile_service
from kubeproxy.backends.programs import NAT
from kubeproxy.backends.shared.held_rules import HeldRules
from kubeproxy.model.plan import ServicePlan


def as_rules(held: HeldState) -> HeldRules:
    """What was read of iptables mode; anything else is a mistake of the caller."""
    assert isinstance(held, HeldRules)
    return held


def describe(plan: ServicePlan, dialect: RuleContext) -> list[str]:
    """The lines of `iptables-save` for a Service, each table after its name."""
    compiled = compile_service(plan, dialect)
    tables: dict[str, list[str]] = {NAT: [f":{chain} -" for chain in compiled.chains]}
    for (table, chain), rule in compiled.fronts:
        tables.setdefault(table, []).append(f"-A {chain} {rule}")
    tables[NAT] += [line for text in compiled.chains.values() for line in text.splitlines()]
    return [line for table, lines in tables.items() if lines for line in (f"*{table}", *lines)]
