"""Fronts that two Services name: the owner has all of their traffic in every mode, whichever Service came first."""

import urllib.request
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from kubeproxy.api import types
from kubeproxy.backends.programs import Variant
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station, ask, until
from tests.kernel.traffic import LIMIT, Front, Traffic
from tests.lab.topology import EP11, EP12, LOCAL, NODE_NAME, Lab

CLIENTS = ("client", "out", "node")
NODE, BRIDGE = "192.0.2.1", "10.244.1.1"
OWNER, RIVAL = EP11, EP12


class Contest(NamedTuple):
    """Two Services, and the address and port that both name."""

    owner: types.Service
    rival: types.Service
    address: str
    port: int = 80


def balanced(name: str, ip: str, *addresses: str) -> types.Service:
    return service(name, ip, type="LoadBalancer", balancer=addresses)


def at_node(name: str, ip: str, number: int) -> types.Service:
    return service(name, ip, type="NodePort", ports=[types.ServicePort(80, node_port=number)])


CONTESTS = (
    # The name of the first two rivals comes first, and their claims are worse all the same (CVE-2020-8554).
    Contest(
        service("victim-1", "10.96.0.11"),
        service("attacker-1", "10.96.0.21", external_ips=("10.96.0.11",)),
        "10.96.0.11",
    ),
    Contest(
        service("victim-2", "10.96.0.12"), balanced("attacker-2", "10.96.0.22", "10.96.0.12"), "10.96.0.12"
    ),
    Contest(
        service("a-3", "10.96.0.13", external_ips=("203.0.113.3",)),
        service("b-3", "10.96.0.23", external_ips=("203.0.113.3",)),
        "203.0.113.3",
    ),
    Contest(
        service("a-4", "10.96.0.14", external_ips=("203.0.113.4",)),
        balanced("b-4", "10.96.0.24", "203.0.113.4"),
        "203.0.113.4",
    ),
    Contest(
        balanced("a-5", "10.96.0.15", "203.0.113.5"),
        service("b-5", "10.96.0.25", external_ips=("203.0.113.5",)),
        "203.0.113.5",
    ),
    Contest(at_node("a-6", "10.96.0.16", 30086), at_node("b-6", "10.96.0.26", 30086), NODE, 30086),
    Contest(service("a-7", "10.96.0.17"), service("b-7", "10.96.0.17"), "10.96.0.17"),
    Contest(
        service("b-8", "10.96.0.18", external_ips=(NODE,), ports=[types.ServicePort(30088)]),
        at_node("a-8", "10.96.0.28", 30088),
        NODE,
        30088,
    ),
)
FRONTS: list[Front] = [(role, c.address, c.port) for c in CONTESTS for role in CLIENTS]


@pytest.fixture(
    params=["iptables-legacy", "iptables-nf_tables", "nftables", "userspace", pytest.param("ipvs", marks=pytest.mark.vm)]
)  # fmt: skip
def station(lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> Station:
    mode, _, variant = request.param.partition("-")
    programs: Variant = "legacy" if variant == "legacy" else "nf_tables"
    ranges = ["192.0.2.0/24", "10.244.1.0/24"]
    return Station(lab, tmp_path, programs, mode=mode, nodePortAddresses=ranges)


def put(station: Station, backend: str, *services: types.Service) -> None:
    for each in services:
        found = endpoints(each.metadata.name, backend, local=LOCAL, node=NODE_NAME)
        station.folder.put(found, each)


def remove(station: Station, *services: types.Service) -> None:
    for each in services:
        station.folder.remove("Service", each.metadata.name)


def answers(lab: Lab) -> Counter[str]:
    """Who answers at the fronts."""
    return Counter(ask(lab, *front) for front in FRONTS)


def test_the_owner_has_the_traffic_from_the_first_to_the_last(lab: Lab, station: Station) -> None:
    """No connection fails when a front changes hands, and none goes to the rival while the owner is there."""
    owners, rivals = [c.owner for c in CONTESTS], [c.rival for c in CONTESTS]
    all_ = len(FRONTS)
    put(station, RIVAL, *rivals)
    with station.running() as daemon:
        assert answers(lab) == {RIVAL: all_}
        with Traffic(lab, FRONTS) as traffic:
            for _ in range(2):
                put(station, OWNER, *owners)
                until(lambda: answers(lab) == {OWNER: all_})
                before = {front: seen[RIVAL] for front, seen in traffic.answers.items()}
                remove(station, *rivals)
                put(station, RIVAL, *rivals)
                traffic.wait()
                late = {front for front, seen in traffic.answers.items() if seen[RIVAL] > before[front] + 1}
                assert not late, "only what was under way then may have gone there"
                remove(station, *owners)
                until(lambda: answers(lab) == {RIVAL: all_})
            put(station, OWNER, *owners)
            until(lambda: answers(lab) == {OWNER: all_})
        assert ask(lab, "out", BRIDGE, 30088) == RIVAL, "at its other addresses the node has the node port"
        daemon.says(
            "Service default/attacker-1: external IP 10.96.0.11:80 TCP belongs to Service default/victim-1 and is not"
            " served for this one"
        )
        with (
            lab.inside("node"),
            urllib.request.urlopen("http://127.0.0.1:10249/metrics", timeout=LIMIT) as page,
        ):
            told = page.read().decode()
        assert f'kubeproxy_contested_fronts{{ip_family="IPv4"}} {len(CONTESTS)}.0' in told
        assert "sync failed" not in daemon.log()
        assert "rules refused" not in daemon.log()
    with station.running():
        assert answers(lab) == {OWNER: all_}, "after a restart, too"
