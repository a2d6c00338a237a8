"""What packets do in random clusters is what the verdict says, in every mode: the oracle's cases are few."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from kubeproxy.api.addresses import FAMILIES, family_of
from kubeproxy.model.verdict import IPTABLES, NFTABLES, Manners
from tests.lab import cases, probe, random_case
from tests.lab.daemon import Daemon, kube_proxy
from tests.lab.probe import Outcomes
from tests.lab.random_case import Document
from tests.lab.topology import Lab
from tests.scenarios.world import World, outcome, packet, parse_front

MANNERS: dict[str, Manners] = {"iptables": IPTABLES, "nftables": NFTABLES}


def expected(world: World, manners: Manners, fronts: random_case.Fronts) -> Outcomes:
    """What each client should get at each front."""
    books = {family: world.book(family, manners) for family in FAMILIES}
    wanted: Outcomes = {}
    for client, asked in fronts.items():
        wanted[client] = {}
        for front in asked:
            sent = packet(client, front)
            verdict = books[family_of(parse_front(front)[0])].verdict(sent)
            wanted[client][front] = outcome(client, sent, verdict)
    return wanted


@pytest.mark.parametrize("mode", MANNERS)
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(config=random_case.configurations(), objects=random_case.objects())
def test_packets_go_where_the_verdict_says(
    lab: Lab, mode: str, config: Document, objects: list[Document]
) -> None:
    lab.reset()
    services = [each for each in objects if each["kind"] == "Service"]
    endpoints = sum(len(each["endpoints"]) for each in objects if each["kind"] == "EndpointSlice")
    with tempfile.TemporaryDirectory() as folder:
        file, manifests = cases.lay_out(config, objects, mode, Path(folder))
        wanted = expected(World(file, manifests), MANNERS[mode], random_case.fronts(services))
        with Daemon(lab, kube_proxy(file, manifests)):
            measured = probe.outcomes(lab, wanted, endpoints)
    assert measured == wanted, probe.differences(wanted, measured)
