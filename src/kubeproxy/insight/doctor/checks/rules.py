"""Whether the rules in the kernel are those that the plans ask for."""

from collections.abc import Iterator, Sequence
from typing import Final

from kubeproxy.insight.doctor.check import ERROR, WARNING, Symptom, check, of_module
from kubeproxy.insight.doctor.facts import Facts

_GROUP: Final = "rules"
_MOST: Final = 3
_LOOKS_AT: Final = "the rules in the kernel and the plans of Services"
_REMEDY: Final = (
    "kube-proxy restores its rules by itself; if this stays so, it is stopped or outdated (KP001, KP003, KP013):"
    " restart it"
)


def _first(lines: Sequence[str]) -> str:
    more = f" and {len(lines) - _MOST} more" if len(lines) > _MOST else ""
    return "; ".join(lines[:_MOST]) + more


@check("KP090", "the kernel has all rules", group=_GROUP, severity=ERROR, looks_at=_LOOKS_AT, costly="rules")
def lacking(facts: Facts) -> Iterator[Symptom]:
    """A rule that is missing: a Service or an endpoint does not work."""
    for family, compared in facts.rules().items():
        if compared.lacking:
            yield Symptom(
                f"{family}: the kernel lacks {len(compared.lacking)} rules or elements",
                _first(compared.lacking),
                _REMEDY,
            )


@check(
    "KP091",
    "the kernel has no other rules",
    group=_GROUP,
    severity=WARNING,
    looks_at=_LOOKS_AT,
    costly="rules",
)
def foreign(facts: Facts) -> Iterator[Symptom]:
    """A rule of a Service or an endpoint that is gone, or one that another program added to our chains."""
    for family, compared in facts.rules().items():
        if compared.foreign:
            yield Symptom(
                f"{family}: the kernel has {len(compared.foreign)} rules or elements that no Service asks for",
                _first(compared.foreign),
                _REMEDY,
            )


CHECKS: Final = of_module(globals())
