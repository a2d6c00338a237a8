"""Other programs' chains that drop forwarded packets by default: nftables mode names them, and the remedy that it names works."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station, ask
from tests.lab.topology import EP11, EP11_6, Lab

WEB, WEB6 = "10.96.0.10", "fd00:10:96::a"
BASE = "add table {0} filter; add chain {0} filter FORWARD {{ type filter hook forward priority 0; policy drop; }}"


@pytest.fixture
def station(lab: Lab, tmp_path: Path) -> Iterator[Station]:
    station = Station(lab, tmp_path, mode="nftables")
    station.folder.put(
        service("web", WEB, WEB6), endpoints("web", EP11), endpoints("web", EP11_6, name="web-6")
    )
    yield station
    for program in "iptables-legacy", "ip6tables-legacy":
        lab.run("node", program, "-P", "FORWARD", "ACCEPT")
        lab.run("node", program, "-F", "FORWARD")
    lab.run("node", "nft", "flush", "ruleset")


@pytest.mark.parametrize(
    ("family", "named"), [("ip", {"IPv4"}), ("ip6", {"IPv6"}), ("inet", {"IPv4", "IPv6"})]
)
def test_a_chain_of_nftables(lab: Lab, station: Station, family: str, named: set[str]) -> None:
    lab.run("node", "nft", "-f", "-", given=BASE.format(family))
    with station.running() as daemon:
        lines = [line for line in daemon.log().splitlines() if "drops forwarded packets by default" in line]
        assert {each for each in ("IPv4", "IPv6") if any(f"{each}: " in line for line in lines)} == named
        assert all(f"chain FORWARD of nftables table {family} filter" in line for line in lines)
        front = WEB if "IPv4" in named else WEB6
        assert ask(lab, "client", front, patience=1.5) == "TimeoutError"
        lab.run("node", "nft", "add", "rule", family, "filter", "FORWARD", "ct", "status", "dnat", "accept")
        assert ask(lab, "client", front) in {EP11, EP11_6}


@pytest.mark.parametrize(
    ("program", "family", "front"), [("iptables-legacy", "IPv4", WEB), ("ip6tables-legacy", "IPv6", WEB6)]
)
def test_the_legacy_chain(lab: Lab, station: Station, program: str, family: str, front: str) -> None:
    lab.run("node", program, "-A", "FORWARD", "-p", "tcp", "--dport", "9", "-j", "ACCEPT")
    lab.run("node", program, "-P", "FORWARD", "DROP")
    with station.running() as daemon:
        daemon.says(
            f"{family}: chain FORWARD of the legacy iptables table filter drops forwarded packets by default"
        )
        assert daemon.log().count("drops forwarded packets by default") == 1
        assert ask(lab, "client", front, patience=1.5) == "TimeoutError"
        lab.run("node", program, *["-I", "FORWARD", "-m", "conntrack", "--ctstate", "DNAT", "-j", "ACCEPT"])
        assert ask(lab, "client", front) in {EP11, EP11_6}


def test_a_policy_to_accept_is_not_named(lab: Lab, station: Station) -> None:
    lab.run("node", "nft", "-f", "-", given=BASE.format("ip").replace("drop", "accept"))
    lab.run("node", "iptables-legacy", "-A", "FORWARD", "-p", "tcp", "--dport", "9", "-j", "DROP")
    with station.running() as daemon:
        assert ask(lab, "client", WEB) == EP11
        assert "drops forwarded packets" not in daemon.log()
