"""Clean-up: what is ours goes, what others have stays, and iptables mode's clean-up knows when chains are not its own."""

import pytest

from kubeproxy.api.addresses import pack
from kubeproxy.backends import programs
from kubeproxy.backends.fake_tables import FakeTables
from kubeproxy.backends.iptables import cleanup as iptables_cleanup
from kubeproxy.backends.ipvs import cleanup, names
from kubeproxy.netlink import ipvs
from kubeproxy.netlink.ipvs import Settings, Virtual
from tests.unit.backends.iptables import rig as iptables_rig
from tests.unit.backends.ipvs.rig import HERE, Rig

FOREIGN = "-m set --match-set OTHERS dst -j DROP"


@pytest.fixture
def full() -> Rig:
    """A node with Services of every kind."""
    rig = Rig()
    rig.tell(*iptables_rig.rich())
    assert not rig.full()
    return rig


def rules(tables: FakeTables) -> list[str]:
    return [rule for chains in tables.tables.values() for held in chains.values() for rule in held]


def kube_chains(tables: FakeTables) -> set[tuple[str, str]]:
    return {(t, c) for t, chains in tables.tables.items() for c in chains if c.startswith("KUBE-")}


def test_no_rule_of_ours_is_left_after_both_clean_ups(full: Rig) -> None:
    full.tables.tables["filter"]["FORWARD"].append(FOREIGN)
    assert cleanup.clean(full.tables) > 0
    assert not any("--match-set KUBE-" in rule for rule in rules(full.tables))
    assert not any(chain in names.OWN_CHAINS for _, chain in kube_chains(full.tables))
    iptables_cleanup.clean(full.tables)
    assert rules(full.tables) == [FOREIGN]
    assert not kube_chains(full.tables)
    assert cleanup.clean(full.tables) == 0


def test_servers_are_ours_by_their_address_or_their_port(full: Rig) -> None:
    kernel = full.kernel
    ours = set(kernel.virtuals)
    for address, port in (("192.0.2.1", 9999), ("203.0.113.99", 80)):
        kernel.virtuals[Virtual(ipvs.TCP, pack(address), port)] = Settings("rr"), {}
    sets = cleanup.node_port_sets("IPv4")
    assert set(sets) == {"KUBE-NODE-PORT-TCP", "KUBE-NODE-PORT-UDP", "KUBE-NODE-PORT-SCTP-HASH"}
    assert set(cleanup.own_servers(kernel, sets)) == ours


def test_a_node_that_was_never_touched_has_nothing_of_ours() -> None:
    kernel = Rig().kernel
    kernel.virtuals[Virtual(ipvs.TCP, pack("192.0.2.1"), 80)] = Settings("rr"), {}
    assert cleanup.own_servers(kernel, cleanup.node_port_sets("IPv4")) == []


def test_iptables_mode_leaves_chains_to_ipvs_mode_that_has_taken_them_over() -> None:
    before = iptables_rig.Rig()
    before.tell(*iptables_rig.rich())
    assert not before.full()
    now = Rig(HERE, tables=before.tables)
    now.state = before.state
    assert not now.full()
    assert programs.are_of_ipvs(programs.by_table(now.tables.save()))
    assert iptables_cleanup.clean(now.tables) > 0
    fresh = now.fresh()
    kubelets = ("filter", "KUBE-FIREWALL")
    assert kube_chains(now.tables) - {kubelets} == kube_chains(fresh.tables)
    assert sorted(
        r for r in rules(now.tables) if "127.0.0.0/8" not in r and "KUBE-FIREWALL" not in r
    ) == sorted(r for r in rules(fresh.tables) if "127.0.0.0/8" not in r)
    assert not now.full()


def test_and_ipvs_mode_to_iptables_mode() -> None:
    before = Rig()
    before.tell(*iptables_rig.rich())
    assert not before.full()
    now = iptables_rig.Rig(before.tables)
    now.state = before.state
    assert not now.full()
    assert not programs.are_of_ipvs(programs.by_table(now.tables.save()))
    cleanup.clean(now.tables)
    assert now.rules() == now.fresh().rules()
