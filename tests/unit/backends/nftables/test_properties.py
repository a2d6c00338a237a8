"""Whatever happened before, the table ends as that of a fresh start on the final state."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from kubeproxy.api.addresses import FAMILIES
from kubeproxy.backends.nftables.chains import SharedChain
from kubeproxy.backends.nftables.compile import Compiler, ServiceElements
from kubeproxy.backends.nftables.mode import MODE
from kubeproxy.backends.nftables.uses import UseCounts
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key
from tests import strategies
from tests.unit.backends.nftables.rig import FAMILY, Rig

some = settings(max_examples=40)
_histories = st.one_of(strategies.histories(), strategies.contests())
nodes = st.sampled_from(FAMILIES).flatmap(lambda family: strategies.nodes(family, MODE.balancing))


@some
@given(_histories, nodes, st.booleans())
def test_the_end_is_that_of_a_fresh_start(
    history: list[list[strategies.Event]], node: NodeConfig, restarting: bool
) -> None:
    rig = Rig(node=node)
    assert not rig.full()
    for batch in history:
        for event in batch:
            rig.hear(event)
        if restarting:
            rig = rig.restarted()
            assert not rig.full()
        else:
            rig.partial()
        assert rig.table() == rig.fresh().table()
    again = rig.restarted()
    assert not again.full()
    assert again.sent() == []


@some
@given(strategies.histories(3), nodes, nodes)
def test_another_node_s_table_is_mended(
    history: list[list[strategies.Event]], before: NodeConfig, after: NodeConfig
) -> None:
    """What was set up with other settings, and with other Services, is brought to the present ones."""
    after = _of_family(after, before)
    rig = Rig(node=before)
    for batch in history[:-1]:
        for event in batch:
            rig.hear(event)
    assert not rig.full()
    for event in history[-1]:
        rig.hear(event)
    again = rig.restarted(after)
    assert not again.full()
    assert again.table() == again.fresh().table()


def _of_family(node: NodeConfig, like: NodeConfig) -> NodeConfig:
    return node if node.family == like.family else like


@some
@given(strategies.histories(3), st.sampled_from(strategies.KEYS), nodes)
def test_a_refused_service_harms_nobody(
    history: list[list[strategies.Event]], bad: Key, node: NodeConfig
) -> None:
    """The kernel takes no element that names one of them; what all others need is there. Later it is taken, too."""
    rig = Rig(node=node)
    for event in (event for batch in history for event in batch):
        rig.hear(event)
    rig.kernel.refuse = lambda message: re.search(
        rb"%s/%s[:\0]" % tuple(k.encode() for k in bad), message.body
    )
    failures = rig.full()
    assert failures.keys() <= {bad}
    fresh = rig.fresh()
    held = rig.table()
    compiled = Compiler(node).compile(rig.plans().get(bad))
    own_elements = set(UseCounts().difference(ServiceElements.nothing(), compiled)[1])
    own = {
        *compiled.own_chains,
        *compiled.own_sets,
        *compiled.own_maps,
        *(name for c in compiled.chains for name in _objects(c, node)),
    }
    for (kind, name), parts in fresh.table().items():
        if kind == "elements":
            missing = set(parts) - set(held[kind, name]) if (kind, name) in held else set(parts)
            assert {(name, element) for element in missing} <= own_elements
        elif name not in own:
            assert held[kind, name] == parts
    rig.kernel.refuse = lambda _: None
    assert not rig.full()
    assert rig.table() == fresh.table()


def _objects(chain: SharedChain, node: NodeConfig) -> set[str]:
    """The names of a shared chain and all it leads to, and of the maps they pick from."""
    slots = chain.slots(FAMILY[node.family])
    own = {chain.name} if slots is None else {chain.name, slots.name}
    return own.union(*(_objects(next_, node) for next_ in chain.leads_to))
