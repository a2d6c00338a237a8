"""Changes of the cluster while it is watched: the plans of `TopWatch` follow, and they are shown."""

from collections.abc import Collection, Iterable
from datetime import UTC, datetime

from kubeproxy.api.addresses import join
from kubeproxy.insight.snapshot import LiveCluster
from kubeproxy.insight.top.tally import Endpoint
from kubeproxy.insight.top.values import LastChange
from kubeproxy.insight.top.watch import TopWatch

_MOST = 3


def note_first(watch: TopWatch, cluster: LiveCluster) -> None:
    """Notes what the objects say of their last change before anything was seen to change."""
    for key, change in cluster.changes.items():
        if change.triggered:
            watch.changed(key, LastChange(change.triggered, "endpoints", change.object))
    cluster.changes.clear()


def follow(watch: TopWatch, cluster: LiveCluster) -> None:
    """Takes over what changed since the last call."""
    snapshot = cluster.snapshot
    for key, change in cluster.changes.items():
        gone: set[Endpoint] = set()
        come: set[Endpoint] = set()
        for node in snapshot.nodes:
            before = watch.endpoints(node.family, key)
            watch.replan(node.family, key, snapshot.state.plan(key, node))
            after = watch.endpoints(node.family, key)
            gone |= before - after
            come |= after - before
        what = " ".join([*_some("+", come), *_some("-", gone)]) or "its plan, not its endpoints"
        watch.changed(key, LastChange(change.triggered or _now(), what, change.object))
    cluster.changes.clear()


def _some(sign: str, endpoints: Collection[Endpoint]) -> Iterable[str]:
    shown = [f"{sign}{join(*each)}" for each in sorted(endpoints)[:_MOST]]
    return shown if len(endpoints) <= _MOST else [*shown, f"{sign}{len(endpoints) - _MOST} more"]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
