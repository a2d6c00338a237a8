"""Whatever happened before, the kernel ends as after a fresh start on the final state."""

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kubeproxy.api.addresses import FAMILIES, IPV4
from kubeproxy.backends.ipvs import sets
from kubeproxy.backends.ipvs.mode import MODE
from kubeproxy.model.node import IPVSSettings, NodeConfig
from kubeproxy.netlink.ipvs import Load
from tests import strategies
from tests.unit.backends.ipvs.rig import Rig

_LOCAL = {IPV4: ["127.0.0.1", "192.0.2.1", "10.244.1.1"], "IPv6": ["::1", "fe80::1", "2001:db8:2::1"]}
_histories = st.one_of(strategies.histories(), strategies.contests())
nodes = (
    st.sampled_from(FAMILIES)
    .flatmap(strategies.nodes)
    .map(
        lambda node: replace(node, ipvs=IPVSSettings(), balancing=MODE.balancing).with_addresses(
            _LOCAL[node.family]
        )
    )
)


@contextlib.contextmanager
def small_world() -> Iterator[None]:
    """A few elements fill a set, and threads run at once."""

    async def at_once(work: Callable[..., Any], *args: Any, **more: Any) -> Any:
        return work(*args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sets, "FIRST_LIMIT", 3)
        patch.setattr(asyncio, "to_thread", at_once)
        yield


@given(_histories, nodes, st.sampled_from(["", "hostile", "restarting", "busy"]))
def test_the_end_is_that_of_a_fresh_start(
    history: list[list[strategies.Event]], node: NodeConfig, world: str
) -> None:
    chance = random.Random(len(history))
    with small_world():
        rig = Rig(node)
        assert not rig.full()
        for batch in history:
            for event in batch:
                rig.hear(event)
            assert not rig.sync()
            assert world == "hostile" or rig.intact()
            if world == "hostile":
                _harm(rig, chance)
            elif world == "restarting":
                rig = rig.restarted()
                assert not rig.full()
            elif world == "busy":
                _connect(rig, chance)
        if world == "hostile":
            assert not rig.full()
        _disconnect(rig)
        assert rig.intact()
        assert rig.everything() == rig.fresh().everything()
        again = rig.restarted()
        assert not again.full()
        assert again.done() == []


def _harm(rig: Rig, chance: random.Random) -> None:
    """Takes something away."""
    kernel = rig.kernel
    kind = chance.choice(["server", "element", "address"])
    if kind == "server" and kernel.virtuals:
        del kernel.virtuals[chance.choice(sorted(kernel.virtuals))]
    elif kind == "element":
        filled = sorted(name for name, (_, elements) in kernel.sets.items() if elements)
        if filled:
            elements = kernel.sets[chance.choice(filled)][1]
            elements.remove(min(elements))
    elif kernel.bound:
        kernel.bound.pop()


def _connect(rig: Rig, chance: random.Random) -> None:
    """Some real servers have connections."""
    for _, reals in rig.kernel.virtuals.values():
        for real, load in reals.items():
            reals[real] = Load(load.weight, chance.randrange(2), 0)


def _disconnect(rig: Rig) -> None:
    """All connections end, and somebody looks."""
    for _, reals in rig.kernel.virtuals.values():
        for real, load in reals.items():
            reals[real] = Load(load.weight)
    backend: Any = rig.backend
    backend.delete_drained()
