"""The table of what is wanted and what is in the kernel, beside a kernel that is a dictionary."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.api.addresses import IPV4
from kubeproxy.backends.base import Change
from kubeproxy.model.plan import Key, PortPlan, ServicePlan
from kubeproxy.reconcile.ledger import Ledger, Recorded, Row

A, B, C = (("default", name) for name in "abc")


def plan(key: Key, number: int = 80) -> ServicePlan:
    address = f"10.96.0.{1 + 'abc'.index(key[1])}"
    return ServicePlan(*key, (PortPlan("/".join(key), "TCP", number, address),))


def test_what_a_row_says_from_the_first_plan_to_the_removal() -> None:
    ledger = Ledger(IPV4)
    old, new = plan(A, 80), plan(A, 81)
    assert ledger.row(A) == Row(None, None, "done")
    ledger.want(A, old)
    assert ledger.row(A) == Row(old, None, "pending")
    ledger.loaded({A: "no"})
    assert ledger.row(A) == Row(old, None, "refused", "no")
    ledger.loaded({})
    assert ledger.row(A) == Row(old, old, "done")
    ledger.want(A, new)
    assert ledger.row(A) == Row(new, old, "pending")
    ledger.loaded({A: "no more"})
    assert ledger.row(A) == Row(new, old, "refused", "no more"), "the kernel keeps what it had"
    ledger.want(A, None)
    ledger.loaded({})
    assert ledger.row(A) == Row(None, None, "done")
    assert not ledger.known()


def test_what_is_wanted_and_is_there_is_no_change_and_takes_no_second_plan() -> None:
    ledger = Ledger(IPV4)
    first = plan(A)
    ledger.want(A, first)
    ledger.loaded({})
    ledger.want(A, plan(A, 81))
    ledger.want(A, plan(A))
    assert ledger.due() == []
    assert ledger.plans[A] is first
    assert ledger.row(A).wanted is first


def test_a_refused_service_is_not_due_in_a_partial_sync() -> None:
    ledger = Ledger(IPV4)
    for key in (A, B):
        ledger.want(key, plan(key))
    ledger.loaded({A: "no"})
    ledger.want(A, plan(A, 81))
    ledger.want(B, plan(B, 81))
    assert ledger.due() == [Change(B, plan(B), plan(B, 81))]
    assert ledger.wanted() == {A: plan(A, 81), B: plan(B, 81)}


def test_a_subscriber_that_fails_keeps_no_other_from_being_called(caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(IPV4)
    heard: list[Recorded] = []
    ledger.subscribe(lambda done: 1 // 0)  # type: ignore[arg-type]
    ledger.subscribe(heard.append)
    ledger.want(A, plan(A))
    ledger.loaded({})
    assert heard == [Recorded(full=True, changes=[Change(A, None, plan(A))])]
    assert ledger.plans == {A: plan(A)}
    assert [(r.levelno, r.exc_info is not None) for r in caplog.records] == [(logging.ERROR, True)]


_plans = st.one_of(st.none(), st.integers(80, 82))
_steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from((A, B, C)), _plans),
        st.just("partial"),
        st.sets(st.sampled_from((A, B, C))),
    ),
    max_size=30,
)


@given(_steps)
def test_the_table_is_what_the_kernel_holds_and_its_changes_lead_there(
    steps: list[tuple[Key, int | None] | str | set[Key]],
) -> None:
    ledger = Ledger(IPV4)
    kernel: dict[Key, ServicePlan] = {}
    wanted: dict[Key, ServicePlan] = {}
    followed: dict[Key, ServicePlan] = {}

    def follow(done: Recorded) -> None:
        for change in done.changes:
            assert change.before == followed.pop(change.key, None)
            assert change.before != change.after
            if change.after is not None:
                followed[change.key] = change.after

    ledger.subscribe(follow)
    for step in steps:
        if isinstance(step, tuple):
            key, number = step
            wanted.pop(key, None)
            if number is not None:
                wanted[key] = plan(key, number)
            ledger.want(key, wanted.get(key))
        elif isinstance(step, set):
            given_plans = ledger.wanted()
            refused = step & given_plans.keys()
            held = {key: kernel[key] for key in refused if key in kernel}
            kernel = {key: given for key, given in given_plans.items() if key not in refused} | held
            ledger.loaded(dict.fromkeys(refused, "no"))
        else:
            changes = ledger.due()
            for change in changes:
                assert change.before == kernel.pop(change.key, None)
                if change.after is not None:
                    kernel[change.key] = change.after
            ledger.applied(changes)
        assert ledger.plans == kernel == followed
        assert ledger.wanted() == wanted
        for key in (A, B, C):
            row = ledger.row(key)
            assert (row.wanted, row.in_kernel) == (wanted.get(key), kernel.get(key))
            assert (row.status == "refused") == (key in ledger.refused) == bool(row.words)
            assert row.status != "done" or row.wanted == row.in_kernel
