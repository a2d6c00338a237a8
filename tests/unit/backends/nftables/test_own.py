"""Weights and Maglev hashing in the table: how many slots there are, and what a change of an endpoint sends."""

import pytest
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.backends.nftables import layout
from kubeproxy.backends.nftables.mode import MODE
from kubeproxy.insight.reference.compare import compare
from kubeproxy.insight.reference.outcome import of_verdict, same
from kubeproxy.insight.reference.route import Router
from kubeproxy.insight.reference.table import NftRules
from kubeproxy.model.manners import Manners
from kubeproxy.model.verdict import Book, Packet
from kubeproxy.netlink.nft import messages as m
from kubeproxy.netlink.nft import objects, text
from kubeproxy.netlink.nft.messages import NftMessage, TableName
from tests.fakes.cluster import annotated, endpoints, service
from tests.unit.backends.nftables.rig import NODES, Rig
from tests.unit.backends.nftables.test_changes import sent

TABLE = TableName(m.IP, layout.TABLE)
NODE_PORT = [types.ServicePort(80, node_port=30080)]
NAME = "maglev-1021-PFISGYVC-default/web/tcp/"


def started(*addresses: str, **annotations: str) -> Rig:
    rig = Rig(node=replace(NODES[0], balancing=MODE.balancing))
    web = service("web", "10.96.0.1", ports=NODE_PORT, type="NodePort")
    rig.tell(annotated(web, **annotations), endpoints("web", *addresses))
    assert not rig.full()
    rig.sent()
    return rig


def pods(count: int) -> list[str]:
    return [f"10.244.1.{100 + i}" for i in range(count)]


def names(rig: Rig, prefix: str) -> set[str]:
    return {name for name in objects.sets(rig.kernel, TABLE) if name.startswith(prefix)}


def test_weights_are_slots() -> None:
    rig = started(*pods(2), weights="address:10.244.1.100=6 address:10.244.1.101=2")
    assert len(list(objects.elements(rig.kernel, TABLE, "endpoints-4"))) == 4
    assert len(list(objects.elements(rig.kernel, TABLE, "nodeport-endpoints-4"))) == 4
    listed = text.render(rig.kernel.listing())
    assert listed.count(": 10.244.1.100 . 8080") == 6
    assert "numgen random mod 4 map @nodeport-endpoints-4" in listed


def test_fronts_share_one_table() -> None:
    rig = started(*pods(3), balancing="maglev")
    assert names(rig, "maglev-") == {NAME}
    assert len(list(objects.elements(rig.kernel, TABLE, NAME))) == 1021
    listed = text.render(rig.kernel.listing())
    assert f"meta l4proto tcp dnat ip to jhash ip saddr mod 1021 seed 0x0 map @{NAME}" in listed


@pytest.mark.parametrize("count", [10, 100])
def test_an_endpoint_that_leaves_sends_the_slots_that_change(count: int) -> None:
    rig = started(*pods(count), balancing="maglev")
    rig.tell(endpoints("web", *pods(count)[1:]))
    rig.partial()
    found = sent(rig)
    assert found.keys() == {("delete", NAME), ("add", NAME)}
    assert found["delete", NAME] == found["add", NAME] <= 1021 * (1 / count + 0.05)


def test_another_size_is_another_table() -> None:
    rig = started(*pods(3), balancing="maglev")
    rig.tell(annotated(service("web", "10.96.0.1"), balancing="maglev", maglev_table_size="251"))
    rig.partial()
    assert names(rig, "maglev-") == {NAME.replace("1021", "251")}
    assert ("delete", NAME) not in sent(rig), "the map is deleted with its elements"
    rig.tell(service("web", "10.96.0.1"))
    rig.partial()
    assert not names(rig, "maglev-")


def test_without_endpoints_there_is_no_table() -> None:
    rig = started(*pods(3), balancing="maglev")
    rig.tell(endpoints("web"))
    rig.partial()
    assert not names(rig, "maglev-")
    assert rig.table() == rig.fresh().table()


def test_drift_is_repaired_slot_by_slot() -> None:
    rig = started(*pods(3), balancing="maglev")
    gone = sorted(objects.elements(rig.kernel, TABLE, NAME))[:7]
    rig.kernel.commit(list(m.delete_elements(TABLE, NAME, gone)))
    rig.sent()
    assert not rig.full()
    assert sent(rig) == {("add", NAME): 7}


def test_a_refused_service_keeps_its_table() -> None:
    """Also if what it had is not known, because another process programmed it."""
    rig = started(*pods(3), balancing="maglev")
    held = sorted(objects.elements(rig.kernel, TABLE, NAME))
    rig = rig.restarted()
    rig.tell(endpoints("web", *pods(4)))

    def refuse(message: NftMessage) -> bool:
        return message.kind == m.NEWSETELEM and NAME.encode() in message.body

    rig.kernel.refuse = refuse
    assert rig.full().keys() == {("default", "web")}
    assert sorted(objects.elements(rig.kernel, TABLE, NAME)) == held


@pytest.mark.parametrize(
    "annotations",
    [
        {"balancing": "maglev", "weights": "address:10.244.1.101=3"},
        {"balancing": "maglev", "maglev_hash": "source-and-port", "maglev_table_size": "251"},
        {"weights": "address:10.244.1.100=7 address:10.244.1.101=2"},
        {"weights": "address:10.244.1.100=7 address:10.244.1.101=2", "affinity": "ClientIP"},
    ],
)
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_rules_evaluated_do_what_the_plans_say(annotations: dict[str, str], policy: str) -> None:
    """For clients of many addresses: those that plan and rules send to one endpoint are sent to the same."""
    given = dict(annotations)
    affinity = given.pop("affinity", "None")
    rig = Rig(node=replace(NODES[0], balancing=MODE.balancing))
    web = service(
        "web",
        "10.96.0.1",
        ports=NODE_PORT,
        type="NodePort",
        external_ips=("203.0.113.9",),
        external_traffic_policy=policy,
        session_affinity=affinity,
    )
    rig.tell(annotated(web, **given), endpoints("web", *pods(3), local=pods(2)))
    assert not rig.full()
    local = ["192.0.2.1"]
    plans = list(rig.plans().values())
    book = Book(plans, rig.node, local, manners=MODE.manners or Manners())
    router = Router(NftRules(rig.kernel, TABLE, local), local)
    compared = compare(router, plans, book, rig.node, local)
    assert not compared.unknown
    assert not compared.differences
    assert compared.kinds > 10
    for number in range(50):
        packet = Packet(f"198.51.100.{number}", "203.0.113.9", 80, interface="eth0")
        assert same(router.outcome(packet), of_verdict(packet, book.verdict(packet)), packet, local)
