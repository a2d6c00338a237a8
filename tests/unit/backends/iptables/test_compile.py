"""Compiled rules, as far as the oracle's 61 cases (tests/kernel/test_iptables_oracle.py) do not show them."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.api.addresses import FAMILIES
from kubeproxy.backends.iptables import names
from kubeproxy.backends.iptables.compile import (
    NOTHING,
    RuleContext,
    chains_of,
    compile_service,
)
from kubeproxy.backends.iptables.frame import frame
from kubeproxy.backends.iptables.probability import probability
from kubeproxy.backends.programs import FILTER, NAT
from kubeproxy.model.distribution import BalancingSupport
from kubeproxy.model.node import LocalTraffic, NodeConfig
from kubeproxy.model.state import State
from tests import strategies
from tests.fakes.cluster import NODE, NODE6, annotated, endpoints, service


def rules(node: NodeConfig, *objects: types.Service | types.EndpointSlice, **dialect: bool) -> list[str]:
    """All rules of the Services, "-A" and all."""
    state = State()
    for obj in objects:
        state.set(obj)
    lines: list[str] = []
    for key in state.services:
        compiled = compile_service(state.plan(key, node), RuleContext(node, **dialect))
        lines += [f"-A {chain} {rule}" for (_, chain), rule in compiled.fronts]
        lines += [line for text in compiled.chains.values() for line in text.splitlines()]
    return lines


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (2, "0.50000000000"),
        (3, "0.33333333349"),
        (4, "0.25000000000"),
        (5, "0.20000000019"),
        (6, "0.16666666651"),
        (7, "0.14285714272"),
        (10, "0.10000000009"),
        (100, "0.00999999978"),
        (1000, "0.00100000016"),
        (100_000, "0.00001000008"),
    ],
)
def test_probabilities_are_spelled_as_the_kernel_keeps_them(count: int, text: str) -> None:
    assert probability(count) == text


def test_weights_are_probabilities() -> None:
    """The first of 3, 2 and 1 gets half; of what is left, the second two thirds."""
    found = rules(
        replace(NODE, balancing=BalancingSupport(weights=True)),
        annotated(service("web", "10.96.0.1"), weights="address:10.244.1.1=3 address:10.244.1.2=2"),
        endpoints("web", "10.244.1.1", "10.244.1.2", "10.244.1.3"),
    )
    chances = [
        re.findall(r"--probability (\S+)", rule) for rule in found if "KUBE-SVC" in rule and "->" in rule
    ]
    assert chances == [[probability(2)], [probability(3, 2)], []]


def test_more_endpoints_are_less_probable() -> None:
    """Case 63: ten decimals, of which the kernel keeps 31 bits, tell 40,000 endpoints apart."""
    texts = [probability(n) for n in range(1, 40_001)]
    assert all(a > b for a, b in itertools.pairwise(texts))
    assert float(probability(100_001)) > 0


def counted(number: int, each: int, *, balanced: bool) -> tuple[int, int]:
    """Rules in tables filter and nat for so many Services of so many endpoints each."""
    nat_frame = filter_frame = 0
    static = frame(NODE, drop_invalid=True, counters=True)
    for (table, _), chain in [*static.chains.items(), *static.tail.items()]:
        nat_frame += len(chain) * (table == NAT)
        filter_frame += len(chain) * (table == FILTER)
    filter_frame += len(static.extras)
    state = State()
    for i in range(number):
        name, ip = f"svc{i}", f"10.96.0.{i + 1}"
        if balanced:
            ports = [types.ServicePort(80, node_port=30000 + i)]
            made = service(
                name,
                ip,
                ports=ports,
                type="LoadBalancer",
                external_ips=(f"198.51.100.{i}",),
                balancer=[f"203.0.113.{i}"],
                load_balancer_source_ranges=("192.0.2.0/24",),
            )
        else:
            made = service(name, ip)
        state.set(made)
        state.set(endpoints(name, *(f"10.244.{i}.{j + 1}" for j in range(each))))
    compiled = [compile_service(state.plan(key, NODE), RuleContext(NODE)) for key in state.services]
    fronts = [table for c in compiled for (table, _), _ in c.fronts]
    chains = sum(text.count("\n") for c in compiled for text in c.chains.values())
    return (
        filter_frame + fronts.count(FILTER),
        nat_frame + fronts.count(NAT) + chains,
    )


@pytest.mark.parametrize(
    ("number", "each", "balanced", "expected"),
    [
        (0, 0, False, (4, 5)),
        (1, 0, False, (5, 5)),
        (1, 1, False, (4, 10)),
        (1, 2, False, (4, 13)),
        (1, 10, False, (4, 37)),
        (10, 0, False, (14, 5)),
        (10, 1, False, (4, 55)),
        (10, 2, False, (4, 85)),
        (10, 10, False, (4, 325)),
        (1, 0, True, (8, 5)),
        (1, 1, True, (5, 18)),
        (1, 2, True, (5, 21)),
        (1, 10, True, (5, 45)),
        (10, 0, True, (44, 5)),
        (10, 1, True, (14, 135)),
        (10, 2, True, (14, 165)),
        (10, 10, True, (14, 405)),
    ],
)
def test_as_many_rules_as_the_reference(
    number: int, each: int, balanced: bool, expected: tuple[int, int]
) -> None:
    """Case 62."""
    assert counted(number, each, balanced=balanced) == expected


def test_no_plan_has_no_rules() -> None:
    assert compile_service(None, RuleContext(NODE)) == NOTHING == ({}, [])


def test_in_large_clusters_endpoints_have_no_comments() -> None:
    objects = (
        service("web", "10.96.0.1", session_affinity="ClientIP"),
        endpoints("web", "10.244.1.11", "10.244.2.21"),
    )
    commented, plain = rules(NODE, *objects), rules(NODE, *objects, comments=False)
    assert len(commented) == len(plain)
    assert sum("->" in line for line in commented) == 4
    assert not any("->" in line for line in plain)
    assert not any("--comment" in line for line in plain if line.startswith("-A KUBE-SEP-"))
    assert [line for line in plain if line.startswith("-A KUBE-SERVICES")] == [
        line for line in commented if line.startswith("-A KUBE-SERVICES")
    ]


def test_ipv6_is_spelled_in_its_own_way() -> None:
    text = "\n".join(
        rules(
            NODE6,
            service(
                "web",
                "fd00:10:96::1",
                ports=[types.ServicePort(80, node_port=30080)],
                session_affinity="ClientIP",
            ),
            service("none", "fd00:10:96::2"),
            endpoints("web", "fd00:10:244:1::b"),
            counters=True,
        )
    )
    assert "-d fd00:10:96::1/128 " in text
    assert "--to-destination [fd00:10:244:1::b]:8080" in text
    assert "--mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff " in text
    assert "--reject-with icmp6-port-unreachable" in text
    assert "127.0.0.0" not in text
    assert "nfacct" not in text


def test_all_clients_are_a_range_the_programs_do_not_print() -> None:
    """A range of everything among others limits nothing, so there is no KUBE-FW chain whose text could differ."""
    lines = rules(
        NODE,
        service(
            "web",
            "10.96.0.1",
            type="LoadBalancer",
            balancer=["203.0.113.1"],
            load_balancer_source_ranges=("0.0.0.0/0", "10.0.0.0/8"),
        ),
        endpoints("web", "10.244.1.11"),
    )
    assert not any("0.0.0.0/0" in line for line in lines)


def test_one_address_with_two_roles_is_refused_once() -> None:
    """An external IP that is also the load balancer's has one refusing rule, for what is there twice is deleted once."""
    compiled = [
        line
        for line in rules(
            NODE,
            service(
                "web",
                "10.96.0.1",
                external_ips=("203.0.113.1",),
                type="LoadBalancer",
                balancer=["203.0.113.1"],
            ),
        )
        if "203.0.113.1" in line
    ]
    assert compiled == [
        "-A KUBE-EXTERNAL-SERVICES -d 203.0.113.1/32 -p tcp -m comment"
        ' --comment "default/web has no endpoints" -m tcp --dport 80'
        " -j REJECT --reject-with icmp-port-unreachable"
    ]


@pytest.mark.parametrize(
    ("traffic", "expected"),
    [
        (None, None),
        (LocalTraffic("range", "0.0.0.0/0"), None),  # the kernel's nf_tables refuse a match of nothing
        (LocalTraffic("range", "10.0.0.0/8"), "! -s 10.0.0.0/8 -d 10.96.0.1/32 -p tcp -m comment"),
        (LocalTraffic("interface", "cni0"), "-d 10.96.0.1/32 ! -i cni0 -p tcp -m comment"),
        (LocalTraffic("prefix", "cali"), "-d 10.96.0.1/32 ! -i cali+ -p tcp -m comment"),
    ],
)
def test_what_is_masqueraded_on_the_way_to_a_cluster_ip(
    traffic: LocalTraffic | None, expected: str | None
) -> None:
    node = NodeConfig(local_traffic=traffic)
    found = [
        line
        for line in rules(node, service("web", "10.96.0.1"), endpoints("web", "10.244.1.11"))
        if line.startswith("-A KUBE-SVC-") and line.endswith("KUBE-MARK-MASQ")
    ]
    assert len(found) == (expected is not None)
    assert not expected or found[0].split(" ", 2)[2].startswith(expected)


@given(st.data())
def test_chains_stand_before_those_that_jump_to_them(data: st.DataObject) -> None:
    node = data.draw(st.sampled_from(FAMILIES).flatmap(strategies.nodes))
    state = State()
    for event in data.draw(st.lists(st.one_of(strategies.services(), strategies.slices()), max_size=12)):
        strategies.tell(state, event)
    for key in state.services:
        plan = state.plan(key, node)
        compiled = compile_service(plan, RuleContext(node, counters=True, comments=data.draw(st.booleans())))
        assert set(chains_of(plan)) == compiled.chains.keys()
        known = {names.MARK_MASQ}
        for chain, text in compiled.chains.items():
            assert names.is_owned(chain)
            assert text.endswith("\n")
            for line in text.splitlines():
                assert line.startswith(f"-A {chain} ")
                target = line.rpartition(" -j ")[2].split(" ")[0]
                assert (
                    not target.startswith("KUBE-")
                    or target in known
                    or line.endswith(f'{names.PROXY_FIREWALL}"')
                )
            known.add(chain)
        assert len(set(compiled.fronts)) == len(compiled.fronts)
        for _, rule in compiled.fronts:
            target = rule.rpartition(" -j ")[2].split(" ")[0]
            assert target in {*known, "REJECT", "DROP", "ACCEPT"}
