"""Session affinity in nftables mode, with packets: who stays with its endpoint when the timeout changes."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubeproxy.api import types
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station, until
from tests.lab.topology import EP11, EP12, EP13, Lab

WEB = "10.96.0.10"
CLIENTS = [f"198.18.0.{i}" for i in range(1, 31)]


@pytest.fixture
def clients(lab: Lab) -> Iterator[Lab]:
    """The lab with thirty more addresses on its node, each a client."""
    for address in CLIENTS:
        lab.run("node", "ip", "address", "add", f"{address}/32", "dev", "lo")
    yield lab
    for address in CLIENTS:
        lab.run("node", "ip", "address", "del", f"{address}/32", "dev", "lo")


def sticky(seconds: int) -> types.Service:
    config = types.SessionAffinityConfig(types.ClientIPConfig(seconds))
    return service("web", WEB, session_affinity="ClientIP", session_affinity_config=config)


def served(lab: Lab) -> dict[str, str]:
    """Which endpoint each client gets."""
    found = {}
    for address in CLIENTS:
        with lab.inside("node"):
            client = socket.socket()
        with client:
            client.settimeout(5)
            client.bind((address, 0))
            client.connect((WEB, 80))
            found[address] = client.recv(256).decode().split(" ")[0]
    return found


def timeouts(lab: Lab) -> set[str]:
    """The timeouts of the sets of clients."""
    listed = lab.run("node", "nft", "list", "sets", "ip")
    return {line.strip() for line in listed.splitlines() if line.strip().startswith("timeout ")}


def test_another_timeout_forgets_no_client(clients: Lab, tmp_path: Path) -> None:
    """In a running daemon, longer and shorter, and from one run to the next."""
    station = Station(clients, tmp_path, mode="nftables")
    station.folder.put(sticky(600), endpoints("web", EP11, EP12, EP13))
    with station.running():
        before = served(clients)
        assert len(set(before.values())) == 3
        for seconds, shown in (900, "timeout 15m"), (300, "timeout 5m"):
            station.folder.put(sticky(seconds))
            until(lambda shown=shown: timeouts(clients) == {shown})  # type: ignore[misc]
            assert served(clients) == before
    station.folder.put(sticky(1200))
    with station.running():
        assert timeouts(clients) == {"timeout 20m"}
        assert served(clients) == before


def test_another_timeout_applies_to_clients_that_come_again(clients: Lab, tmp_path: Path) -> None:
    station = Station(clients, tmp_path, mode="nftables")
    station.folder.put(sticky(600), endpoints("web", EP11, EP12, EP13))
    with station.running():
        before = served(clients)
        station.folder.put(sticky(2))
        until(lambda: timeouts(clients) == {"timeout 2s"})
        assert served(clients) == before, "they are known, and from now on for two seconds"
        listed = clients.run("node", "nft", "list", "sets", "ip")
        assert "expires 9m" not in listed, "each was made young again with the new timeout"
