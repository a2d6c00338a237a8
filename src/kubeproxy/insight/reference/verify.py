"""Whether kube-proxy's rules in this kernel do the same as the plans, for `verify --against reference`."""

from msgspec import Struct

from kubeproxy.answers.snapshot import Snapshot
from kubeproxy.insight.reference import read
from kubeproxy.insight.reference.compare import Comparison, compare
from kubeproxy.machine.base import Machine
from kubeproxy.model.verdict import Book


class AgainstError(Exception):
    """Rules and plans cannot be compared; the message has the reason."""


class Against(Struct, frozen=True, rename="camel"):
    """Rules of one family, compared with the plans.

    Attributes:
        family: the family.
        rules: which rules were compared, e.g. "iptables (nf_tables)".
        comparison: how they compare.
        beside: the kinds of rules that the kernel has beside these. A packet meets all of them: each may
            refuse it, and it is translated by the one that was there first.
    """

    family: str
    rules: str
    comparison: Comparison
    beside: tuple[str, ...] = ()


def against_reference(snapshot: Snapshot, machine: Machine, rules: str = "") -> list[Against]:
    """Compares the rules in the kernel with the plans, for each family of the node.

    Args:
        snapshot: the cluster.
        machine: this host.
        rules: which rules to compare, as `read.KernelRules.what` names them; "" for each kind there is.

    Raises:
        AgainstError: there are no rules, or none of the kind, or the mode has no verdicts.
        OSError: the kernel refused.
        SyncError: the iptables programs could not list their rules.
    """
    manners = snapshot.mode.manners
    if not snapshot.own:
        raise AgainstError(f"rules can be compared on node {snapshot.name} only, this is another host")
    if manners is None:
        raise AgainstError(f"plans of {snapshot.mode.name} mode cannot be compared with rules")
    results = []
    there: dict[str, None] = {}
    for node in snapshot.nodes:
        addresses = snapshot.local_addresses[node.family]
        found = read.find(machine, node.family, addresses)
        kinds = [each.what for each in found]
        chosen = [each for each in found if rules in {"", each.what}]
        there.update(dict.fromkeys(kinds))
        if not chosen:
            continue
        plans = snapshot.plans(node.family)
        book = Book(plans.values(), node, addresses, manners=manners, service_cidrs=node.service_cidrs)
        for one in chosen:
            compared = compare(
                one.router,
                list(plans.values()),
                book,
                node,
                addresses,
                named=one.router.named(),
                bound=one.bound,
            )
            beside = tuple(kind for kind in kinds if kind != one.what)
            results.append(Against(node.family, one.what, compared, beside))
    if not results and there:
        raise AgainstError(f"--rules {rules}: the kernel has no such rules, but those of {', '.join(there)}")
    if not results:
        raise AgainstError("the kernel has no rules of Kubernetes' kube-proxy")
    return results
