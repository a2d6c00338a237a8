"""Near endpoints that are full: which are counted, what the plan has then, and what is put back in the end."""

import asyncio
import contextlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.hub import Hub
from kubeproxy.machine.fake import FakeMachine
from kubeproxy.model.distribution import BalancingSupport, Distribution
from kubeproxy.model.plan import PortPlan
from kubeproxy.model.select import Endpoint
from kubeproxy.model.spill import is_full, used_now
from kubeproxy.spill import SpillWatch
from kubeproxy.watched import WatchedPort
from tests.fakes.cluster import NODE, endpoints, service
from tests.unit.test_flows import Loop
from tests.unit.test_silence import NextLoop

KEY = ("default", "web")
PORT = WatchedPort(KEY, "default/web", 80)
NEAR, FAR = ["10.244.1.11", "10.244.1.12"], ["10.244.2.21", "10.244.2.22"]
HERE = replace(NODE, balancing=BalancingSupport(weights=True, spill_over=True, steered=True))


class Rig:
    """A hub with a Service, a watch, and the plan that follows from both."""

    def __init__(self, bound: int = 4, weights: str | None = None) -> None:
        self.hub, self.after, self.loop = Hub("here"), NextLoop(), Loop(HERE)
        self.hub.loops = [self.after]  # type: ignore[list-item]
        self.watch = SpillWatch(FakeMachine(), self.loop, self.hub)  # type: ignore[arg-type]
        web = service("web", "10.96.0.1")
        given = types.Annotations(prefer="node", spill_over=str(bound), weights=weights)
        self.hub.state.set(replace(web, metadata=replace(web.metadata, annotations=given)))
        self.hub.state.set(endpoints("web", *NEAR, *FAR, local=NEAR))
        self.sync()

    def sync(self) -> None:
        plan = self.hub.state.plan(KEY, HERE)
        assert plan is not None
        self.loop.partial(plan)

    def port(self) -> PortPlan:
        plan = self.hub.state.plan(KEY, HERE)
        assert plan is not None
        return plan.ports[0]

    def used(self) -> list[str]:
        return [each.address for each in self.port().cluster]

    def count(self, *numbers: int) -> None:
        """So many connections to each near endpoint are counted."""
        found = {(PORT, (address, 8080)): number for address, number in zip(NEAR, numbers, strict=True)}
        self.watch._judge(Counter(found))
        self.sync()


def test_near_ones_until_they_are_full_then_the_others() -> None:
    rig = Rig()
    assert rig.used() == NEAR
    rig.count(3, 3)
    assert rig.after.touched == []
    rig.count(4, 3)
    assert rig.used() == NEAR[1:]
    rig.count(4, 5)
    assert rig.used() == FAR
    assert [figure.value for figure in rig.watch.figures()] == [2]
    assert [(each.address, each.connections) for each in rig.watch.full()] == [(NEAR[0], 4), (NEAR[1], 5)]
    rig.count(3, 4)
    assert rig.used() == NEAR[:1]
    rig.count(0, 0)
    assert rig.used() == NEAR
    assert rig.hub.state.full == {}
    assert len(rig.after.touched) == 4


def test_all_near_ones_that_are_left_are_followed() -> None:
    """Of an endpoint that is no more nothing is kept."""
    rig = Rig()
    rig.count(9, 9)
    rig.hub.state.set(endpoints("web", NEAR[0], *FAR, local=NEAR))
    rig.sync()
    assert rig.hub.state.full == {KEY: {("default/web", (NEAR[0], 8080))}}
    rig.hub.state.set(service("web", "10.96.0.1"))
    rig.sync()
    assert rig.hub.state.full == {}
    assert rig.used() == [NEAR[0], *FAR]


async def test_a_watch_that_ends_puts_back_what_it_left_out() -> None:
    rig = Rig()
    rig.count(9, 9)
    task = asyncio.create_task(rig.watch.run())
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert rig.used() == NEAR


def test_weights_hold_in_either_group() -> None:
    rig = Rig(weights=f"address:{NEAR[0]}=4 address:{NEAR[1]}=2 address:{FAR[0]}=3")
    found = rig.port().cluster_distribution
    assert found is not None
    assert found.weights == (2, 1)
    rig.count(9, 9)
    found = rig.port().cluster_distribution
    assert found is not None
    assert found.weights == (3, 1)


@pytest.mark.parametrize(
    ("connections", "before", "full"),
    [(3, False, False), (4, False, True), (4, True, True), (3, True, False), (0, True, False)],
)
def test_an_endpoint_is_full_until_it_has_a_quarter_less(connections: int, before: bool, full: bool) -> None:
    assert is_full(connections, 4, before=before) == full


@given(st.integers(0, 10), st.integers(1, 10))
def test_one_that_is_full_without_connections_is_none(connections: int, bound: int) -> None:
    assert not is_full(0, bound, before=True)
    assert is_full(bound + connections, bound, before=False)
    assert is_full(bound + connections, bound, before=True)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=9), st.data())
def test_some_endpoints_are_always_used(weights: list[int], data: st.DataObject) -> None:
    pods = tuple([Endpoint(f"10.1.0.{i}", 80) for i in range(len(weights))])
    near = tuple(data.draw(st.lists(st.sampled_from(pods), min_size=1, max_size=len(pods) - 1, unique=True)))
    full = {(each.address, each.port) for each in data.draw(st.sets(st.sampled_from(pods)))}
    by = Distribution(weights=tuple(weights), preferred=near, bound=3)
    used, after = used_now(pods, by, full)
    free = [each for each in pods if each in near and (each.address, each.port) not in full]
    assert list(used) == (free or [each for each in pods if each not in near])
    given = dict(zip(pods, weights, strict=True))
    left = after.weights if after is not None and after.weights else (1,) * len(used)
    assert all(given[used[0]] * left[i] == given[each] * left[0] for i, each in enumerate(used))
