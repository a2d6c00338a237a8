"""Runs the checks on the facts."""

import traceback
from collections.abc import Collection, Sequence
from typing import Final, Literal

from msgspec import Struct

from kubeproxy.insight.doctor.check import ERROR, NOTE, WARNING, Check, Group, Severity, Symptom
from kubeproxy.insight.doctor.checks import (
    annotations,
    daemon,
    endpoints,
    kernel,
    programs,
    rules,
    services,
    tracking,
)
from kubeproxy.insight.doctor.facts import Facts, UnreadError

CHECKS: Final[tuple[Check, ...]] = (
    *daemon.CHECKS,
    *programs.CHECKS,
    *kernel.CHECKS,
    *tracking.CHECKS,
    *services.CHECKS,
    *annotations.CHECKS,
    *endpoints.CHECKS,
    *rules.CHECKS,
)

PAGE: Final = "docs/doctor.md"

_ORDER: Final = {ERROR: 0, WARNING: 1, NOTE: 2}


class Examined(Struct, frozen=True):
    """What became of one check.

    Attributes:
        id: its id.
        title: its title.
        group: its group.
        status: the worst severity of what it found; ok if that is nothing; skipped if it could not look.
        reason: why it was skipped.
        found: what it found.
        page: the page that explains it.
    """

    id: str
    title: str
    group: Group
    status: Literal["ok", "skipped"] | Severity
    page: str
    reason: str = ""
    found: tuple[Symptom, ...] = ()


def examine(facts: Facts, only: Collection[str] = ()) -> list[Examined]:
    """Runs checks, in the order of their ids.

    Args:
        facts: what they look at.
        only: the ids of the checks to run; empty for all.
    """
    return [_examine(each, facts) for each in CHECKS if not only or each.id in only]


def _examine(check: Check, facts: Facts) -> Examined:
    page = f"{PAGE}#{check.id.lower()}"
    try:
        found = tuple(_with_severity(each, check) for each in check.examine(facts))
    except UnreadError as e:
        return Examined(check.id, check.title, check.group, "skipped", page, f"could not be looked at: {e}")
    except Exception as e:  # one wrong check must not hide the others
        at = traceback.extract_tb(e.__traceback__)[-1]
        reason = f"the check itself failed: {type(e).__name__}: {e} ({at.name}, line {at.lineno})"
        return Examined(check.id, check.title, check.group, "skipped", page, reason)
    worst = min((each.severity or check.severity for each in found), key=_ORDER.__getitem__, default=None)
    status: Severity | Literal["ok"] = "ok" if worst is None else worst
    return Examined(check.id, check.title, check.group, status, page, found=found)


def _with_severity(symptom: Symptom, check: Check) -> Symptom:
    return Symptom(
        symptom.finding, symptom.evidence, symptom.remedy, symptom.service, symptom.severity or check.severity
    )


def failed(results: Sequence[Examined]) -> bool:
    """Whether something is wrong: notes are not."""
    return any(each.status in {ERROR, WARNING} for each in results)
