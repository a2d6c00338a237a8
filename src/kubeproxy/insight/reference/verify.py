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
    """

    family: str
    rules: str
    comparison: Comparison


def against_reference(snapshot: Snapshot, machine: Machine, rules: str = "") -> list[Against]:
    """Compares the rules in the kernel with the plans, for each family of the node.

    Args:
        snapshot: the cluster.
        machine: this host.
        rules: which rules to compare, as `read.KernelRules.what` names them; "" if there is one kind only.

    Raises:
        AgainstError: there are no rules, or of several kinds, or the mode has no verdicts.
        OSError: the kernel refused.
        SyncError: the iptables programs could not list their rules.
    """
    manners = snapshot.mode.manners
    if not snapshot.own:
        raise AgainstError(f"rules can be compared on node {snapshot.name} only, this is another host")
    if manners is None:
        raise AgainstError(f"plans of {snapshot.mode.name} mode cannot be compared with rules")
    results = []
    for node in snapshot.nodes:
        addresses = snapshot.local_addresses[node.family]
        found = read.find(machine, node.family, addresses)
        chosen = [each for each in found if rules in {"", each.what}]
        if len(chosen) > 1 or (found and not chosen):
            kinds = ", ".join(each.what for each in found)
            raise AgainstError(f"{node.family}: the kernel has rules of {kinds}: name one with --rules")
        if not chosen:
            continue
        plans = snapshot.plans(node.family)
        book = Book(plans.values(), node, addresses, manners=manners, service_cidrs=node.service_cidrs)
        (one,) = chosen
        compared = compare(
            one.router,
            list(plans.values()),
            book,
            node,
            addresses,
            named=one.router.named(),
            bound=one.bound,
        )
        results.append(Against(node.family, one.what, compared))
    if not results:
        raise AgainstError("the kernel has no rules of Kubernetes' kube-proxy")
    return results
