"""The annotations of Services that are ours."""

from collections.abc import Iterator
from typing import Final

from kubeproxy.insight.doctor.check import WARNING, Symptom, check, of_module
from kubeproxy.insight.doctor.facts import Facts


@check(
    "KP075",
    "annotations of Services can be used",
    group="Services",
    severity=WARNING,
    looks_at="annotations kube-proxy/...",
)
def ignored(facts: Facts) -> Iterator[Symptom]:
    """A value that cannot be used is ignored: the Service is programmed as if it had no such annotation."""
    services = facts.snapshot().state.services
    for key in sorted(services) if facts.only is None else services.keys() & {facts.only}:
        for annotation in services[key].without_effect:
            yield Symptom(
                f"{'/'.join(key)}: annotation {annotation.name} is ignored, or a part of it",
                annotation.reason,
                "correct it, docs/balancing.md has the values",
                service="/".join(key),
            )


CHECKS: Final = of_module(globals())
