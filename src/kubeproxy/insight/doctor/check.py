"""A check and what it finds."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from kubeproxy.insight.doctor.facts import Facts

Severity = Literal["error", "warning", "note"]
"""Connections fail; connections may fail; something to know that is no fault by itself."""

ERROR: Final[Severity] = "error"
WARNING: Final[Severity] = "warning"
NOTE: Final[Severity] = "note"

Group = Literal["daemon", "other programs", "kernel", "connection tracking", "Services", "endpoints", "rules"]


Costly = Literal["", "connections", "rules"]
"""Connections that are tried from this node; the rules of all Services, compared."""


class Symptom(Struct, frozen=True):
    """One thing that a check found.

    Attributes:
        finding: what is wrong, in a few words.
        evidence: what was seen.
        remedy: what to do.
        service: the Service it concerns, "namespace/name"; "" if it concerns the node.
        severity: how bad it is, if not as the check says.
    """

    finding: str
    evidence: str
    remedy: str
    service: str = ""
    severity: Severity | None = None


Examine = Callable[["Facts"], Iterable[Symptom]]


class Check(Struct, frozen=True):
    """One check.

    Attributes:
        id: KP and three digits; it does not change.
        title: what is as it should be if nothing is found.
        group: the group it belongs to.
        severity: how bad it is if it finds something.
        looks_at: what it looks at.
        examine: finds. It raises UnreadError if something it looks at could not be read.
        costly: what it looks at that takes seconds to read in a large cluster; "" for nothing.
    """

    id: str
    title: str
    group: Group
    severity: Severity
    looks_at: str
    examine: Examine
    costly: Costly = ""


def check(
    number: str, title: str, *, group: Group, severity: Severity, looks_at: str, costly: Costly = ""
) -> Callable[[Examine], Check]:
    """Makes a function a check; see `Check`."""
    return lambda examine: Check(number, title, group, severity, looks_at, examine, costly)


def of_module(names: Mapping[str, Any]) -> tuple[Check, ...]:
    """The checks among the names of a module, in the order of their ids."""
    found = (value for value in names.values() if isinstance(value, Check))
    return tuple(sorted(found, key=lambda each: each.id))
