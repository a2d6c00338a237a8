"""Connections to endpoints that were removed end, where the Service asks for it; no other connection is touched."""

import contextlib
import errno
import re
import socket
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.api.addresses import family_of
from kubeproxy.backends.base import SyncError
from kubeproxy.insight import daemon
from kubeproxy.machine.linux import LinuxMachine
from kubeproxy.model.flows import place
from kubeproxy.netlink import conntrack
from kubeproxy.netlink.conntrack import TCP
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import Station, until
from tests.kernel.traffic import TALK_PORT, talkers
from tests.lab import netns
from tests.lab.topology import EP11, EP11_6, EP12, EP12_6, NODE_NAME, Lab

WEB, WEB6, PLAIN, NODE_PORT = "10.96.0.10", "fd00:10:96::a", "10.96.0.11", 30080
EACH = 12
ENDS = types.Annotations(removed_endpoints="end-connections")
Client = tuple[socket.socket, str]
"""A connection, and the endpoint it is with."""


@pytest.fixture(params=["nftables", "iptables", "userspace"])
def mode(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def slices(name: str, *addresses: str, terminating: str = "") -> types.EndpointSlice:
    family = "-6" if ":" in addresses[0] else "-4"
    made = endpoints(name, *addresses, name=name + family, port=TALK_PORT, local=addresses, node=NODE_NAME)
    conditions = types.EndpointConditions(ready=False, serving=True, terminating=True)
    return replace(
        made,
        endpoints=tuple(
            replace(each, conditions=conditions) if terminating in (each.addresses or ()) else each
            for each in made.endpoints or ()
        ),
    )


@contextlib.contextmanager
def served(lab: Lab, path: Path, **config: Any) -> Iterator[Station]:
    """Two Services with the same endpoints, of which one asks for the end of connections."""
    made = Station(lab, path, **config)
    web = service("web", WEB, WEB6, type="NodePort", ports=[types.ServicePort(80, node_port=NODE_PORT)])
    made.folder.put(
        replace(web, metadata=replace(web.metadata, annotations=ENDS)),
        service("plain", PLAIN),
        *(slices(name, EP11, EP12) for name in ("web", "plain")),
        slices("web", EP11_6, EP12_6),
    )
    with talkers(lab, "ep11", "ep12"), made.running():
        yield made


OPENED: list[socket.socket] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """All connections are closed in the end."""
    yield
    while OPENED:
        OPENED.pop().close()


def connected(lab: Lab, role: str, address: str, port: int = 80, number: int = EACH) -> list[Client]:
    """Open connections to a front, each with its endpoint as connection tracking has it."""
    found = []
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for _ in range(number):
        with netns.inside(lab.name(role)):
            client = socket.socket(family, socket.SOCK_STREAM)
        OPENED.append(client)
        client.settimeout(60)
        client.connect((address, port))
        say(client)
        found.append(client)
    with netns.inside(lab.name("node")):
        by_port = dict(carried(address, port) or tracked(family, address, port))
    return [(client, by_port[client.getsockname()[1]]) for client in found]


def tracked(family: socket.AddressFamily, address: str, port: int) -> Iterator[tuple[int, str]]:
    """The port of each client of a front, and the address of its endpoint."""
    names = {place(each, TALK_PORT): each for each in (EP11, EP12, EP11_6, EP12_6)}
    for flow in conntrack.flows(LinuxMachine(), family, TCP, destination=place(address, port)):
        yield int.from_bytes(flow.client[-2:]), names[flow.source]


def carried(address: str, port: int) -> list[tuple[int, str]]:
    """The same from a relay; empty if there is none.

    Clients of the node itself are masqueraded on the way to it, so it may see another port of them.
    """
    group = f"default/{'plain' if address == PLAIN else 'web'}/TCP"
    try:
        listed = daemon.flows(LinuxMachine(), family_of(address), group, (address, port), (), 1000)
    except SyncError:
        return []
    kind = ("-f", "ipv6") if ":" in address else ()
    found = subprocess.run(
        ["conntrack", "-L", "-p", "tcp", *kind], check=True, capture_output=True, text=True
    ).stdout
    ports = {int(seen): int(own) for own, seen in re.findall(r" sport=(\d+) dport=.* dport=(\d+)", found)}
    return [(ports[each.client[1]], each.target[0]) for each in listed]


def say(client: socket.socket) -> None:
    """The connection works."""
    client.sendall(b"word")
    assert client.recv(4, socket.MSG_WAITALL) == b"word"


def is_over(client: socket.socket) -> bool:
    """Whether the client has noticed the end of its connection, without sending anything."""
    return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in {errno.ECONNRESET, errno.ECONNABORTED}


def is_reset(client: socket.socket) -> bool:
    """Whether the client is reset when it sends."""
    client.settimeout(0.1)
    try:
        client.sendall(b"word")
        client.recv(4)
    except TimeoutError:
        return False
    except OSError:
        return True
    return False


def of(clients: list[Client], *endpoints: str) -> list[socket.socket]:
    found = [client for client, endpoint in clients if endpoint in endpoints]
    assert found
    return found


def test_talkers_are_reset_and_bystanders_are_not(lab: Lab, tmp_path: Path, mode: str) -> None:
    with served(lab, tmp_path, mode=mode) as station:
        web = connected(lab, "client", WEB)
        outside = connected(lab, "out", "192.0.2.1", NODE_PORT)
        six = connected(lab, "client", WEB6)
        own = connected(lab, "node", WEB)
        plain = connected(lab, "client", PLAIN)
        with netns.inside(lab.name("client")):
            direct = socket.create_connection((EP11, TALK_PORT), 60)
        OPENED.append(direct)
        station.folder.put(slices("web", EP11, EP12, terminating=EP11))
        until(lambda: {endpoint for _, endpoint in connected(lab, "client", WEB)} == {EP12})
        for client, _ in (*web, *outside, *six, *own, *plain):
            say(client)  # it only terminates
        station.folder.put(slices("web", EP12), slices("plain", EP12))
        over = [*of(web, EP11), *of(outside, EP11), *of(own, EP11)]
        for client in over:
            until(partial(is_reset, client))
        for client in (*of(web, EP12), *of(outside, EP12), *of(own, EP12), *of(six, EP11_6, EP12_6), direct):
            say(client)
        for client, _ in plain:
            say(client)
        station.folder.put(slices("web", EP12_6))
        for client in of(six, EP11_6):
            until(partial(is_reset, client))
        for client in of(six, EP12_6):
            say(client)


@pytest.mark.parametrize(
    "settings",
    [{"mode": "nftables", "destroySockets": True}, {"mode": "userspace"}],
    ids=lambda each: each["mode"],
)
def test_those_who_wait_notice_it(lab: Lab, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Their sockets are destroyed, or reset by the relay."""
    with served(lab, tmp_path, **settings) as station:
        web, six, own = (connected(lab, *at) for at in (("client", WEB), ("client", WEB6), ("node", WEB)))
        plain = connected(lab, "client", PLAIN)
        station.folder.put(slices("web", EP12), slices("web", EP12_6), slices("plain", EP12))
        for client in (*of(web, EP11), *of(six, EP11_6), *of(own, EP11)):
            until(partial(is_over, client))
        for client in (*of(web, EP12), *of(six, EP12_6), *of(own, EP12), *of(plain, EP11, EP12)):
            say(client)


@pytest.mark.vm
def test_in_ipvs_mode(lab: Lab, tmp_path: Path) -> None:
    """Where it is IPVS that remembers connections."""
    with served(lab, tmp_path, mode="ipvs") as station:
        web = connected(lab, "client", WEB, number=4)
        outside = connected(lab, "out", "192.0.2.1", NODE_PORT, number=2)
        plain = connected(lab, "client", PLAIN, number=2)
        station.folder.put(slices("web", EP11, EP12, terminating=EP11))
        until(lambda: {endpoint for _, endpoint in connected(lab, "client", WEB, number=2)} == {EP12})
        for client, _ in (*web, *outside):
            say(client)
        station.folder.put(slices("web", EP12), slices("plain", EP12))
        for client in (*of(web, EP11), *of(outside, EP11)):
            until(partial(is_reset, client))
        for client in (*of(web, EP12), *of(outside, EP12), *of(plain, EP11, EP12)):
            say(client)


def test_in_userspace_mode_they_end_also_if_no_endpoint_is_left(lab: Lab, tmp_path: Path) -> None:
    with served(lab, tmp_path, mode="userspace") as station:
        web, six = connected(lab, "client", WEB), connected(lab, "client", WEB6)
        plain = connected(lab, "client", PLAIN)
        for name in ("web", "plain"):
            station.folder.put(replace(slices(name, EP11), endpoints=()))
        for client, _ in web:
            until(partial(is_over, client))
        for client, _ in (*six, *plain):
            say(client)
        station.folder.path.joinpath("Service.default.web.json").unlink()
        until(lambda: not station.lab.run("node", "nft", "list", "table", "ip6", "kube-proxy").count(WEB6))
        for client, _ in six:
            say(client)  # a Service that is deleted keeps its connections


@pytest.mark.vm
def test_sockets_are_destroyed_in_ipvs_mode(lab: Lab, tmp_path: Path) -> None:
    with served(lab, tmp_path, mode="ipvs", destroySockets=True) as station:
        web, plain = (connected(lab, "client", address, number=2) for address in (WEB, PLAIN))
        station.folder.put(slices("web", EP12), slices("plain", EP12))
        for client in of(web, EP11):
            until(partial(is_over, client))
        for client in (*of(web, EP12), *of(plain, EP11, EP12)):
            say(client)
