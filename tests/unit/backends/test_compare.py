"""What a driver finds of some Services in the kernel is what they need; whatever is changed there is found."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings

from kubeproxy.backends.base import Comparable, KernelComparison
from kubeproxy.backends.shared.compared import flat
from kubeproxy.model.plan import Key
from tests import strategies
from tests.fakes.cluster import endpoints, service
from tests.unit.backends.iptables.rig import rich
from tests.unit.backends.test_rehearsal import HISTORIES, RIGS, everything, world

__all__ = ["world"]


@pytest.fixture(params=RIGS)
def rig(request: pytest.FixtureRequest) -> Any:
    return RIGS[request.param]()


def look(rig: Any, *keys: Key) -> KernelComparison:
    """The comparison of some Services."""
    assert isinstance(rig.backend, Comparable)
    plans = {key: rig.plans()[key] for key in keys}
    held = asyncio.run(rig.backend.read_part(rig.node, plans))
    return rig.backend.compare(held, rig.node, plans)


@settings(max_examples=15)
@given(history=HISTORIES)
@pytest.mark.parametrize("make", RIGS.values(), ids=RIGS)
def test_after_a_sync_each_service_has_what_it_needs(
    make: Callable[[], Any], history: list[list[strategies.Event]]
) -> None:
    rig = make()
    assert not rig.full()
    for batch in history:
        for event in batch:
            rig.hear(event)
        rig.sync()
    before = everything(rig)
    for key in rig.plans():
        found = look(rig, key)
        assert not found, (key, found)
    assert everything(rig) == before, "nothing is changed"


def test_each_line_of_a_service_that_is_missing_is_named(rig: Any) -> None:
    rig.tell(*rich())
    asked = look(rig, *rig.plans())
    described = {line for plan in rig.plans().values() for line in flat(rig.backend.describe(rig.node, plan))}
    assert described <= set(asked.lacking), described - set(asked.lacking)
    assert not asked.foreign


def test_what_another_state_of_a_service_left_is_named(rig: Any) -> None:
    rig.tell(
        service("web", "10.96.0.1"),
        service("other", "10.96.0.2"),
        endpoints("web", "10.244.1.1", "10.244.1.2"),
    )
    rig.full()
    rig.state.set(endpoints("web", "10.244.1.1", "10.244.1.3"))
    found = look(rig, ("default", "web"))
    assert any("10.244.1.3" in line for line in found.lacking)
    assert any("10.244.1.2" in line for line in found.foreign)
    assert not look(rig, ("default", "other"))
