"""Rules the recordings do not show: other ways to tell local Pods, node ports over SCTP, another mark."""

import pytest
from msgspec.structs import replace

from kubeproxy.backends.ipvs import names
from kubeproxy.backends.ipvs.frame import frame
from kubeproxy.backends.programs import NAT
from kubeproxy.model.node import LocalTraffic
from tests.unit.backends.ipvs.rig import HERE

COMMENT = '-m comment --comment "Kubernetes service cluster ip + port for masquerade purpose"'
LOOKUP = f"{COMMENT} -m set --match-set KUBE-CLUSTER-IP"


@pytest.mark.parametrize(
    ("local", "rule"),
    [
        (LocalTraffic("range", "10.244.0.0/16"), f"! -s 10.244.0.0/16 {LOOKUP} dst,dst -j KUBE-MARK-MASQ"),
        (LocalTraffic("interface", "cni0"), f"! -i cni0 {LOOKUP} dst,dst -j KUBE-MARK-MASQ"),
        (LocalTraffic("prefix", "cali"), f"! -i cali+ {LOOKUP} dst,dst -j KUBE-MARK-MASQ"),
        (None, f"{LOOKUP} src,dst -j KUBE-MARK-MASQ"),
        (LocalTraffic("range", "0.0.0.0/0"), None),
    ],
)
def test_what_is_not_from_local_pods_is_masqueraded(local: LocalTraffic | None, rule: str | None) -> None:
    rules = frame(replace(HERE, local_traffic=local), {names.CLUSTER_IP}, ())[NAT, names.SERVICES]
    assert [r for r in rules if r.endswith("KUBE-MARK-MASQ")] == ([rule] if rule else [])


def test_all_is_masqueraded() -> None:
    rules = frame(replace(HERE, masquerade_all=True), {names.CLUSTER_IP}, ())[NAT, names.SERVICES]
    assert f"{LOOKUP} dst,dst -j KUBE-MARK-MASQ" in rules


def test_node_ports_over_sctp_are_looked_up_with_their_address() -> None:
    used = {names.NODE_PORTS["SCTP"], names.NODE_PORTS_LOCAL["SCTP"]}
    comment = "Kubernetes nodeport SCTP port {} with type 'hash ip:port'"
    assert frame(HERE, used, ())[NAT, names.NODE_PORT] == [
        f'-p sctp -m comment --comment "{comment.format("with externalTrafficPolicy=local")}"'
        " -m set --match-set KUBE-NODE-PORT-LOCAL-SCTP-HASH dst,dst -j RETURN",
        f'-p sctp -m comment --comment "{comment.format("for masquerade purpose")}"'
        " -m set --match-set KUBE-NODE-PORT-SCTP-HASH dst,dst -j KUBE-MARK-MASQ",
    ]


def test_another_mark() -> None:
    assert frame(replace(HERE, masquerade_mark=1), (), ())[NAT, names.MARK_MASQ] == [
        "-j MARK --set-xmark 0x1/0x1"
    ]


def test_nothing_is_looked_up_in_sets_that_are_empty_but_for_what_the_reference_always_has() -> None:
    looked = {
        part
        for rules in frame(HERE, (), ()).values()
        for rule in rules
        for part in rule.split()
        if part.startswith("KUBE-") and "match-set" in rule and not rule.endswith(part)
    }
    assert looked == {
        "KUBE-LOAD-BALANCER", "KUBE-CLUSTER-IP", "KUBE-EXTERNAL-IP", "KUBE-EXTERNAL-IP-LOCAL",
        "KUBE-HEALTH-CHECK-NODE-PORT", "KUBE-IPVS-IPS",
    }  # fmt: skip


def test_names_of_sets_fit() -> None:
    found = [
        names.set_name(short, family) for family in ("IPv4", "IPv6") for short in (*names.SETS, "GROWING")
    ]
    assert len(set(found)) == len(found) == 36
    assert max(map(len, found)) == 31
