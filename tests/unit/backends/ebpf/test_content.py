"""The maps after any sequence of changes: those of a fresh start, and no program finds a wrong endpoint in between."""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kubeproxy.api.addresses import IPV4, IPV6, Family
from kubeproxy.backends.base import Change
from kubeproxy.backends.ebpf import capacity, edits, held, layout
from kubeproxy.backends.ebpf.blocks import FullError, rounded
from kubeproxy.backends.ebpf.compile import FrontCompiler
from kubeproxy.backends.ebpf.content import FrontContent
from kubeproxy.backends.ebpf.held import HeldFronts
from kubeproxy.backends.ebpf.layout import LAYOUTS, OWN, PASS, Capacity
from kubeproxy.backends.ebpf.tables import MemoryMaps
from kubeproxy.model.distribution import Distribution
from kubeproxy.model.node import ConnectSettings, LocalTraffic, NodeConfig
from kubeproxy.model.plan import Key, PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint
from tests.fakes.faults import KilledError

PODS: Mapping[Family, str] = {IPV4: "10.244.1.{}", IPV6: "fd00:10:244:1::{}"}
OUTSIDE: Mapping[Family, str] = {IPV4: "203.0.113.{}", IPV6: "2001:db8:203::{}"}
VIRTUAL: Mapping[Family, str] = {IPV4: "10.96.0.{}", IPV6: "fd00:10:96::{}"}

Plans = dict[Key, ServicePlan]


def node(family: Family = IPV4, *, everywhere: bool = True, **more: Any) -> NodeConfig:
    pods = "10.244.0.0/16" if family == IPV4 else "fd00:10:244::/48"
    return NodeConfig(
        family=family,
        local_traffic=LocalTraffic("range", pods),
        connects=ConnectSettings(everywhere=everywhere),
        node_port_addresses=("192.0.2.1",) if family == IPV4 else ("2001:db8::1",),
        **more,
    )


@st.composite
def plans(draw: st.DrawFn, family: Family) -> Plans:
    """Services that own different fronts, which may move from one to the other."""
    found: Plans = {}
    owners = draw(st.lists(st.integers(0, 3), min_size=6, max_size=6))
    for number in draw(st.sets(st.integers(0, 3), max_size=4)):
        addresses = draw(st.lists(st.integers(10, 20), max_size=9, unique=True))
        ends = tuple(Endpoint(PODS[family].format(i), 8080 + number, local=i < 14) for i in sorted(addresses))
        local = tuple(each for each in ends if each.local)
        heavy = draw(st.booleans())
        mine = tuple(OUTSIDE[family].format(i) for i, owner in enumerate(owners, 1) if owner == number)
        port = PortPlan(
            name=f"default/s{number}",
            protocol=draw(st.sampled_from(["TCP", "UDP", "SCTP"])),
            port=80,
            cluster_ip=VIRTUAL[family].format(number + 1),
            node_port=draw(st.sampled_from([0, 30080 + number])),
            external_ips=mine[:2],
            load_balancer_ips=mine[2:],
            source_ranges=draw(st.sampled_from([(), ("192.0.2.0/24",)])),
            affinity=draw(st.sampled_from([0, 0, 60, 10800])),
            internal_local=draw(st.booleans()),
            external_local=draw(st.booleans()),
            cluster=ends,
            local=local,
            any=bool(ends),
            at_connect=draw(st.sampled_from([True, True, True, False])),
            cluster_distribution=weighted(ends) if heavy else None,
            local_distribution=weighted(local) if heavy else None,
        )
        found["default", f"s{number}"] = ServicePlan("default", f"s{number}", (port,))
    return found


def weighted(ends: Sequence[Endpoint]) -> Distribution | None:
    """The last one gets three times as much as each of the others."""
    return Distribution(weights=(*(1 for _ in ends[1:]), 3)) if len(ends) > 1 else None


class Rig:
    """Maps in memory, and what programs them."""

    def __init__(
        self,
        family: Family = IPV4,
        capacity: Capacity | None = None,
        maps: MemoryMaps | None = None,
        **more: Any,
    ) -> None:
        self.now = self.changed = 0.0
        self.maps = maps or MemoryMaps(LAYOUTS[family], capacity or Capacity(64, 16, 512, 64, 8))
        self.compiler = FrontCompiler(node(family, **more))
        self.content = FrontContent(self.maps, self.compiler, lambda: self.now)
        self.plans: Plans = {}

    def load(self, wanted: Plans) -> None:
        self.content.load(self.compiler.all(wanted.values()), self.changed)
        self.plans = wanted

    def apply(self, wanted: Plans) -> None:
        self.now += 0.4
        self.changed = self.now
        keys = self.plans.keys() | wanted.keys()
        changes = [Change(key, self.plans.get(key), wanted.get(key)) for key in sorted(keys)]
        self.content.apply([each for each in changes if each.before != each.after])
        self.plans = wanted

    def held(self) -> HeldFronts:
        return held.read(self.maps)

    def wanted(self) -> HeldFronts:
        return held.wanted(self.plans.values(), self.compiler)

    def writes(self) -> int:
        return sum(table.writes for table in (self.maps.fronts, self.maps.hosts, self.maps.members))  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", [IPV4, IPV6])
@settings(max_examples=60)
@given(data=st.data())
def test_the_maps_are_those_of_a_fresh_start(family: Family, data: st.DataObject) -> None:
    rig = Rig(family)
    rig.load(data.draw(plans(family)))
    for _ in range(data.draw(st.integers(1, 4))):
        rig.apply(data.draw(plans(family)))
        assert rig.held() == rig.wanted()
    members = {key for key, _ in rig.maps.members.items()}
    fresh = Rig(family)
    fresh.load(rig.plans)
    assert fresh.held() == rig.held()
    assert len(members) == sum(1 for _ in fresh.maps.members.items())
    restarted = Rig(family, maps=rig.maps)
    before = rig.writes(), bytes(rig.maps.slots)
    restarted.load(rig.plans)
    assert (restarted.writes(), bytes(rig.maps.slots)) == before, "it was right already"
    assert restarted.held() == fresh.held()
    other = data.draw(plans(family))
    restarted.load(other)
    assert restarted.held() == restarted.wanted()


@given(first=plans(IPV4), second=plans(IPV4), at=st.integers(0, 30))
@settings(max_examples=60)
def test_what_was_interrupted_is_completed_by_the_next_process(first: Plans, second: Plans, at: int) -> None:
    rig = Rig()
    rig.load(first)
    left = at

    def stopping(real: Any) -> Any:
        def write(what: Any) -> None:
            nonlocal left
            for each in what:
                left -= 1
                if left < 0:
                    raise KilledError
                real([each])

        return write

    for table in (rig.maps.fronts, rig.maps.members):
        for name in ("put", "delete"):
            setattr(table, name, stopping(getattr(table, name)))
    with contextlib.suppress(KilledError):
        rig.apply(second)
    for table in (rig.maps.fronts, rig.maps.members):
        del table.put, table.delete
    after = Rig(maps=rig.maps)
    after.load(second)
    assert after.held() == after.wanted()


class Watched:
    """A map that calls a function after each store."""

    def __init__(self, words: memoryview, stored: Any) -> None:
        self.words, self.stored = words, stored

    def __getitem__(self, at: Any) -> Any:
        return self.words[at]

    def __setitem__(self, at: Any, value: Any) -> None:
        self.words[at] = value
        self.stored()

    def __len__(self) -> int:
        return len(self.words)


class Programs:
    """Programs that have read a word less than a second ago, and read its slots only now."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.seen: dict[tuple[int, int], tuple[float, str, set[Any]]] = {}
        self.right: dict[str, set[Any]] = {}
        for name in ("words", "slots", "cells"):
            setattr(rig.maps, name, Watched(getattr(rig.maps, name), self.look))

    def plan(self, *plans: Plans) -> None:
        """From now on these plans may be served."""
        self.right = {}
        for plan in (plan for each in plans for plan in each.values()):
            for port in plan.ports:
                ends = {(each.address, each.port) for each in (*port.cluster, *port.local)}
                self.right.setdefault(port.name, set()).update(ends)
        for _, name, right in self.seen.values():
            right.update(self.right.get(name, ()))

    def look(self) -> None:
        """After each store: what is found is an endpoint of the Service then or since then."""
        rig = self.rig
        for (name, _), number in rig.content.numbers.of.items():
            for index in (2 * number, 2 * number + 1):
                right = set(self.right.get(name, set()))
                self.seen[index, rig.maps.words[index]] = rig.now, name, right
        for (_, word), (at, name, right) in self.seen.items():
            base, count, _ = layout.parts(word)
            if rig.now - at < 1:
                found = {layout.read_slot(slot) for slot in rig.maps.endpoints(base, count)}
                assert found <= right, (name, found, right)


@pytest.mark.parametrize("family", [IPV4, IPV6])
@settings(max_examples=60)
@given(data=st.data())
def test_a_program_finds_the_old_endpoints_or_the_new_ones(family: Family, data: st.DataObject) -> None:
    """After each single store, also with a word that is not in use any more."""
    rig = Rig(family)
    rig.load(data.draw(plans(family)))
    rig.now += 1
    programs = Programs(rig)
    for _ in range(data.draw(st.integers(1, 5))):
        wanted = data.draw(st.one_of(plans(family), one_changed(rig.plans)))
        programs.plan(rig.plans, wanted)
        rig.apply(wanted)
        assert rig.held() == rig.wanted()


@st.composite
def one_changed(draw: st.DrawFn, given: Plans) -> Plans:
    """One endpoint of one Service comes, goes or is replaced."""
    if not given:
        return {}
    key = draw(st.sampled_from(sorted(given)))
    port = given[key].ports[0]
    ends = list(port.cluster)
    what = draw(st.sampled_from(["come", "go", "replace"]))
    if ends and what != "come":
        ends.pop(draw(st.integers(0, len(ends) - 1)))
    if what != "go":
        family = PODS[IPV6 if ":" in port.cluster_ip else IPV4]
        ends.append(Endpoint(family.format(draw(st.integers(30, 40))), 8080 + int(key[1][1:])))
    ends.sort(key=lambda each: each.address)
    port = replace(port, cluster=tuple(ends), any=bool(ends), cluster_distribution=None)
    return {**given, key: replace(given[key], ports=(port,))}


@given(count=st.integers(1, 30), other=st.integers(0, 40), at=st.integers(0, 29), kind=st.integers(0, 2))
def test_one_endpoint_is_changed_by_one_store(count: int, other: int, at: int, kind: int) -> None:
    """A slot is stored where it is, and the word if their number changes, as long as the block has room."""
    ends = [Endpoint(PODS[IPV4].format(2 * i + 100), 80) for i in range(count)]
    new = Endpoint(PODS[IPV4].format(2 * other + 101), 80)
    after = list(ends)
    if kind:
        after.pop(at % count)
    if kind != 1:
        after.append(new)
    after.sort(key=lambda each: each.address)
    rig = Rig()
    rig.load(_serving(ends))
    word, slots = rig.maps.words[2], rig.maps.cells.tolist()
    rig.apply(_serving(after))
    assert rig.held() == rig.wanted()
    if after and rounded(len(after)) == rounded(count):
        assert sum(a != b for a, b in zip(slots, rig.maps.cells.tolist(), strict=True)) <= 1
        assert layout.parts(rig.maps.words[2])[0] == layout.parts(word)[0]


def _serving(ends: Sequence[Endpoint]) -> Plans:
    """A Service with an external IP, whose words name one block."""
    ends = tuple(ends)
    port = PortPlan(
        "default/s", "TCP", 80, "10.96.0.1", external_ips=("203.0.113.1",), cluster=ends, any=True
    )
    return {("default", "s"): ServicePlan("default", "s", (port,))}


@given(st.lists(st.integers(0, 5), max_size=8), st.lists(st.integers(0, 5), max_size=8))
def test_what_changed_is_one_endpoint_or_more(before: list[int], after: list[int]) -> None:
    """Also where endpoints are repeated: what is found leads from one to the other."""
    old, new = (tuple(Endpoint(str(i), 80) for i in each) for each in (before, after))
    found = edits.changed(old, new)
    if found is not None:
        gone, come = found
        ends = list(old)
        if gone is not None:
            ends.pop(gone)
        if come is not None:
            ends.append(new[come])
        assert Counter(ends) == Counter(new)
    elif sorted(before) == before and sorted(after) == after:
        less, more = Counter(before) - Counter(after), Counter(after) - Counter(before)
        assert before == after or max(less.total(), more.total()) > 1


def test_a_block_is_not_used_again_for_a_second() -> None:
    """A program may still read it."""
    ends = tuple(Endpoint(PODS[IPV4].format(i), 80) for i in range(10, 14))
    rig = Rig(capacity=Capacity(64, 16, 12, 64, 8))

    def served(count: int) -> Plans:
        port = PortPlan("default/s", "TCP", 80, "10.96.0.1", cluster=ends[:count], any=True)
        return {("default", "s"): ServicePlan("default", "s", (port,))}

    rig.load(served(4))
    rig.apply(served(3))
    rig.apply(served(4))
    with pytest.raises(FullError):
        rig.apply(served(3) | {("default", "t"): replace(served(4)["default", "s"], name="t")})
    rig.now += 1.0
    rig.load(served(3))
    assert rig.held() == rig.wanted()


def test_what_the_maps_must_hold_is_enough() -> None:
    ends = tuple(Endpoint(PODS[IPV4].format(i), 80) for i in range(2, 100))
    ports = tuple(
        PortPlan(
            f"default/s:{i}",
            "TCP",
            i,
            "10.96.0.1",
            external_ips=("203.0.113.1",),
            affinity=10,
            cluster=ends[:i],
            any=True,
        )
        for i in range(1, 98)
    )
    given = {("default", "s"): ServicePlan("default", "s", ports)}
    rig = Rig()
    rig = Rig(capacity=capacity.needed(rig.compiler.all(given.values()).values(), 1))
    rig.load(given)
    assert rig.held() == held.wanted(given.values(), rig.compiler)


@pytest.mark.parametrize(
    ("more", "port", "flags"),
    [
        ({}, {}, 0),
        ({"everywhere": False}, {}, OWN),
        ({"masquerade_all": True}, {}, OWN),
        ({}, {"internal_local": True}, PASS),
        ({}, {"at_connect": False}, PASS),
        ({}, {"port": 2049}, PASS),
    ],
)
def test_what_is_left_to_rules(more: dict[str, Any], port: dict[str, Any], flags: int) -> None:
    """Dropped packets, annotated Services, ports of file systems, and Pods whose packets are treated otherwise."""
    plan = PortPlan("default/s", "TCP", 80, "10.96.0.1", cluster=(Endpoint("10.244.1.2", 80),), any=True)
    plan = replace(plan, **port)
    compiler = FrontCompiler(node(**more), frozenset({2049}))
    (front,) = held.fronts_of(ServicePlan("default", "s", (plan,)), compiler)
    assert front.flags == flags


def test_an_endpoint_has_as_many_slots_as_its_weight_says() -> None:
    ends = tuple(Endpoint(PODS[IPV4].format(i), 80) for i in (1, 2, 3))
    plans = _serving(ends)
    port = replace(plans["default", "s"].ports[0], cluster_distribution=Distribution(weights=(2, 1, 3)))
    plans["default", "s"] = replace(plans["default", "s"], ports=(port,))
    rig = Rig()
    rig.load(plans)
    base, count, _ = layout.parts(rig.maps.words[2])
    slots = Counter(layout.read_slot(slot)[0] for slot in rig.maps.endpoints(base, count))
    assert slots == {"10.244.1.1": 2, "10.244.1.2": 1, "10.244.1.3": 3}
    wanted = "10.244.1.1:80 x 2, 10.244.1.2:80, 10.244.1.3:80 x 3"
    assert f"front 10.96.0.1:80 TCP -> {wanted}" in rig.held().lines()


def test_keys_are_read_as_they_were_packed() -> None:
    for address, family in (("10.96.0.1", IPV4), ("fd00::1", IPV6), ("", IPV4), ("", IPV6)):
        key = layout.front(address, "UDP", 53, family)
        assert layout.read_front(key) == (address, "UDP", 53)
        assert layout.index_of(layout.entry(key, 77)) == 77
    for address, family, ports in (("10.244.1.2", IPV4, (80, 80)), ("fd00::2", IPV6, (80, 8080))):
        ends = [Endpoint(address, port) for port in ports]
        data = layout.block(ends, family)
        size = len(data) // len(ports)
        slots = [data[at : at + size] for at in range(0, len(data), size)]
        assert [layout.read_slot(slot) for slot in slots] == [(address, port) for port in ports]
