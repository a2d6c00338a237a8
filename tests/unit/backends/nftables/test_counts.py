"""Counters in elements and rules: they count what is sent, and are neither a difference nor drift, whatever they have counted."""

import asyncio
import itertools
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kubeproxy.api.addresses import FAMILIES
from kubeproxy.backends.base import EndpointCounts
from kubeproxy.backends.nftables.counts import MapCounter
from kubeproxy.backends.nftables.mode import MODE
from kubeproxy.model.node import NodeConfig
from kubeproxy.netlink import wire
from kubeproxy.netlink.nft import expressions as x
from kubeproxy.netlink.nft import objects
from kubeproxy.netlink.nft.fake import FakeNftKernel
from tests import strategies
from tests.fakes.cluster import annotated, endpoints, service
from tests.unit.backends.nftables.rig import Rig

some = settings(max_examples=40)
nodes = (
    st.sampled_from(FAMILIES)
    .flatmap(lambda family: strategies.nodes(family, MODE.balancing))
    .map(lambda node: replace(node, counters=True))
)
RULE = x.counter()


class Counting(FakeNftKernel):
    """A kernel whose packets pass: each time it is read, its counters have counted more."""

    def __init__(self) -> None:
        super().__init__()
        self.packets = itertools.count(1)

    def dump(self, kind: int, family: int, body: bytes = b"") -> Iterable[memoryview]:
        """See `NftKernel`."""
        return [self._counted(found) for found in super().dump(kind, family, body)]

    def ask(self, kind: int, family: int, body: bytes) -> list[memoryview]:
        """See `NftKernel`."""
        return [self._counted(found) for found in super().ask(kind, family, body)]

    def _counted(self, body: memoryview) -> memoryview:
        number = next(self.packets)
        values = wire.be64(1, 60 * number) + wire.be64(2, number)
        made = bytes(body)
        for counter in (objects.COUNTER, RULE):
            made = made.replace(counter, counter[: -len(values)] + values)
        return memoryview(made)


@some
@given(st.one_of(strategies.histories(), strategies.contests()), nodes, st.booleans())
def test_what_was_counted_is_no_difference(
    history: list[list[strategies.Event]], node: NodeConfig, restarting: bool
) -> None:
    rig = Rig(Counting(), node)
    assert not rig.full()
    for batch in history:
        for event in batch:
            rig.hear(event)
        if restarting:
            rig = rig.restarted()
            assert not rig.full()
        else:
            rig.partial()
        assert rig.table().keys() == rig.fresh().table().keys()
        rig.kernel.commits.clear()
        assert not rig.full()
        assert rig.sent() == [], "a full sync, as a repair does it"
        held = asyncio.run(rig.backend.read())  # type: ignore[attr-defined]
        plans = rig.plans()
        assert not rig.backend.difference(held, rig.node, plans)  # type: ignore[attr-defined]
        assert not rig.backend.compare(held, rig.node, plans)  # type: ignore[attr-defined]
        part = asyncio.run(rig.backend.read_part(rig.node, plans))  # type: ignore[attr-defined]
        assert not rig.backend.compare(part, rig.node, plans)  # type: ignore[attr-defined]
        again = asyncio.run(rig.backend.read())  # type: ignore[attr-defined]
        assert again.lines() == held.lines(), "printed the same, whatever was counted"


def counted(rig: Rig, counter: MapCounter) -> EndpointCounts:
    found = counter.read()
    assert found is not None
    return found


def test_each_endpoint_of_each_front_is_counted() -> None:
    rig = Rig(Counting(), replace(Rig().node, counters=True, balancing=MODE.balancing))
    rig.hear(service("api", "10.96.0.10", external_ips=("203.0.113.9",)))
    rig.hear(endpoints("api", "10.244.1.11", "10.244.1.12"))
    rig.hear(service("sticky", "10.96.0.11", session_affinity="ClientIP"))
    rig.hear(endpoints("sticky", "10.244.1.13", "10.244.1.14"))
    rig.hear(annotated(service("hashed", "10.96.0.12"), balancing="maglev"))
    rig.hear(endpoints("hashed", "10.244.1.15", "10.244.1.16"))
    rig.hear(annotated(service("weighted", "10.96.0.13"), weights="address:10.244.1.17=3"))
    rig.hear(endpoints("weighted", "10.244.1.17", "10.244.1.18"))
    assert not rig.full()
    counter = MapCounter(rig.kernel, rig.node)
    for key, plan in rig.plans().items():
        counter.set(key, plan)
    found = counted(rig, counter)
    assert {name: set(counts) for (name, _), counts in found.items()} == {
        "default/hashed": {("10.244.1.15", 8080), ("10.244.1.16", 8080)},
        "default/weighted": {("10.244.1.17", 8080), ("10.244.1.18", 8080)},
        "default/api": {("10.244.1.11", 8080), ("10.244.1.12", 8080)},
        "default/sticky": {("10.244.1.13", 8080), ("10.244.1.14", 8080)},
    }
    before = {at: count for counts in found.values() for at, count in counts.items()}
    counter.read([("default", "api")])
    after = {at: count for counts in found.values() for at, count in counts.items()}
    assert {at for at in before if after[at] > before[at]} == {("10.244.1.11", 8080), ("10.244.1.12", 8080)}


def test_without_counters_nothing_is_read() -> None:
    rig = Rig()
    rig.hear(service("api", "10.96.0.10"))
    rig.hear(endpoints("api", "10.244.1.11"))
    assert not rig.full()
    counter = MapCounter(rig.kernel, rig.node)
    for key, plan in rig.plans().items():
        counter.set(key, plan)
    assert counter.read() is None
