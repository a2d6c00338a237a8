"""The small pieces: what a rule leads to, what can be deleted, what is between two plans."""

import pytest

from kubeproxy.backends.fake_tables import FakeTables
from kubeproxy.backends.iptables.compile import (
    FILTER_SERVICES,
    NAT_SERVICES,
    NOTHING,
    ServiceRules,
)
from kubeproxy.backends.iptables.held import unreferenced
from kubeproxy.backends.iptables.steps import between, fragment
from kubeproxy.backends.programs import target

KEY = ("default", "web")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("-j KUBE-SERVICES", "KUBE-SERVICES"),
        ("-p tcp -m tcp --dport 80 -g KUBE-X", "KUBE-X"),
        ("-d 10.0.0.1/32 -j DNAT --to-destination 10.0.0.2:80", "DNAT"),
        ("-p tcp", ""),
        ("", ""),
        ('-m comment --comment "not -j A but" -j B', "B"),
        ('-m comment --comment "say \\"hi\\" -j A" -j B', "B"),
        ('-m comment --comment "only -j A"', ""),
        ('-j LOG --log-prefix "seen -j A "', "LOG"),
        ("-m comment --comment some-j -j B", "B"),
    ],
)
def test_what_a_rule_leads_to(rule: str, expected: str) -> None:
    assert target(rule) == expected


def test_what_nothing_that_stays_leads_to() -> None:
    tables = FakeTables()
    nat = tables.tables["nat"]
    nat.update(A=["-j B"], B=["-j C"], C=[], D=["-j C"], E=["-g D"], OURS=["-p tcp", "", "-j E"])
    tables.tables["filter"].update(A=[], X=["-j A"])
    assert unreferenced(tables, ["A", "B"]) == ["A", "B"]
    assert unreferenced(tables, ["A", "B", "C"]) == ["A", "B"]
    assert unreferenced(tables, ["B", "A", "C", "D", "E"]) == ["B", "A"]
    assert unreferenced(tables, ["OURS", "A", "B", "C", "D", "E"]) == ["OURS", "A", "B", "C", "D", "E"]
    assert unreferenced(tables, []) == []


def test_between_the_same_is_nothing() -> None:
    one = ServiceRules({"KUBE-SVC-A": "-A KUBE-SVC-A -p tcp\n"}, [(NAT_SERVICES, "-j KUBE-SVC-A")])
    assert not between(KEY, one, one)
    assert not between(KEY, NOTHING, NOTHING)


def test_between_two_plans() -> None:
    before = ServiceRules(
        {"SEP1": "-A SEP1 x\n", "SEP2": "-A SEP2 x\n", "SVC": "-A SVC -j SEP1\n-A SVC -j SEP2\n"},
        [(NAT_SERVICES, "one"), (NAT_SERVICES, "two"), (FILTER_SERVICES, "no")],
    )
    after = ServiceRules(
        {"SEP2": "-A SEP2 x\n", "SEP3": "-A SEP3 x\n", "SVC": "-A SVC -j SEP2\n-A SVC -j SEP3\n"},
        [(NAT_SERVICES, "two"), (NAT_SERVICES, "three"), (NAT_SERVICES, "four"), (FILTER_SERVICES, "never")],
    )
    found = between(KEY, before, after)
    assert found.key == KEY
    assert found.refusals == ["-I KUBE-SERVICES never\n"]
    assert found.nat == [
        ":SEP3 - [0:0]\n",
        ":SVC - [0:0]\n",
        "-A SEP3 x\n",
        "-A SVC -j SEP2\n-A SVC -j SEP3\n",
        "-I KUBE-SERVICES four\n",
        "-I KUBE-SERVICES three\n",
        "-D KUBE-SERVICES one\n",
        ":SEP1 - [0:0]\n",
        "-X SEP1\n",
    ]
    assert found.welcome == ["-D KUBE-SERVICES no\n"]


def test_chains_that_lead_to_each_other_can_be_deleted_together() -> None:
    tables = FakeTables()
    tables.tables["nat"].update(A=["-j B"], B=["-j C"], C=[])
    tables.restore("nat", fragment(None, {}, ["A", "B", "C"], (), ()).nat)
    assert not {"A", "B", "C"} & tables.tables["nat"].keys()
