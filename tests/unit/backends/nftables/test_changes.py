"""What a change of Services sends: what changed and no more, in an order the kernel takes."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from kubeproxy.api import types
from kubeproxy.backends.base import SyncError
from kubeproxy.backends.nftables import layout, packing
from kubeproxy.netlink import wire
from kubeproxy.netlink.nft import messages as m
from kubeproxy.netlink.nft import objects
from kubeproxy.netlink.nft.fake import FakeNftKernel
from kubeproxy.netlink.nft.messages import NftMessage, TableName
from tests.fakes.cluster import endpoints, service
from tests.unit.backends.nftables.rig import Content, Rig

VERBS = {
    m.NEWTABLE: "add table", m.DELTABLE: "delete table", m.NEWCHAIN: "add chain", m.DELCHAIN: "delete chain",
    m.NEWRULE: "add rule", m.DELRULE: "flush", m.NEWSET: "add set", m.DELSET: "delete set",
    m.NEWSETELEM: "add", m.DELSETELEM: "delete",
}  # fmt: skip
LOCAL = {"external_traffic_policy": "Local"}
NODE_PORT = [types.ServicePort(80, node_port=30080)]


def said(messages: list[NftMessage]) -> Iterator[tuple[str, str, int]]:
    """What each message does, to what, and with how many elements."""
    for message in messages:
        a = wire.attributes(message.body)
        name = wire.string(a[3 if message.kind in {m.NEWCHAIN, m.DELCHAIN} else 2]) if len(a) > 1 else ""
        elements = message.kind in {m.NEWSETELEM, m.DELSETELEM}
        yield VERBS[message.kind], name, len(objects.split(bytes(a[3]))) if elements else 1


def sent(rig: Rig) -> dict[tuple[str, str], int]:
    """The same of all that was sent since the last call."""
    found: Counter[tuple[str, str]] = Counter()
    for verb, name, count in said(rig.sent()):
        found[verb, name] += count
    return dict(found)


def started(*objects_: types.Service | types.EndpointSlice) -> Rig:
    rig = Rig()
    rig.tell(*objects_)
    assert not rig.full()
    rig.sent()
    return rig


def pods(count: int, *, first: int = 1) -> list[str]:
    return [f"10.244.1.{100 + i}" for i in range(first, first + count)]


def test_an_endpoint_replaced_in_its_place_is_one_element() -> None:
    rig = started(service("web", "10.96.0.1"), endpoints("web", *pods(9)))
    rig.tell(endpoints("web", *pods(8), "10.244.1.200"))
    rig.partial()
    assert sent(rig) == {("delete", "endpoints-9"): 1, ("add", "endpoints-9"): 1}
    assert rig.table() == rig.fresh().table()


def test_a_service_scaled_moves_to_the_next_map() -> None:
    rig = started(service("web", "10.96.0.1"), endpoints("web", *pods(2)))
    rig.tell(endpoints("web", *pods(3)))
    rig.partial()
    assert sent(rig) == {("delete", "endpoints-2"): 2, ("add", "endpoints-3"): 3}
    rig.tell(endpoints("web"))
    rig.partial()
    assert sent(rig) == {("delete", "endpoints-3"): 3, ("add", layout.REJECT_SERVICES): 1}


def test_beyond_what_is_asked_directly_a_chain_comes_and_goes() -> None:
    rig = started(service("web", "10.96.0.1"), endpoints("web", *pods(16)))
    rig.tell(endpoints("web", *pods(17)))
    rig.partial()
    assert sent(rig) == {
        ("add set", "endpoints-17"): 1,
        ("add chain", "pick-17"): 1, ("flush", "pick-17"): 1, ("add rule", "pick-17"): 1,
        ("delete", "endpoints-16"): 16, ("add", "endpoints-17"): 17, ("add", layout.SERVICE_IPS): 1,
    }  # fmt: skip
    rig.tell(service("other", "10.96.0.2"), endpoints("other", *pods(17)))
    rig.partial()
    assert ("add chain", "pick-17") not in sent(rig)
    rig.gone("Service", "web")
    rig.partial()
    assert ("delete chain", "pick-17") not in sent(rig)
    rig.gone("Service", "other")
    rig.partial()
    assert {("flush", "pick-17"), ("delete chain", "pick-17"), ("delete set", "endpoints-17")} <= sent(
        rig
    ).keys()
    assert rig.table() == started().table()


def test_a_service_that_goes_leaves_nothing_behind() -> None:
    everything = (
        service("web", "10.96.0.1", type="LoadBalancer", ports=NODE_PORT, balancer=["203.0.113.1"],
                load_balancer_source_ranges=("10.0.0.0/8",), external_ips=("203.0.113.9",), **LOCAL),
        service("kept", "10.96.0.2", type="NodePort", ports=[types.ServicePort(80, node_port=30081)], session_affinity="ClientIP"),
    )  # fmt: skip
    rig = started()
    empty = rig.table()
    rig.tell(*everything, *(endpoints(name, *pods(20), local=pods(3)) for name in ("web", "kept")))
    rig.partial()
    for name in ("web", "kept"):
        rig.gone("Service", name)
        rig.partial()
    assert rig.table() == empty


def test_services_with_affinity_touch_only_their_own() -> None:
    rig = started(
        *(service(name, f"10.96.0.{i}", session_affinity="ClientIP") for i, name in enumerate(("a", "b"), 1)),
        *(endpoints(name, *pods(3)) for name in ("a", "b")),
    )
    rig.tell(endpoints("a", *pods(2), "10.244.1.200"))
    rig.partial()
    changed = sent(rig)
    assert all("default/a/" in name for _, name in changed)
    made = [name for verb, name in changed if verb == "add set"]
    gone = [name for verb, name in changed if verb == "delete set"]
    assert len(made) == len(gone) == 1, "the other endpoints' clients are remembered"


def test_another_timeout_keeps_the_sets_and_their_clients() -> None:
    def affine(seconds: int) -> types.Service:
        config = types.SessionAffinityConfig(types.ClientIPConfig(seconds))
        return service("web", "10.96.0.1", session_affinity="ClientIP", session_affinity_config=config)

    rig = started(affine(10), endpoints("web", *pods(2)))
    rig.tell(affine(20))
    rig.partial()
    assert {verb for verb, _ in sent(rig)} == {"add set"}, "the kernel updates a set that exists"
    assert rig.table() == rig.fresh().table()
    rig.tell(affine(30))
    again = rig.restarted()
    assert not again.full()
    assert {verb for verb, _ in sent(again)} == {"add set"}
    assert again.table() == again.fresh().table()


def test_a_contested_address_goes_to_the_first_by_name_and_back() -> None:
    rig = started(service("b", "10.96.0.1", external_ips=("203.0.113.1",)), endpoints("b", *pods(2)))
    alone = rig.table()
    rig.tell(service("a", "10.96.0.2", external_ips=("203.0.113.1",)), endpoints("a", *pods(3, first=20)))
    rig.partial()
    assert rig.table() == rig.fresh().table() != alone
    rig.gone("Service", "a")
    rig.gone("EndpointSlice", "a-1")
    rig.partial()
    assert rig.table() == alone


@pytest.mark.parametrize("backends", [0, 3])
def test_who_is_refused_gives_way_to_the_owner_of_a_front(backends: int) -> None:
    """What it had stays, but not at the fronts that belong to another Service now."""
    some: dict[str, Any] = {"type": "NodePort", "ports": [types.ServicePort(80, node_port=30080)]}
    rig = started(service("b", "10.96.0.2", external_ips=("203.0.113.1",), **some))
    if backends:
        rig.tell(endpoints("b", *pods(backends)))
        rig.partial()
    before = _at(rig.table(), "10.96.0.2")
    assert len(before) == (backends or 1)
    rig.tell(service("a", "10.96.0.1", external_ips=("203.0.113.1",), **some), endpoints("a", *pods(2)))
    rig.tell(service("b", "10.96.0.22", external_ips=("203.0.113.1",), **some))
    rig.kernel.refuse = lambda message: b"\x0a\x60\x00\x16" in message.body
    with pytest.raises(SyncError):
        rig.partial()
    assert rig.full().keys() == {("default", "b")}
    after, fresh = rig.table(), rig.fresh().table()
    assert _at(after, "203.0.113.1") == _at(fresh, "203.0.113.1")
    for name in (layout.SERVICE_NODEPORTS, layout.DROP_NODEPORTS, layout.REJECT_NODEPORTS):
        assert after["elements", name] == fresh["elements", name]
    rig.kernel.refuse = lambda _: None
    assert not rig.full()
    assert rig.table() == fresh


def _at(table: Content, address: str) -> list[tuple[str, bytes]]:
    """The elements of fronts at an address."""
    key = packing.front(address, "TCP", 80)
    return [
        (name, element)
        for (kind, name), elements in table.items()
        if kind == "elements"
        for element in elements
        if element[12:].startswith(key)
    ]


def test_another_s_table_is_replaced_in_one_transaction() -> None:
    rig = Rig()
    theirs = TableName(m.IP, layout.TABLE)
    rig.kernel.commit([m.add_table(theirs, "rules for kube-proxy"), m.add_chain(theirs, "services")])
    rig.sent()
    rig.tell(service("web", "10.96.0.1", external_ips=("203.0.113.1",)), endpoints("web", *pods(3)))
    assert not rig.full()
    (first, *rest) = rig.kernel.commits
    assert [message.kind for message in first[:2]] == [m.DELTABLE, m.NEWTABLE]
    assert not rest, "all Services are in it"
    assert rig.table() == rig.fresh().table()


def test_what_somebody_changed_is_mended() -> None:
    rig = started(
        service("web", "10.96.0.1", external_ips=("203.0.113.1",)),
        service("sticky", "10.96.0.2", session_affinity="ClientIP"),
        *(endpoints(name, *pods(3)) for name in ("web", "sticky")),
    )
    right, table = rig.table(), TableName(m.IP, layout.TABLE)
    slots = rig.table()["elements", "endpoints-3"]
    for harm in (
        [m.flush_chain(table, "services")],
        [m.flush_chain(table, layout.MASQUERADING), m.add_rule(table, layout.MASQUERADING)],
        m.delete_elements(table, "endpoints-3", slots[:4]),
        [*m.delete_elements(table, "endpoints-3", slots[:1]), *m.add_elements(table, "endpoints-3", [slots[0][:-8] + b"\x0a\0\0\x09" + slots[0][-4:]])],
        [m.add_chain(table, "spare")],
        m.add_elements(table, layout.CLUSTER_IPS, [packing.member(b"\x0a\0\0\1")]),
        [m.flush_chain(table, name) for name in objects.chains(rig.kernel, table) if name.startswith("service-")],
        [m.delete_table(table)],
    ):  # fmt: skip
        rig.kernel.commit(harm)
        assert rig.table() != right
        rig = rig.restarted()
        assert not rig.full()
        assert rig.table() == right


def test_a_table_that_was_just_written_is_not_read() -> None:
    kernel = _Counting()
    rig = Rig(kernel)
    rig.tell(service("web", "10.96.0.1"), endpoints("web", *pods(3)))
    assert not rig.full()
    assert not kernel.listed
    assert rig.table() == rig.fresh().table()


class _Counting(FakeNftKernel):
    """Counts how often it is asked to list something after the first commit."""

    listed = 0

    def dump(self, kind: int, family: int, body: bytes = b"") -> Iterable[memoryview]:
        self.listed += bool(self.commits)
        return super().dump(kind, family, body)
