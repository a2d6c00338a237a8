"""Who reaches which endpoints of which Service by which front, masqueraded or not: the reference's table of 27 flows."""

import itertools

import pytest

from kubeproxy.api.rows import PortRow
from tests.unit.model.make import node, numbers, piece, planned, service
from tests.unit.model.packets import BOTH, CLIENT, NODE, POD, PODS, book, send

# Three Services with an endpoint here (1) and one elsewhere (2): A has the Cluster policies, B externalTrafficPolicy
# Local, C internalTrafficPolicy Local. Where packets go, and whether they are masqueraded.
FLOWS = {
    ("pod", "clusterIP"): (([1, 2], False), ([1, 2], False), ([1], False)),
    ("pod", "nodePort"): (([1, 2], True), ([1, 2], False), ([1, 2], True)),
    ("pod", "loadBalancer"): (([1, 2], True), ([1, 2], False), ([1, 2], True)),
    ("node", "clusterIP"): (([1, 2], True), ([1, 2], True), ([1], True)),
    ("node", "nodePort"): (([1, 2], True), ([1, 2], True), ([1, 2], True)),
    ("node", "loadBalancer"): (([1, 2], True), ([1, 2], True), ([1, 2], True)),
    ("outside", "clusterIP"): (([1, 2], True), ([1, 2], True), ([1], True)),
    ("outside", "nodePort"): (([1, 2], True), ([1], False), ([1, 2], True)),
    ("outside", "loadBalancer"): (([1, 2], True), ([1], False), ([1, 2], True)),
}
TO_CLUSTER_IP = {
    masquerade: {
        client: {"A": ([1, 2], masquerade), "B": ([1, 2], masquerade), "C": ([1], masquerade)}
        for client in ("pod", "node", "outside")
    }
    for masquerade in (True, False)
}
LOCAL_ONLY = {"B": ([1], False)}
# What is otherwise without a way to recognise Pods, and when all is masqueraded.
OTHERWISE = {
    (True, False): {},
    (False, False): {
        ("node", "clusterIP"): TO_CLUSTER_IP[False]["node"],
        ("outside", "clusterIP"): TO_CLUSTER_IP[False]["outside"],
        ("pod", "nodePort"): LOCAL_ONLY,
        ("pod", "loadBalancer"): LOCAL_ONLY,
    },
    (True, True): {("pod", "clusterIP"): TO_CLUSTER_IP[True]["pod"]},
    (False, True): {
        ("pod", "clusterIP"): TO_CLUSTER_IP[True]["pod"],
        ("pod", "nodePort"): LOCAL_ONLY,
        ("pod", "loadBalancer"): LOCAL_ONLY,
    },
}
MATRIX = [
    (
        detects,
        all_,
        client,
        front,
        name,
        *OTHERWISE[detects, all_].get((client, front), {}).get(name, expected),
    )
    for (detects, all_), ((client, front), row) in itertools.product(OTHERWISE, FLOWS.items())
    for name, expected in zip("ABC", row, strict=True)
]


def test_the_matrix_is_whole():
    assert len(MATRIX) == 27 * 4


@BOTH
@pytest.mark.parametrize(("detects", "all_", "client", "front", "name", "backends", "masquerade"), MATRIX)
def test_masquerade_matrix(manners, detects, all_, client, front, name, backends, masquerade):
    on = node(local_traffic=PODS if detects else None, masquerade_all=all_)
    plans = [
        planned(
            service(
                name=which,
                cluster_ips=(f"10.96.0.{i}",),
                ports=(PortRow("", "TCP", 80, 30000 + i),),
                load_balancer_ips=(f"198.51.100.{i}",),
                external_local=which == "B",
                internal_local=which == "C",
            ),
            piece("1 local", "2", service=which),
            on=on,
        )
        for i, which in enumerate("ABC")
    ]
    i = "ABC".index(name)
    source = {"pod": POD, "node": NODE, "outside": CLIENT}[client]
    packet = {
        "clusterIP": send(source, f"10.96.0.{i}"),
        "nodePort": send(source, NODE, 30000 + i),
        "loadBalancer": send(source, f"198.51.100.{i}"),
    }[front]
    verdict = book(*plans, on=on, manners=manners).verdict(packet)
    assert verdict.action == "forward"
    assert verdict.port is plans[i].ports[0]
    assert (numbers(verdict.endpoints), verdict.masquerade) == (backends, masquerade)
