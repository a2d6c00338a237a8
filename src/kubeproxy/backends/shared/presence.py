"""Which endpoints of Services have not been removed, for a relay that ends connections to those that have."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from kubeproxy.backends import relayed
from kubeproxy.backends.base import Change
from kubeproxy.model.plan import Key, ServicePlan
from kubeproxy.relay.control import Relay
from kubeproxy.relay.presence import Targets


def synced(relay: Relay, plans: Mapping[Key, ServicePlan], refused: Collection[Key]) -> None:
    """These are the plans of all Services; those that were refused keep what they had."""
    groups: dict[str, Targets] = {}
    kept: list[str] = []
    for key, plan in plans.items():
        if key in refused:
            kept += [relayed.group(port) for port in plan.ports]
        else:
            groups.update(_groups(plan))
    relay.all_present(groups, kept)


def changed(relay: Relay, changes: Sequence[Change]) -> None:
    """Some Services have changed."""
    groups: dict[str, Targets | None] = {}
    for change in changes:
        groups.update((group, None) for group, _ in _groups(change.before))
        groups.update(_groups(change.after))
    relay.present(groups)


def _groups(plan: ServicePlan | None) -> Iterator[tuple[str, Targets]]:
    for port in plan.ports if plan is not None else ():
        if port.present is not None:
            yield relayed.group(port), relayed.targets(port.present)
