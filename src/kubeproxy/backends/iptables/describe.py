"""The rules of a Service in the syntax of `iptables-save`."""

from kubeproxy.backends.iptables.compile import RuleContext, compile_service
from kubeproxy.backends.programs import NAT
from kubeproxy.model.plan import ServicePlan


def service(plan: ServicePlan, dialect: RuleContext) -> list[str]:
    """The lines of `iptables-save` for a Service, each table after its name."""
    compiled = compile_service(plan, dialect)
    tables: dict[str, list[str]] = {NAT: [f":{chain} -" for chain in compiled.chains]}
    for (table, chain), rule in compiled.fronts:
        tables.setdefault(table, []).append(f"-A {chain} {rule}")
    tables[NAT] += [line for text in compiled.chains.values() for line in text.splitlines()]
    return [line for table, lines in tables.items() if lines for line in (f"*{table}", *lines)]
