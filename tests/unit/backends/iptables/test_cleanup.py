"""Cleaning up tables in memory; the programs are chosen in tests/kernel/test_daemon.py."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.backends import programs
from kubeproxy.backends.fake_tables import FakeTables
from kubeproxy.backends.iptables import cleanup, names
from kubeproxy.backends.iptables.cleanup import clean
from kubeproxy.machine.fake import FakeMachine
from kubeproxy.model.node import NodeConfig
from tests.fakes.cluster import NODE, NODE6
from tests.unit.backends.iptables.rig import Rig, rich


def without_ours(tables: FakeTables, *stay: str) -> dict[str, dict[str, list[str]]]:
    """What must be left: everything but our chains, and the rules that lead to them."""
    return {
        table: {
            chain: [rule for rule in held if "KUBE-" not in rule or rule.endswith(stay or " ")]
            for chain, held in chains.items()
            if not chain.startswith("KUBE-") or chain in stay
        }
        for table, chains in tables.tables.items()
    }


@pytest.mark.parametrize("node", [NODE, NODE6], ids=lambda node: node.family)
def test_everything_of_ours_goes_and_stays_gone(node: NodeConfig) -> None:
    rig = Rig(node=node)
    rig.tell(*rich())
    rig.full()
    expected = without_ours(rig.tables)
    rig.tables.tables["nat"]["KUBE-XLB-0123456789ABCDEF"] = ["-j KUBE-MARK-MASQ"]
    assert clean(rig.tables) > 30
    assert rig.tables.tables == expected
    rig.sent()
    assert clean(rig.tables) == 0
    assert rig.sent() == []
    rig.full()
    assert rig.rules() == rig.fresh().rules()


@pytest.mark.parametrize("table", ["mangle", "nat", "filter"])
@pytest.mark.parametrize("chain", ["KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT"])
def test_a_kubelet_keeps_its_firewall(table: str, chain: str) -> None:
    rig = Rig()
    rig.tell(*rich())
    rig.tables.tables[table][chain] = []
    rig.full()
    expected = without_ours(rig.tables, names.KUBELET_FIREWALL, chain)
    clean(rig.tables)
    assert rig.tables.tables == expected
    assert len(expected["filter"][names.KUBELET_FIREWALL]) == 1


@pytest.mark.parametrize(
    ("chain", "rule"),
    [
        (names.KUBELET_FIREWALL, "-m mark --mark 0x8000/0x8000 -j DROP"),
        ("FORWARD", "-j KUBE-FIREWALL"),
        ("INPUT", "-i eth0 -j KUBE-FIREWALL"),
    ],
)
def test_a_firewall_that_others_use_stays_as_it_is(chain: str, rule: str) -> None:
    """A kubelet of before 1.17 has no chain that tells of it."""
    rig = Rig()
    rig.tell(*rich())
    rig.full()
    rig.tables.tables["filter"][chain].append(rule)
    expected = without_ours(rig.tables, names.KUBELET_FIREWALL)
    clean(rig.tables)
    assert rig.tables.tables == expected


def test_a_setting_that_the_firewall_guarded_is_pointed_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = FakeMachine()
    machine.settings["net/ipv4/conf/all/route_localnet"] = "1"
    rig = Rig()
    rig.full()
    monkeypatch.setattr(programs, "installed", lambda _: [("fake", rig.tables)])
    cleanup.cleanup(machine)
    assert "route_localnet is 1, and the rule is gone that drops packets to 127.0.0.0/8" in caplog.text
    caplog.clear()
    cleanup.cleanup(machine)
    assert caplog.text == ""


def test_nothing_is_left_where_nothing_was() -> None:
    tables = FakeTables()
    assert clean(tables) == 0
    assert tables.inputs == []


def test_what_others_put_there_stays_and_what_they_use() -> None:
    rig = Rig()
    rig.tell(*rich())
    rig.full()
    nat, filter_ = rig.tables.tables["nat"], rig.tables.tables["filter"]
    nat["CNI-HOSTPORT-SETMARK"] = ['-m comment --comment "CNI portfwd masquerade mark" -j KUBE-MARK-MASQ', ""]
    nat["KUBE-MARK-DROP"] = ["-j MARK --set-xmark 0x8000/0x8000"]
    nat["KUBE-KUBELET-CANARY"] = []
    nat["POSTROUTING"].insert(0, '-m comment --comment "goes -j KUBE-SERVICES" -j CNI-HOSTPORT-SETMARK')
    nat["OUTPUT"].append("")
    nat["OUTPUT"].append('-j LOG --log-prefix "to -j KUBE-SERVICES "')
    filter_["FORWARD"].append("-i cni0 -j ACCEPT")
    filter_["OURS"] = ["-g KUBE-NODEPORTS"]
    foreign = {
        chain: copy.deepcopy(nat[chain])
        for chain in ("CNI-HOSTPORT-SETMARK", "KUBE-MARK-DROP", "KUBE-KUBELET-CANARY", "KUBE-MARK-MASQ")
    }
    clean(rig.tables)
    nat = rig.tables.tables["nat"]
    assert {chain: nat[chain] for chain in foreign} == foreign
    assert sorted(c for c in nat if c.startswith("KUBE-")) == [
        "KUBE-KUBELET-CANARY", "KUBE-MARK-DROP", "KUBE-MARK-MASQ"
    ]  # fmt: skip
    assert nat["POSTROUTING"] == ['-m comment --comment "goes -j KUBE-SERVICES" -j CNI-HOSTPORT-SETMARK']
    assert nat["OUTPUT"] == ["", '-j LOG --log-prefix "to -j KUBE-SERVICES "']
    filter_ = rig.tables.tables["filter"]
    assert filter_["FORWARD"] == ["-i cni0 -j ACCEPT"]
    assert "KUBE-SERVICES" not in filter_


@given(st.sets(st.integers(0, 200), max_size=60))
def test_ruins_are_cleaned_too(lost: set[int]) -> None:
    """Some rules have been deleted already."""
    rig = Rig()
    rig.tell(*rich())
    rig.full()
    expected = without_ours(rig.tables)
    spots = [
        (table, chain, i)
        for table, chains in rig.tables.tables.items()
        for chain, held in chains.items()
        for i in reversed(range(len(held)))
    ]
    for n, (table, chain, i) in enumerate(spots):
        if n in lost:
            del rig.tables.tables[table][chain][i]
    clean(rig.tables)
    assert rig.tables.tables == expected
