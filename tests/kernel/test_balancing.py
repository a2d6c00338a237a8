"""How connections are divided, by packets: shares of weights, and endpoints of Maglev hashing on several nodes."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from socket import AF_INET, AF_INET6, inet_pton
from typing import Any, Literal

import pytest
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.api.addresses import IPV6
from kubeproxy.backends.base import Failures
from kubeproxy.backends.iptables import mode as iptables_mode
from kubeproxy.backends.iptables.driver import IPTablesDriver
from kubeproxy.backends.nftables.driver import NFTablesDriver
from kubeproxy.backends.nftables.mode import MODE
from kubeproxy.backends.programs import Variant
from kubeproxy.model.distribution import chosen
from kubeproxy.model.jenkins import jhash, scaled
from kubeproxy.model.maglev import table
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import PortPlan
from kubeproxy.netlink.nft.kernel import NftKernel
from tests.fakes.cluster import Proxy, annotated, endpoints, service
from tests.kernel import burst
from tests.kernel.daemons import Station, asked, until
from tests.kernel.spaces import Space
from tests.lab import netns
from tests.lab.topology import EP11, EP12, NODE_NAME, Lab
from tests.machines import MACHINE

WEB, WEB6 = "10.96.0.10", "fd00:10:96::a"
NODES = (
    NodeConfig(name="here", address="192.0.2.1", balancing=MODE.balancing),
    NodeConfig(family=IPV6, name="here", address="2001:db8:2::1", balancing=MODE.balancing),
)
MANY = 100_000
REMEMBERED = 50_000
"""More clients would not fit into the sets of session affinity."""


OPENED: list[NftKernel] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """All sockets are closed in the end."""
    yield
    while OPENED:
        OPENED.pop().close()


class Node(Proxy):
    """A node: a namespace with the rules of nftables mode."""

    def __init__(self, space: str, node: NodeConfig = NODES[0]) -> None:
        self.space = space
        burst.prepare(space)
        with netns.inside(space):
            self.kernel = NftKernel(MACHINE)
            OPENED.append(self.kernel)
        super().__init__(NFTablesDriver(self.kernel, node), node)

    def port(self) -> PortPlan:
        return self.plans()["default", "web"].ports[0]


def iptables(space: str, variant: Variant) -> Proxy:
    """A node with the rules of iptables mode."""
    burst.prepare(space)
    with netns.inside(space):
        made = Space(space, variant=variant)
        made.node = replace(NODES[0], balancing=iptables_mode.MODE.balancing)
        return Inside(space, made)


class Inside(Proxy):
    """A proxy whose programs run in a namespace."""

    def __init__(self, name: str, space: Space) -> None:
        self._name = name
        super().__init__(IPTablesDriver(space.tables, counters=True, drop_invalid=True), space.node)

    def full(self) -> Failures:
        """See `Proxy`."""
        with netns.inside(self._name):
            return super().full()


def web(protocol: str = "UDP", **annotations: str) -> types.Service:
    made = service("web", WEB, WEB6, ports=[types.ServicePort(80, protocol=protocol)])
    return annotated(made, **annotations)


def addresses(number: int, *, ipv6: bool = False) -> list[str]:
    return [f"fd00:10:244:9::{i:x}" if ipv6 else f"10.244.9.{i}" for i in range(1, number + 1)]


@pytest.fixture
def spaces(space: str) -> Iterator[tuple[str, str]]:
    """Two nodes."""
    other = f"{space}-2"
    netns.create([other])
    try:
        netns.finish(netns.ip_batch("link set lo up", namespace=other))
        yield space, other
    finally:
        netns.delete([other])


@pytest.mark.parametrize(
    ("variant", "affinity"),
    [("", "None"), ("", "ClientIP"), ("legacy", "None"), ("nf_tables", "None"), ("legacy", "ClientIP")],
)
def test_shares_of_weights(space: str, variant: Variant | Literal[""], affinity: str) -> None:
    """In nftables mode and in iptables mode, within one per cent."""
    node = Node(space) if not variant else iptables(space, variant)
    made = web(weights="address:10.244.9.1=7 address:10.244.9.2=2")
    made = replace(made, spec=replace(made.spec, session_affinity=affinity))
    node.tell(made, endpoints("web", *addresses(3), protocol="UDP"))
    assert not node.full()
    counting = burst.Counting(space, addresses(3))
    number = MANY if affinity == "None" else REMEMBERED
    burst.send(space, burst.clients(number), (WEB, 80))
    counts = counting.counts()
    assert sum(counts.values()) == number
    for address, weight in zip(addresses(3), (7, 2, 1), strict=True):
        assert abs(counts[address] / number - weight / 10) < 0.01


@pytest.mark.parametrize("by", ["source", "source-and-port"])
@pytest.mark.parametrize("ipv6", [False, True])
def test_the_kernel_s_hash_is_the_model_s(space: str, by: str, ipv6: bool) -> None:
    node = Node(space, NODES[ipv6])
    rules = "address:10.244.9.2=3 address:fd00:10:244:9::2=3"
    node.tell(
        web(balancing="maglev", maglev_hash=by, weights=rules),
        endpoints("web", *addresses(5, ipv6=ipv6), protocol="UDP"),
    )
    assert not node.full()
    front = (WEB6 if ipv6 else WEB, 80)
    sent = burst.clients(2000, ipv6=ipv6)
    burst.send(space, sent, front)
    found = burst.reached(space, front)
    assert found.keys() == set(sent)
    port = node.port()
    distribution = port.cluster_distribution
    assert distribution is not None
    slots = table(port.cluster, distribution.weights, distribution.table_size)
    for (source, number), endpoint in found.items():
        wanted = chosen(port.cluster, distribution, source)
        if by == "source-and-port":
            assert wanted is None
            key = inet_pton(AF_INET6 if ipv6 else AF_INET, source) + number.to_bytes(2) + bytes(2)
            wanted = port.cluster[slots[scaled(jhash(key), distribution.table_size)]]
        assert wanted is not None
        assert wanted.address == endpoint
    shares = Counter(found.values())
    for address, weight in zip(addresses(5, ipv6=ipv6), (1, 3, 1, 1, 1), strict=True):
        assert abs(shares[address] / len(sent) - weight / 7) < 0.04


def test_a_client_has_the_same_endpoint_on_every_node(spaces: tuple[str, str]) -> None:
    """Whatever came in whichever order; and a connection that moves from one node to the other goes on."""
    first, second = (Node(space) for space in spaces)
    made = web("TCP", balancing="maglev", maglev_hash="source-and-port")
    them = addresses(9)
    first.tell(made, endpoints("web", *them))
    assert not first.full()
    second.tell(endpoints("web", "10.244.9.77", *them[3:]), made)
    assert not second.full()
    shuffled = random.Random(4).sample(them, len(them))
    second.tell(endpoints("web", *shuffled[:4], name="web-b"), endpoints("web", *shuffled[4:], name="web-a"))
    second.gone("EndpointSlice", "web-1")
    second.partial()
    sent = burst.clients(2000)
    for node in (first, second):
        burst.send(node.space, sent, (WEB, 80), acks=True)
    one, other = (burst.reached(node.space, (WEB, 80), acks=True) for node in (first, second))
    assert one == other
    assert one.keys() == set(sent)
    assert set(one.values()) == set(them)


def test_few_clients_move_when_an_endpoint_leaves(spaces: tuple[str, str]) -> None:
    before, after = (Node(space) for space in spaces)
    them = addresses(20)
    for node, there in ((before, them), (after, them)):
        node.tell(web(balancing="maglev"), endpoints("web", *there, protocol="UDP"))
        assert not node.full()
    after.tell(endpoints("web", *them[1:], protocol="UDP"))
    after.partial()
    sent = burst.clients(4000)
    for node in (before, after):
        burst.send(node.space, sent, (WEB, 80))
    old, new = (burst.reached(node.space, (WEB, 80)) for node in (before, after))
    stayed = [client for client in sent if old[client] != them[0]]
    moved = sum(old[client] != new[client] for client in stayed)
    assert moved / len(stayed) < 0.06
    assert them[0] not in new.values()


@pytest.mark.parametrize("mode", ["nftables", "iptables"])
def test_a_daemon_follows_the_annotations(lab: Lab, tmp_path: Path, mode: str) -> None:
    station = Station(lab, tmp_path, mode=mode)
    plain = service("web", WEB, ports=[types.ServicePort(80, node_port=30080)], type="NodePort")
    weighted = annotated(plain, weights=f"address:{EP11}=9, *=1")
    station.folder.put(weighted, endpoints("web", EP11, EP12, local=(EP11, EP12), node=NODE_NAME))
    with station.running():
        assert reachable(station) == {EP11: 0.9, EP12: 0.1}
        assert asked(lab, "client", WEB, times=60)[EP11] > 40
        assert kube_proxy(station, "verify")["same"]
        station.folder.put(annotated(plain, weights=f"address:{EP11}=0"))
        until(lambda: reachable(station) == {EP12: 1.0})
        assert set(asked(lab, "client", WEB)) == {EP12}
        station.folder.put(annotated(plain, balancing="maglev"))
        if mode == "iptables":
            until(lambda: reachable(station) == {EP11: 0.5, EP12: 0.5})
            return
        until(lambda: station_has_table(station))
        for role in ("client", "out", "node"):
            [only] = reachable(station, role)
            assert set(asked(lab, role, WEB)) == {only}
            if role != "node":  # which may send from another address there
                assert set(asked(lab, role, "192.0.2.1", 30080)) == {only}
        assert kube_proxy(station, "verify")["same"]
        found = kube_proxy(station, "explain", "--from", SOURCES["out"], "--to", f"{WEB}:80")
        slots = [
            rule["text"]
            for rule in found["rules"]
            if rule["text"].startswith("add element ip kube-proxy maglev-")
        ]
        [only] = reachable(station, "out")
        assert [only in slot for slot in slots] == [True], "of a thousand, the one that counts"


SOURCES = {"client": "10.244.1.100", "out": "198.51.100.7", "node": "node"}


def reachable(station: Station, role: str = "client") -> dict[str, float]:
    """The endpoints that a client can reach, and their shares, as `explain` has them."""
    found = kube_proxy(station, "explain", "--from", SOURCES[role], "--to", f"{WEB}:80")
    return {each["address"]: each["share"] for each in found["endpoints"]}


def station_has_table(station: Station) -> Any:
    return kube_proxy(station, "explain", "--from", "node", "--to", f"{WEB}:80")["stages"][-2][
        "text"
    ].startswith("Maglev hashing")


def kube_proxy(station: Station, *arguments: str) -> Any:
    """The answer of a command on the node."""
    environment = {**os.environ, "PATH": f"{station.config.parent / 'programs'}:{os.environ['PATH']}"}
    command = ["ip", "netns", "exec", station.lab.name("node"), sys.executable, "-m", "kubeproxy"]
    done = subprocess.run(
        [*command, arguments[0], "--json", *arguments[1:]],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)
