"""The part of the kernel that concerns some Services in ipvs mode."""

from collections.abc import Iterable

from kubeproxy.backends.base import KernelComparison
from kubeproxy.backends.ipvs import names
from kubeproxy.backends.ipvs.compile import ServerContext, compile_service
from kubeproxy.backends.ipvs.frame import HOOKS, Chains, frame
from kubeproxy.backends.ipvs.held import HeldServers
from kubeproxy.backends.ipvs.held import read as read_all
from kubeproxy.backends.ipvs.kernel import IPVSKernel
from kubeproxy.backends.ipvs.steps import ServerSteps
from kubeproxy.backends.programs import Tables
from kubeproxy.backends.shared import held_rules, saved
from kubeproxy.backends.shared.compared import compared
from kubeproxy.backends.shared.held_rules import HeldRules
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import ServicePlan
from kubeproxy.netlink.ipset import Element

_PORT_SETS = {
    name: protocol for by in (names.NODE_PORTS, names.NODE_PORTS_LOCAL) for protocol, name in by.items()
}
"""The protocol of each set of node ports."""


def read(kernel: IPVSKernel, tables: Tables, node: NodeConfig, plans: Iterable[ServicePlan]) -> HeldServers:
    """Reads what concerns some Services: virtual servers, elements and addresses, and the rules they need.

    Raises:
        OSError: the kernel refused.
        SyncError: the tables could not be read.
    """
    dialect = ServerContext(node)
    plans = list(plans)
    compiled = [compile_service(plan, dialect) for plan in plans]
    entries = {entry for c in compiled for entry in c.entries}
    node_ports = {(port.protocol, port.node_port) for plan in plans for port in plan.ports}
    settings, headers = kernel.settings(), kernel.headers()
    virtuals = sorted({v for c in compiled for v in c.virtuals} & settings.keys())
    places = {(e.address, e.protocol, e.port) for _, e in entries}

    def concerns(short: str, e: Element) -> bool:
        """Whether an element is for a front of theirs, whichever set it is in."""
        if e.address:
            return (e.address, e.protocol, e.port) in places
        return (short, e) in entries or (_PORT_SETS.get(short), e.port) in node_ports

    sets = []
    for short in names.SETS:
        name = names.set_name(short, tables.family)
        if name in headers:
            found = (e for e in kernel.elements(name) if concerns(short, e))
            sets.append((name, headers[name], tuple(sorted(found))))
    addresses = {e.address for name, e in entries if name == names.ADDRESSES}
    used = frozenset(name for name, _ in entries)
    wanted = frame(node, used, [drop for c in compiled for drop in c.drops])
    return HeldServers(
        tuple((v, settings[v], tuple(sorted(kernel.reals(v).items()))) for v in virtuals),
        tuple(sorted(sets)),
        tuple(sorted(addresses & kernel.addresses())),
        _only(held_rules.read(tables), wanted),
    )


def _only(held: HeldRules, wanted: Chains) -> HeldRules:
    """The rules that these Services need, without those that others need."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    hooks = {where for where, _ in HOOKS}
    for table, chain, rule in saved.parse(held.saved):
        if (table, chain) not in wanted and (table, chain) not in hooks:
            continue
        chains, rules = found.setdefault(table, ([], []))
        if rule is None:
            chains.append(held_rules.declaration(chain))
        elif rule in wanted.get((table, chain), ()) or ((table, chain), rule) in HOOKS:
            rules.append(f"-A {chain} {rule}")
    lines = [
        line for table, (chains, rules) in found.items() for line in (f"*{table}", *chains, *rules, "COMMIT")
    ]
    return HeldRules(held.family, held.variant, tuple(lines), part=True)


def compare(held: HeldServers, kernel: IPVSKernel, tables: Tables, steps: ServerSteps) -> KernelComparison:
    """What was held, compared with what a `load` over a copy of it left there."""
    found = compared(held.lines, lambda: read_all(kernel, tables).lines(), steps)
    if not held.rules.part:
        return found
    # A rule that looks into a set is there while any Service has an element in it.
    foreign = (line for line in found.foreign if "--match-set" not in line)
    return KernelComparison(found.lacking, tuple(foreign))
