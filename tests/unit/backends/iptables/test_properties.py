"""Whatever happened before, the tables end as those of a fresh start on the final state."""

import asyncio
import contextlib
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.api.addresses import FAMILIES
from kubeproxy.backends.fake_tables import BUILTIN, FakeTables
from kubeproxy.backends.iptables import batches
from kubeproxy.backends.iptables import driver as drivers
from kubeproxy.backends.iptables.mode import MODE
from kubeproxy.backends.programs import Variant
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.state import State
from kubeproxy.reconcile.reconciler import Reconciler
from tests import strategies
from tests.fakes.clock import FakeClock
from tests.unit.backends.iptables.rig import VARIANTS, Rig, rules

_FRONT = re.compile(r'(?:-d (\S+) )?-p (\w+) .*--comment "([^": ]+).*--dport (\d+)')
_histories = st.one_of(strategies.histories(), strategies.contests())
nodes = st.sampled_from(FAMILIES).flatmap(lambda family: strategies.nodes(family, MODE.balancing))


@contextlib.contextmanager
def small_world() -> Iterator[None]:
    """A few endpoints are a large cluster, a few lines are too many for one input, and threads run at once."""

    async def at_once(work: Callable[..., Any], *args: Any, **more: Any) -> Any:
        return work(*args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drivers, "LARGE_CLUSTER_ENDPOINTS", 6)
        patch.setattr(batches, "NF_TABLES_LINES", 8)
        patch.setattr(batches, "NF_TABLES_FIRST_LINES", 20)
        patch.setattr(asyncio, "to_thread", at_once)
        yield


@given(_histories, nodes, st.sampled_from(VARIANTS), st.sampled_from(["", "hostile", "restarting"]))
def test_the_end_is_that_of_a_fresh_start(
    history: list[list[strategies.Event]], node: NodeConfig, variant: Variant, world: str
) -> None:
    tables = FakeTables(variant)
    fresh = Rig(FakeTables(variant), node)
    with small_world():
        asyncio.run(_live_through(history, fresh.state, node, tables, world))
        assert not fresh.full()
        assert rules(tables) == rules(fresh.tables)
        assert all(len(services) == 1 for services in _services_of_fronts(tables).values())
        again = fresh.restarted()
        assert not again.full()
        assert not any(lines for _, lines in again.sent())


def _services_of_fronts(tables: FakeTables) -> dict[tuple[str, ...], set[str]]:
    """Which Services have rules at each front: of two, the first rule would take all packets."""
    found: dict[tuple[str, ...], set[str]] = {}
    for chains in tables.tables.values():
        for chain in ("KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS"):
            for rule in chains.get(chain, ()):
                if front := _FRONT.search(rule):
                    address, protocol, service, port = front.groups(default="")
                    if "health check" not in rule:
                        found.setdefault((address, protocol, port), set()).add(service)
    return found


async def _live_through(
    history: list[list[strategies.Event]], state: State, node: NodeConfig, tables: FakeTables, world: str
) -> None:
    clock = FakeClock()
    chance = random.Random(len(history))
    loop, task = _started(state, tables, node, clock)
    for batch in history:
        for event in batch:
            loop.touch(strategies.tell(state, event))
        await clock.advance(1)
        assert loop.failures_in_row == 0
        if world == "hostile":
            _lose_a_rule(tables, chance)
        elif world == "restarting":
            task.cancel()
            loop, task = _started(state, tables, node, clock)
    if world == "hostile":
        loop.resync()
    await clock.advance(1)
    task.cancel()
    assert not loop.ledger.refused


def _started(
    state: State, tables: FakeTables, node: NodeConfig, clock: FakeClock
) -> tuple[Reconciler, asyncio.Task[None]]:
    backend = drivers.IPTablesDriver(tables, counters=True, drop_invalid=True)
    loop = Reconciler(state, backend, node, clock=clock)
    return loop, asyncio.create_task(loop.run())


def _lose_a_rule(tables: FakeTables, chance: random.Random) -> None:
    held = [
        (table, chain)
        for table, chains in tables.tables.items()
        for chain, found in chains.items()
        if found and chain not in BUILTIN[table]
    ]
    table, chain = chance.choice(held)
    del tables.tables[table][chain][0]


@given(
    st.lists(strategies.events(), max_size=20),
    st.lists(strategies.events(), max_size=10),
    nodes,
    st.sampled_from(VARIANTS),
)
def test_one_difference_leads_where_a_full_sync_does(
    before: list[strategies.Event], after: list[strategies.Event], node: NodeConfig, variant: Variant
) -> None:
    with small_world():
        partial, full = Rig(FakeTables(variant), node), Rig(FakeTables(variant), node)
        for rig in (partial, full):
            for event in before:
                rig.hear(event)
            assert not rig.full()
            for event in after:
                rig.hear(event)
        partial.sync()
        full.full()
    assert partial.rules() == full.rules()
