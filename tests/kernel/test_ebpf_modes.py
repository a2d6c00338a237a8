"""From ebpf mode to every other mode and back, in one process, while clients make new connections.

Sockets that the programs connect reach their endpoints by other paths than those of other modes: in between,
each connection takes one or the other. None fails, and in the end only what the last mode needs is there.
"""

import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from kubeproxy.api import types
from kubeproxy.linux.bpf.host import BpfHost, BpfPlaces
from tests.fakes.cluster import annotated, endpoints, service
from tests.kernel import bpffs
from tests.kernel.daemons import Station, asked, until
from tests.kernel.test_exchange import ConfigMap, becomes, fresh, in_force
from tests.kernel.traffic import Front, Traffic
from tests.lab import netns
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab
from tests.machines import MACHINE

WEB, EMPTY = "10.96.0.10", "10.96.0.11"
FROM_POD: Front = ("client", WEB, 80)
FROM_NODE: Front = ("node", WEB, 80)
FROM_OUTSIDE: Front = ("out", "192.0.2.1", 30080)


def test_sockets_are_connected_by_weight(lab: Lab, tmp_path: Path) -> None:
    """A Service with Maglev hashing is left to rules, which translate: getpeername is not changed back then."""
    heavy, hashed = "10.96.0.20", "10.96.0.21"
    with bpffs.places() as places:
        station = Station(lab, tmp_path, mode="ebpf")
        bpffs.configure(station.config, places, scope="all", strict=True, peerNames=False)
        for name, address, given in (
            ("heavy", heavy, {"weights": f"address:{EP11}=6"}),
            ("hashed", hashed, {"balancing": "maglev"}),
        ):
            station.folder.put(
                annotated(service(name, address), **given),
                endpoints(name, EP11, EP12, local=(EP11, EP12), node=NODE_NAME),
            )
        with station.running(), bpffs.inside(places):
            seen = asked(lab, "client", heavy, times=100)
            assert seen[EP11] > 2 * seen[EP12] > 0
            assert len(asked(lab, "client", hashed, times=10)) == 1
            for address, peers in ((heavy, {EP11, EP12}), (hashed, {hashed})):
                with netns.inside(lab.name("client")), socket.create_connection((address, 80), 60) as sock:
                    assert sock.getpeername()[0] in peers


def test_to_other_modes_and_back(lab: Lab, tmp_path: Path) -> None:
    through(
        lab,
        tmp_path,
        ["nftables", "ebpf", "userspace", "ebpf", "iptables"],
        [FROM_POD, FROM_NODE, FROM_OUTSIDE],
    )


@pytest.mark.vm
def test_to_ipvs_mode_and_back(lab: Lab, tmp_path: Path) -> None:
    """No process of the node is among the clients; see `test_exchange`."""
    through(lab, tmp_path, ["ipvs", "ebpf", "ipvs"], [FROM_POD, FROM_OUTSIDE])


def through(lab: Lab, path: Path, modes: Sequence[str], fronts: Sequence[Front]) -> None:
    """One mode after the other is configured, under traffic; what is left is what a fresh start leaves."""
    file = ConfigMap(path / "config")
    station = Station(lab, path)
    station.config = file.file
    station.folder.put(
        service("web", WEB, ports=[types.ServicePort(80, node_port=30080)]),
        endpoints("web", EP11, EP12, local=(EP11, EP12), node=NODE_NAME),
        service("empty", EMPTY),
    )
    wanted = fresh(lab, station, file, mode=modes[-1])
    with bpffs.places() as places, bpffs.inside(places):
        ebpf = {"scope": "all", "strict": True, "cgroup": places.cgroup, "pins": places.pins}
        file.write(mode=modes[0], ebpf=ebpf)
        with station.running() as daemon, Traffic(lab, fronts) as traffic:
            for count, mode in enumerate(modes[1:], 1):
                file.write(mode=mode, ebpf=ebpf)
                in_force(daemon, count, mode)
                until(lambda mode=mode: attached(places) == (mode == "ebpf"))  # type: ignore[misc]
                if mode == "ebpf":
                    a_socket_is_connected_to_an_endpoint(lab)
                traffic.wait()
            becomes(lab, wanted, modes[-1])


def attached(places: BpfPlaces) -> bool:
    """Whether anything is pinned."""
    return bool(BpfHost(MACHINE, places).folder("v1").names())


def a_socket_is_connected_to_an_endpoint(lab: Lab) -> None:
    """No packet has the Service's address, so a Service without endpoints refuses at once."""
    with netns.inside(lab.name("client")):
        with socket.create_connection((WEB, 80), 60) as sock:
            assert sock.getpeername() == (WEB, 80)
            assert sock.recv(99)
        with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
            sock.connect((EMPTY, 80))
