"""What others do to iptables rules of the nf_tables kind is put right when it happens; the look every 30 seconds is not needed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeproxy.api import types
from kubeproxy.backends.iptables import names
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station, answers, ask, until
from tests.lab.daemon import Daemon
from tests.lab.topology import EP11, EP12, Lab

WEB = "10.96.0.10"


@pytest.fixture
def station(lab: Lab, tmp_path: Path) -> Station:
    station = Station(lab, tmp_path, "nf_tables")
    station.folder.put(
        service("web", WEB, type="NodePort", ports=[types.ServicePort(80, node_port=30080)]),
        endpoints("web", EP11),
        service("none", "10.96.0.11"),
    )
    return station


@pytest.fixture
def running(station: Station) -> Iterator[Daemon]:
    with station.running() as daemon:
        yield daemon


DISTURBANCES = {
    "everything": "nft flush ruleset",
    "a table": "nft delete table ip nat",
    "rules of table nat": "iptables-nft -t nat -F",
    "rules and chains of table filter": "iptables-nft-restore",  # of a table with none
    "the way in": "iptables-nft -t nat -D PREROUTING 1",
    "the fronts": "iptables-nft -t nat -F KUBE-SERVICES",
    "one front": "iptables-nft -t filter -D KUBE-SERVICES 1",
    "a static chain": "iptables-nft -t nat -F KUBE-POSTROUTING",
    "a Service's chain": "iptables-nft -t nat -F {chain}",
    "a guard of localhost": "iptables-nft -t filter -F KUBE-FIREWALL",
    "what is put in": "iptables-nft -t nat -I {chain} -j RETURN",
}


@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_what_others_change_is_put_right(
    lab: Lab, station: Station, running: Daemon, disturbance: str
) -> None:
    before = station.rules()
    (chain,) = (name for name in before["nat"] if name.startswith("KUBE-SVC-"))
    command = DISTURBANCES[disturbance].format(chain=chain)
    lab.run("node", *command.split(), given="*filter\nCOMMIT\n")
    until(lambda: any("IPv4: " in line and "restored" in line for line in running.log().splitlines()))
    until(lambda: station.rules() == before)
    assert ask(lab, "client", WEB) == EP11


def test_what_we_do_and_what_others_do_for_themselves_is_no_disturbance(
    lab: Lab, station: Station, running: Daemon
) -> None:
    for command in (
        "-t nat -N THEIRS",
        "-t nat -A THEIRS -j RETURN",
        "-t nat -I PREROUTING -j THEIRS",
        "-t nat -D PREROUTING 1",
        "-t nat -F THEIRS",
        "-t nat -X THEIRS",
        "-I FORWARD -j ACCEPT",
        "-D FORWARD 1",
    ):
        lab.run("node", "iptables-nft", *command.split())
    for i in range(6):
        station.folder.put(endpoints("web", EP12 if i % 2 else EP11), service(f"new-{i}", f"10.96.1.{i + 1}"))
        until(lambda i=i: answers(lab, "client", WEB, EP12 if i % 2 else EP11))  # type: ignore[misc]
    lab.run("node", "iptables-nft", "-t", "nat", "-F", names.SERVICES)
    running.says("restored")
    assert running.log().count("restored") == 1
