"""Maglev's table of the kernel is that of a fresh start after any history, and no connection is lost on the way."""

import random
from collections.abc import Iterator
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.api.addresses import pack
from kubeproxy.backends.ipvs import fake
from kubeproxy.backends.ipvs.fake import FakeIPVSKernel
from kubeproxy.backends.ipvs.order import is_ordered
from kubeproxy.netlink import ipvs
from kubeproxy.netlink.ipvs import Load, Real, Virtual
from tests.fakes.cluster import endpoints, service
from tests.unit.backends.ipvs.rig import HERE, Rig, servers
from tests.unit.backends.ipvs.test_properties import small_world

WEB = Virtual(ipvs.TCP, pack("10.96.0.1"), 80)
POOL = [f"10.244.1.{i}" for i in range(11, 18)]
SIZE = 251
Table = list[Real | None]


def table(kernel: FakeIPVSKernel, virtual: Virtual = WEB) -> Table:
    """The table as ip_vs_mh_populate fills it, with another hash."""
    listed = [(real, kernel.last_weights[virtual, real]) for real in kernel.reals(virtual)]
    found: Table = [None] * SIZE
    places = {real: crc32(repr(real).encode()) % SIZE for real, _ in listed}
    skips = {real: crc32(repr(real).encode(), 7) % (SIZE - 1) + 1 for real, _ in listed}
    while any(turns for _, turns in listed):
        for real, turns in listed:
            for _ in range(turns):
                while found[places[real]] is not None:
                    places[real] = (places[real] + skips[real]) % SIZE
                found[places[real]] = real
                if None not in found:
                    return found
    return found


def web(addresses: list[str], **annotations: str) -> Iterator[types.Service | types.EndpointSlice]:
    made = service("web", "10.96.0.1")
    given = types.Annotations(**annotations)
    yield replace(made, metadata=replace(made.metadata, annotations=given))
    yield endpoints("web", *addresses)


some = st.lists(st.sampled_from(POOL), max_size=5, unique=True)
annotated = st.sampled_from(
    [
        {"balancing": "maglev"},
        {"balancing": "maglev"},
        {"balancing": "maglev", "weights": f"address:{POOL[2]}=3"},
        {"balancing": "maglev", "maglev_hash": "source-and-port"},
        {"balancing": "least-connections"},
        {},
    ]
)


@given(st.lists(st.tuples(some, annotated), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_tables_do_not_depend_on_history(
    history: list[tuple[list[str], dict[str, str]]], chance: random.Random
) -> None:
    with small_world():
        rig = Rig(HERE)
        assert not rig.full()
        for addresses, annotations in history:
            for _, reals in rig.kernel.virtuals.values():
                for real, load in reals.items():
                    reals[real] = Load(load.weight, max(load.active, chance.randrange(3)))
            before = rig.kernel.reals(WEB)
            rig.tell(*web(addresses, **annotations))
            how = chance.randrange(3)
            if how == 2:
                rig = rig.restarted()
            assert not (rig.full() if how else rig.sync())
            assert rig.intact()
            after = rig.kernel.reals(WEB)
            for real, load in before.items():
                assert not load.active or after[real].active == load.active
            if is_ordered(rig.kernel.settings()[WEB]):  # without endpoints it has no such table
                assert table(rig.kernel) == table(rig.fresh().kernel)
            again = rig.restarted()
            assert not again.full()
            assert again.done() == []


def test_a_real_server_that_belongs_first_is_added_before_the_others_again() -> None:
    rig = Rig(HERE)
    rig.tell(*web(POOL[1:4], balancing="maglev"))
    assert not rig.full()
    first = table(rig.kernel)
    rig.done()
    rig.tell(*web(POOL[:4], balancing="maglev"))
    rig.partial()
    reals = [Real(pack(address), 8080) for address in POOL[:4]]
    assert rig.done() == [
        *(("delete", (WEB, real)) for real in reals[1:]),
        *(("add", (WEB, real)) for real in reals),
    ]
    rig.tell(*web(POOL[1:4], balancing="maglev"))
    rig.partial()
    assert rig.done() == [("delete", (WEB, reals[0]))]
    assert table(rig.kernel) == first


def test_another_order_made_by_others_is_noticed_and_corrected() -> None:
    rig = Rig(HERE)
    rig.tell(*web(POOL[:3], balancing="maglev"))
    assert not rig.full()
    right = table(rig.kernel)
    reals = rig.kernel.virtuals[WEB][1]
    first = min(reals)
    reals[first] = reals.pop(first)
    assert not rig.intact()
    assert table(rig.kernel) != right
    assert not rig.full()
    assert rig.intact()
    assert table(rig.kernel) == right


def test_schedulers_and_weights_are_changed_in_place() -> None:
    rig = Rig(HERE)
    rig.tell(*web(POOL[:2]))
    assert not rig.full()
    for annotations, settings, weights in (
        ({"weights": f"address:{POOL[0]}=3"}, "wrr", [3, 1]),
        ({"balancing": "least-connections"}, "wlc", [1, 1]),
        ({"balancing": "least-connections", "weights": f"address:{POOL[0]}=2"}, "wlc", [2, 1]),
        ({"balancing": "maglev"}, "mh -b mh-fallback", [1, 1]),
        ({"balancing": "maglev", "maglev_hash": "source-and-port"}, "mh -b mh-fallback,mh-port", [1, 1]),
        ({"weights": f"address:{POOL[0]}=0"}, "rr", [1]),
        ({}, "rr", [1, 1]),
    ):
        rig.done()
        rig.tell(*web(POOL[:2], **annotations))
        rig.partial()
        assert ("add", WEB) not in rig.done()
        assert ("delete", WEB) not in rig.done()
        listed = list(servers(rig.kernel))
        assert listed[0] == f"-A -t 10.96.0.1:80 -s {settings}"
        assert sorted(int(line.split()[-1]) for line in listed[1:]) == sorted(weights)


def test_a_start_changes_the_scheduler_that_is_there() -> None:
    rig = Rig(HERE)
    rig.tell(*web(POOL[:2]))
    assert not rig.full()
    rig.tell(*web(POOL[:2], balancing="least-connections"))
    other = rig.restarted()
    assert not other.full()
    assert other.done() == [("edit", WEB)]


def test_a_scheduler_that_the_kernel_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Service keeps what it had, and others are programmed."""
    monkeypatch.setattr(fake, "SCHEDULERS", ("rr",))
    rig = Rig(HERE)
    rig.tell(*web(POOL[:2]), service("other", "10.96.0.2"))
    assert not rig.full()
    before = list(servers(rig.kernel))
    rig.tell(*web(POOL[:2], balancing="maglev"))
    (message,) = rig.full().values()
    assert "the kernel has no scheduler mh (module ip_vs_mh)" in message
    assert list(servers(rig.kernel)) == before
