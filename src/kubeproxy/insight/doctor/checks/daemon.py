"""Whether kube-proxy runs, is up to date, and has everything in the kernel, mostly by its own report."""

from collections.abc import Iterator
from typing import Final

from kubeproxy.insight.doctor.check import ERROR, WARNING, Symptom, check, of_module
from kubeproxy.insight.doctor.facts import Facts, UnreadError

STALE_SECONDS: Final = 300
"""API servers send a bookmark each minute on each watch."""

WAIT_SECONDS: Final = 60
"""A change that waited for so long is late, whatever minSyncPeriod is usual."""

_GROUP: Final = "daemon"
_RETRIED: Final = "see the log of kube-proxy for the error that the kernel returned"


@check(
    "KP001",
    "kube-proxy runs",
    group=_GROUP,
    severity=ERROR,
    looks_at="who holds the lock of this network namespace",
)
def runs(facts: Facts) -> Iterator[Symptom]:
    """One process holds the lock."""
    if facts.daemon().holder is None:
        yield Symptom(
            "no kube-proxy of this program runs here",
            "no process holds the lock @kube-proxy/instance of this network namespace",
            "start it (kubectl -n kube-system get pods -o wide, or systemctl status kube-proxy); rules that it left are not updated",
        )


@check(
    "KP002",
    "the lock is held by kube-proxy",
    group=_GROUP,
    severity=WARNING,
    looks_at="the user of the process that holds the lock",
)
def lock(facts: Facts) -> Iterator[Symptom]:
    """Any process can take the name of the lock; only root is believed."""
    holder = facts.daemon().holder
    options = facts.options.value
    if holder is not None and holder.user != 0 and not (options and options.userspace_listen):
        yield Symptom(
            "a process that is not root holds the lock of kube-proxy",
            f"{holder} of user {holder.user} listens on @kube-proxy/instance",
            "end that process: a second kube-proxy on this node would not be detected",
        )


@check("KP003", "kube-proxy is ready", group=_GROUP, severity=ERROR, looks_at="/readyz")
def ready(facts: Facts) -> Iterator[Symptom]:
    """All rules are in the kernel and up to date."""
    for reason in facts.daemon().reasons():
        yield Symptom(
            "kube-proxy is not ready",
            reason,
            "see health.md for what this reason means, and the log of kube-proxy",
        )


@check(
    "KP004",
    "kube-proxy answers",
    group=_GROUP,
    severity=ERROR,
    looks_at="whether /readyz and /metrics answer",
)
def answers(facts: Facts) -> Iterator[Symptom]:
    """A process that runs and does not answer is stopped or overloaded."""
    found = facts.daemon()
    if found.holder is None:
        raise UnreadError("no kube-proxy runs in this network namespace")
    for page, part in (("/readyz", found.reasons), ("/metrics", found.samples)):
        if part.value is None and part.reason.startswith("no answer"):
            yield Symptom(
                f"kube-proxy does not answer on {page}",
                part.reason,
                f"see whether {found.holder} is stopped (state T) or overloaded, and whether a firewall drops packets on lo",
            )


@check(
    "KP005", "watches are fresh", group=_GROUP, severity=ERROR, looks_at="metric kubeproxy_watch_age_seconds"
)
def fresh(facts: Facts) -> Iterator[Symptom]:
    """The API server sends something on each watch each minute."""
    for sample in facts.daemon().samples():
        if sample.name == "kubeproxy_watch_age_seconds" and sample.value > STALE_SECONDS:
            yield Symptom(
                f"changes of {sample.labels.get('kind', '?')} objects do not arrive",
                f"the API server has sent nothing for {sample.value:.0f} s",
                "check the connection to the API server from this node; Services keep their last state until then",
            )


@check(
    "KP006", "watches are open", group=_GROUP, severity=WARNING, looks_at="metric kubeproxy_watch_connected"
)
def connected(facts: Facts) -> Iterator[Symptom]:
    """A watch that is not open at this moment may be about to be opened again."""
    for sample in facts.daemon().samples():
        if sample.name == "kubeproxy_watch_connected" and not sample.value:
            yield Symptom(
                f"no watch of {sample.labels.get('kind', '?')} objects is open",
                "kubeproxy_watch_connected is 0",
                "check the API server, and the rights of kube-proxy's account (api-access.md)",
            )


@check(
    "KP007",
    "changes do not wait",
    group=_GROUP,
    severity=ERROR,
    looks_at="metrics of the last sync and of pending changes",
)
def waiting(facts: Facts) -> Iterator[Symptom]:
    """Changes that were received are in the kernel within seconds."""
    daemon = facts.daemon()
    pending = daemon.total("kubeproxy_sync_proxy_rules_service_changes_pending")
    queued = [
        s.value
        for s in daemon.samples()
        if s.name == "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds"
    ]
    synced = [
        s.value for s in daemon.samples() if s.name == "kubeproxy_sync_proxy_rules_last_timestamp_seconds"
    ]
    if not pending or not queued or not synced:
        return
    late = daemon.now - max(queued)
    if late > WAIT_SECONDS and min(synced) < max(queued):
        yield Symptom(
            f"{pending:.0f} Services wait for a sync",
            f"a sync was requested {late:.0f} s ago and has not succeeded",
            _RETRIED,
        )


@check(
    "KP008", "syncs succeed", group=_GROUP, severity=WARNING, looks_at="metric kubeproxy_sync_failures_total"
)
def failures(facts: Facts) -> Iterator[Symptom]:
    """A few failed syncs are retried and have no effect."""
    daemon = facts.daemon()
    failed = daemon.total("kubeproxy_sync_failures_total")
    done = daemon.total("kubeproxy_sync_proxy_rules_duration_seconds_count")
    if failed >= 3 and failed * 10 > done + failed:
        yield Symptom("syncs fail often", f"{failed:.0f} of {done + failed:.0f} syncs failed", _RETRIED)


@check(
    "KP009",
    "no other program changes our rules",
    group=_GROUP,
    severity=WARNING,
    looks_at="metric kubeproxy_drift_repairs_total",
)
def drift(facts: Facts) -> Iterator[Symptom]:
    """Another program removed or changed rules of Services, and they were restored."""
    repairs = facts.daemon().total("kubeproxy_drift_repairs_total")
    if repairs:
        yield Symptom(
            "another program changed the rules of Services",
            f"they were repaired {repairs:.0f} times since kube-proxy started",
            'find the program in the log of kube-proxy ("another program changed"), usually a firewall that flushes all rules',
        )


@check(
    "KP010",
    "the kernel accepts all Services",
    group=_GROUP,
    severity=ERROR,
    looks_at="metric kubeproxy_quarantined_services",
)
def refused(facts: Facts) -> Iterator[Symptom]:
    """A refused Service keeps its previous rules, or has none."""
    count = facts.daemon().total("kubeproxy_quarantined_services")
    if count:
        yield Symptom(
            f"the kernel refuses the rules of {count:.0f} Services",
            f"kubeproxy_quarantined_services is {count:.0f}",
            "the log of kube-proxy names them, with the kernel's error; all other Services are in place",
        )


@check(
    "KP011",
    "all fields of the configuration are known",
    group=_GROUP,
    severity=WARNING,
    looks_at="the configuration file",
)
def configuration(facts: Facts) -> Iterator[Symptom]:
    """A field with a typing error has no effect."""
    for message in facts.options().unknown_fields:
        yield Symptom(
            "a field of the configuration is ignored",
            message,
            "correct its name (configuration.md) and restart kube-proxy",
        )


@check(
    "KP012",
    "everything that plans need can be read",
    group=_GROUP,
    severity=WARNING,
    looks_at="what the source refused",
)
def readable(facts: Facts) -> Iterator[Symptom]:
    """Node and ServiceCIDRs; without them zones, local addresses and unused ClusterIPs are not known."""
    for trouble in facts.snapshot().troubles:
        yield Symptom(
            "part of the cluster cannot be read",
            trouble,
            "check the ClusterRole (api-access.md), and the name of the Node",
        )


@check(
    "KP013",
    "kube-proxy follows the cluster",
    group=_GROUP,
    severity=ERROR,
    looks_at="metric kubeproxy_services and the Services read now",
)
def follows(facts: Facts) -> Iterator[Symptom]:
    """The kernel has as many Services as the cluster."""
    daemon = facts.daemon()
    samples = daemon.samples()
    facts.snapshot()
    refused = daemon.total("kubeproxy_quarantined_services")  # KP010
    if daemon.total("kubeproxy_sync_proxy_rules_service_changes_pending"):
        return
    for family, plans in facts.plans.items():
        expected = len(plans)
        for sample in samples:
            if sample.name != "kubeproxy_services" or sample.labels.get("ip_family") != family:
                continue
            if abs(sample.value - expected) > refused:
                yield Symptom(
                    f"{family}: kube-proxy has not all Services, or ones that are gone",
                    f"it has {sample.value:.0f} in the kernel, the cluster has {expected}, and no change waits",
                    "run this again; if it stays so, restart kube-proxy and report it with the log",
                )


CHECKS: Final = of_module(globals())
