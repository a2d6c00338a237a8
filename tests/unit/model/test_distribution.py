"""How connections are divided: weights and their rules, tables, preferred endpoints, what a mode cannot do."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kubeproxy.api.rows import BalancingRow, IgnoredAnnotation, WeightKind, WeightRow
from kubeproxy.model.distribution import (
    EVERYTHING,
    MOST_SLOTS,
    BalancingSupport,
    Distribution,
    chosen,
    reduced,
    shares,
    supported,
    without_effect,
)
from kubeproxy.model.planning import plan
from tests.unit.model.make import IPV4, endpoint, node, numbers, piece, planned, service

KINDS: dict[str, WeightKind] = {
    "zone": "zone",
    "node": "node",
    "pods": "pods",
    "group": "group",
    "address": "address",
    "everything": "any",
}
HERE = node(balancing=EVERYTHING, zone="z1")


def weights(**given):
    return tuple(
        WeightRow(KINDS[kind], name, weight)
        for kind, rules in given.items()
        for name, weight in rules.items()
    )


def row(text, **fields):
    return replace(endpoint(text), **fields)


def port_of(balancing, *rows, on=HERE, group="", **fields):
    """The port of a Service with these endpoints."""
    given = piece(endpoints=rows, group=group)
    return planned(service(balancing=balancing, **fields), given, on=on).ports[0]


def shared(port):
    """The last part of each endpoint's address, and its weight."""
    given = port.cluster_distribution
    return dict(zip(numbers(port.cluster), given.weights if given else (1,) * len(port.cluster), strict=True))


def test_sockets_are_connected_by_weights_alone():
    """The source address of a socket is not known before it is connected."""
    ends = [row(f"{i}") for i in (1, 2)]
    weighted = weights(address={"10.0.0.1": 3})
    assert port_of(BalancingRow(weights=weighted), *ends).at_connect
    for other in (
        BalancingRow(method="maglev", weights=weighted),
        BalancingRow(method="least-connections"),
    ):
        assert not port_of(other, *ends).at_connect


def test_without_annotation_there_is_no_distribution():
    port = port_of(None, row("1"), row("2 local"), external_local=True)
    assert (port.cluster_distribution, port.local_distribution) == (None, None)


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        (weights(zone={"z1": 3, "z2": 1}), {1: 3, 2: 1, 3: 1}),
        (weights(node={"n2": 4}, everything={"": 2}), {1: 1, 2: 2, 3: 1}),
        (weights(pods={"web": 2, "web-canary": 7}), {1: 2, 2: 2, 3: 1}),  # the first rule that matches
        (weights(pods={"web-canary": 7, "web": 2}), {1: 2, 2: 7, 3: 1}),
        (weights(address={"10.1.2.3": 5}), {1: 1, 2: 1, 3: 5}),
        (weights(zone={"z2": 0}), {1: 1, 3: 1}),
        (weights(everything={"": 0}), {1: 1, 2: 1, 3: 1}),  # a Service never loses all
        (weights(everything={"": 1000}), {1: 1, 2: 1, 3: 1}),
        (weights(pods={"we": 9}), {1: 1, 2: 1, 3: 1}),  # not only the beginning of a word
    ],
)
def test_weights(rules, wanted):
    port = port_of(
        BalancingRow(weights=rules),
        row("1", zone="z1", pods="web"),
        row("2", zone="z2", node="n2", pods="web-canary"),
        row("3", zone="", pods="other"),
    )
    assert shared(port) == wanted


def test_weights_of_groups_of_slices():
    found = planned(
        service(balancing=BalancingRow(weights=weights(group={"blue": 9, "green": 1}))),
        piece("1", "2", group="blue"),
        piece("3"),
        piece("4", group="green"),
        on=HERE,
    )
    assert shared(found.ports[0]) == {1: 9, 2: 9, 3: 1, 4: 1}


def test_each_policy_has_its_own_group():
    port = port_of(
        BalancingRow(weights=weights(address={"10.1.2.1": 4, "10.1.2.2": 2, "10.1.2.3": 6})),
        row("1"),
        row("2 local"),
        row("3 local"),
        external_local=True,
        external_ips=("192.0.2.1",),
    )
    assert port.cluster_distribution == Distribution(weights=(2, 1, 3))
    assert port.local_distribution == Distribution(weights=(1, 3))
    assert (port.internal_distribution, port.external_distribution) == (
        port.cluster_distribution,
        port.local_distribution,
    )


def test_silent_endpoints_are_left_out_of_those_that_have_a_weight():
    given = service(
        balancing=BalancingRow(weights=weights(address={"10.1.2.3": 0, "10.1.2.1": 2})), skips_silent=True
    )
    found = plan(given, [piece("1", "2", "3")], HERE, silent=(("10.1.2.1", 80),))
    assert found is not None
    assert numbers(found.ports[0].cluster) == [2]
    assert numbers(found.ports[0].silent) == [1]


def test_flows_to_endpoints_without_weight_stay():
    udp = planned(
        service(
            balancing=BalancingRow(weights=weights(address={"10.1.2.1": 0})),
            ports=(replace(service().ports[0], protocol="UDP"),),
        ),
        piece("1", "2", ports=(replace(piece().ports[0], protocol="UDP"),)),
        on=HERE,
    ).ports[0]
    assert (numbers(udp.cluster), numbers(udp.serving)) == ([2], [1, 2])


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=200).filter(any))
def test_weights_are_reduced_to_slots(given_weights):
    slots = reduced(given_weights)
    whole, most = sum(given_weights), max(MOST_SLOTS, 4 * len(given_weights))
    assert sum(slots) <= most
    for weight, count in zip(given_weights, slots, strict=True):
        assert abs(weight / whole - count / sum(slots)) < 1 / most + 1e-12
        assert weight or not count


@pytest.mark.parametrize("method", ["maglev", "random"])
@given(data=st.data())
def test_state_does_not_depend_on_the_order_of_endpoints(method, data):
    count = data.draw(st.integers(1, 12))
    rules = tuple(
        WeightRow("address", f"10.1.2.{number}", data.draw(st.integers(0, 9))) for number in range(count)
    )
    rows = [row(str(number)) for number in range(count)]
    order = data.draw(st.permutations(rows))
    balancing = BalancingRow(method=method, weights=rules)
    assert port_of(balancing, *rows) == port_of(balancing, *order)


def test_maglev():
    rows = [row(str(number)) for number in range(1, 11)]
    port = port_of(BalancingRow("maglev"), *rows)
    by = port.cluster_distribution
    assert by == Distribution("maglev", table_size=1021)
    found = shares(port.cluster, by)
    assert sum(found) == pytest.approx(1)
    assert all(share == pytest.approx(0.1, rel=0.02) for share in found)
    clients = [f"198.51.{random.Random(i).randrange(256)}.{i % 256}" for i in range(2000)]
    got = [chosen(port.cluster, by, client) for client in clients]
    assert all(got.count(each) == pytest.approx(200, abs=60) for each in port.cluster)


@pytest.mark.parametrize(
    ("wanted", "count", "size"),
    [(0, 1, 1021), (251, 100, 251), (251, 126, 1021), (0, 510, 1021), (0, 511, 4093), (65521, 3, 65521)],
)
def test_a_table_has_room_for_its_endpoints(wanted, count, size):
    rows = [replace(endpoint("1"), address=f"10.2.{i // 250}.{i % 250}") for i in range(count)]
    port = port_of(BalancingRow("maglev", table_size=wanted), *rows)
    assert port.cluster_distribution.table_size == size


def test_a_port_decides_together_with_the_address():
    port = port_of(BalancingRow("maglev", by_port=True), row("1"), row("2"))
    assert chosen(port.cluster, port.cluster_distribution, "198.51.100.1") is None


def test_preferred_endpoints():
    balancing = BalancingRow(near="zone", bound=5)
    port = port_of(balancing, row("1", zone="z1"), row("2", zone="z2"), row("3", zone="z1"))
    by = port.cluster_distribution
    assert (numbers(by.preferred), by.bound) == ([1, 3], 5)
    assert shares(port.cluster, by) == (0.5, 0.0, 0.5)
    assert port_of(balancing, row("1", zone="z1")).cluster_distribution is None  # all are near
    assert port_of(balancing, row("1", zone="z2")).cluster_distribution is None  # none is
    near = port_of(BalancingRow(near="node", bound=5), row("1"), row("2 local"))
    assert numbers(near.cluster_distribution.preferred) == [2]


def test_sockets_are_not_connected_where_the_client_decides_or_connections_are_counted():
    """In ebpf mode: the programs choose at random, or by weight."""
    assert port_of(None, row("1")).at_connect
    weighted = BalancingRow(weights=weights(node={"node-9": 2, "x": 1}))
    assert port_of(weighted, row("1"), row("2 local")).at_connect
    assert not port_of(BalancingRow("maglev"), row("1")).at_connect
    near = BalancingRow(near="node", bound=3)
    steering = replace(HERE, balancing=BalancingSupport(spill_over=True, steered=True))
    assert not port_of(near, row("1"), row("2 local"), on=steering).at_connect


def test_a_mode_does_what_it_can():
    everything = BalancingRow("maglev", by_port=True, table_size=251, weights=weights(everything={"": 2}))
    assert supported(everything, EVERYTHING) == everything
    assert supported(everything, BalancingSupport()) is None
    assert supported(everything, BalancingSupport(weights=True)) == BalancingRow(weights=everything.weights)
    assert port_of(everything, row("1"), row("2"), on=node()).cluster_distribution is None
    own = replace(HERE, balancing=BalancingSupport(maglev=True, own_tables=False))
    assert port_of(everything, row("1"), on=own).cluster_distribution == Distribution("maglev", by_port=True)


def test_what_has_no_effect_is_named():
    balancing = BalancingRow("least-connections", weights=weights(zone={"a": 2}), near="node", bound=3)
    wrong = IgnoredAnnotation("kube-proxy/x", "wrong")
    given = service(balancing=balancing, ignored=(wrong,))
    assert without_effect(service(), BalancingSupport()) == ()
    assert without_effect(given, EVERYTHING) == (wrong,)
    assert [each.name for each in without_effect(given, BalancingSupport())] == [
        "kube-proxy/x",
        "kube-proxy/balancing",
        "kube-proxy/weights",
        "kube-proxy/prefer",
    ]
    sized = service(balancing=BalancingRow("maglev", table_size=251))
    [found] = without_effect(sized, BalancingSupport(maglev=True, own_tables=False))
    assert found.name == "kube-proxy/maglev-table-size"


def test_a_service_of_another_family_has_no_plan():
    assert plan(service(cluster_ips=("fd00::1",), balancing=BalancingRow("maglev")), [], HERE) is None
    assert HERE.family == IPV4
