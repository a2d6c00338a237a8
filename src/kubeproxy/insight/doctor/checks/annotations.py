"""The annotations of Services that are ours."""

from collections.abc import Iterator
from typing import Final

from kubeproxy.insight.doctor.check import WARNING, Symptom, check, of_module
from kubeproxy.insight.doctor.facts import Facts
from kubeproxy.model.distribution import without_effect


@check(
    "KP075",
    "annotations of Services can be used",
    group="Services",
    severity=WARNING,
    looks_at="annotations kube-proxy/...",
)
def ignored(facts: Facts) -> Iterator[Symptom]:
    """What cannot be used, or not in this mode, is ignored: the Service is programmed as if it had it not."""
    taken = facts.snapshot()
    services = taken.state.services
    for key in sorted(services) if facts.only is None else services.keys() & {facts.only}:
        for annotation in without_effect(services[key], taken.mode.balancing):
            yield Symptom(
                f"{'/'.join(key)}: annotation {annotation.name} is ignored, or a part of it",
                annotation.reason,
                "correct it, docs/balancing.md has the values",
                service="/".join(key),
            )


CHECKS: Final = of_module(globals())
