"""A cluster without a kernel: its plans for the lab's node, and where packets in the lab would go."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kubeproxy import host
from kubeproxy.api.addresses import FAMILIES, IPV4, IPV6, Family, family_of
from kubeproxy.config.load import load
from kubeproxy.hub import Hub
from kubeproxy.model.explain import Explanation, explain
from kubeproxy.model.manners import Manners
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import FORWARD, ServicePlan
from kubeproxy.model.verdict import Book, Packet, Verdict
from tests.lab import cases
from tests.lab.probe import SOME_LOST

LOCAL_ADDRESSES: Mapping[Family, tuple[str, ...]] = {
    IPV4: ("127.0.0.1", "192.0.2.1", "10.244.1.1"),
    IPV6: ("::1", "2001:db8:2::1", "fd00:10:244:1::1"),
}
WAN: Mapping[Family, str] = {IPV4: "192.0.2.1", IPV6: "2001:db8:2::1"}
BRIDGE: Mapping[Family, str] = {IPV4: "10.244.1.1", IPV6: "fd00:10:244:1::1"}
POD_NETWORK: Mapping[Family, str] = {IPV4: "10.244.1.", IPV6: "fd00:10:244:1::"}
CLIENTS: Mapping[str, tuple[Mapping[Family, str], str]] = {
    "pod": ({IPV4: "10.244.1.100", IPV6: "fd00:10:244:1::64"}, "cni0"),
    "endpoint": ({IPV4: "10.244.1.11", IPV6: "fd00:10:244:1::b"}, "cni0"),
    "remote-pod": ({IPV4: "10.244.2.200", IPV6: "fd00:10:244:2::c8"}, "wan"),
    "outside": ({IPV4: "198.51.100.7", IPV6: "2001:db8:198::7"}, "wan"),
}


class World:
    """A configuration file and a folder of manifests, planned for the lab's node."""

    @classmethod
    def of_case(cls, name: str, mode: str) -> "World":
        """A case of the oracle, in a mode."""
        with tempfile.TemporaryDirectory() as folder:
            return cls(*cases.write(name, mode, Path(folder)))

    def __init__(self, config: Path, manifests: Path) -> None:
        self.config = load({"config": str(config)}, "linux").config
        self.hub = Hub("bench-node")
        for file in manifests.iterdir():
            self.hear(file)
        self.nodes: dict[Family, NodeConfig] = {
            node.family: node.with_addresses(LOCAL_ADDRESSES[node.family])
            for node in host.host(self.config, "bench-node", self.hub.node, supported=FAMILIES).nodes
        }

    def hear(self, file: Path) -> None:
        """Takes in the objects of a manifest."""
        from kubeproxy.sources.documents import documents

        for _, decode in documents(file):
            self.hub.set(decode())

    def plans(self, family: Family) -> list[ServicePlan]:
        """The plans of a family."""
        planned = (self.hub.state.plan(key, self.nodes[family]) for key in self.hub.state.services)
        return [plan for plan in planned if plan is not None]

    def book(self, family: Family, manners: Manners) -> Book:
        """The plans of a family, to ask about packets."""
        return Book(
            self.plans(family),
            self.nodes[family],
            LOCAL_ADDRESSES[family],
            manners=manners,
            service_cidrs=self.hub.service_cidrs,
        )

    def verdicts(
        self, manners: Manners, fronts: Mapping[str, Iterable[str]]
    ) -> Iterator[tuple[str, str, Packet, Verdict]]:
        """Each client and each of its fronts, the packet one sends to the other, and where that goes."""
        books = {family: self.book(family, manners) for family in self.nodes}
        for client, asked in fronts.items():
            for front in asked:
                sent = packet(client, front, owned=manners.owns_addresses)
                yield client, front, sent, books[family_of(sent.destination)].verdict(sent)

    def explain(self, manners: Manners, sent: Packet) -> Explanation:
        """The explanation of what becomes of a packet."""
        family = family_of(sent.destination)
        node = self.nodes[family].with_service_cidrs(self.hub.service_cidrs)
        return explain(self.hub.state, node, LOCAL_ADDRESSES[family], manners, sent)


def parse_front(front: str) -> tuple[str, int, Any]:
    """Address, port and protocol of a front in the oracle's words, e.g. "clusterIP 10.96.0.1:80/tcp"."""
    address, _, port = front.split(" ")[1].rpartition(":")
    number, _, protocol = port.partition("/")
    return address, int(number), protocol.upper()


def packet(client: str, front: str, *, owned: bool = False) -> Packet:
    """The packet a client of the lab sends to a front; where Services' addresses are the node's own, they are `owned`."""
    address, port, protocol = parse_front(front)
    family = family_of(address)
    if client == "node":
        # A process speaks from the address it speaks to if that is its own, else from that towards the world.
        source = address if owned or address in LOCAL_ADDRESSES[family] else WAN[family]
        return Packet(source, address, port, protocol)
    addresses, interface = CLIENTS[client]
    return Packet(addresses[family], address, port, protocol, interface)


def outcome(client: str, sent: Packet, verdict: Verdict, *, owned: bool = False) -> str | list[str]:
    """What the client of the lab sees, in the oracle's words; where Services' addresses are the node's own, they are `owned`."""
    family = family_of(sent.destination)
    if verdict.action != FORWARD:
        own = sent.destination in LOCAL_ADDRESSES[family]
        # What is stopped on its way out is reported to the sender. IPVS drops what it has no real server for, and hands all
        # else to the rules itself.
        stopped = verdict.action == "reject" and verdict.port is not None if owned else not own
        if verdict.at_connect:
            return "ECONNREFUSED"
        if client == "node" and sent.protocol == "UDP" and verdict.action != "pass" and stopped:
            return "EPERM"
        if verdict.action == "reject":
            # Over IPv6 a TCP client takes the second rejection for one, a second later: longer than was recorded.
            return "no answer" if family == IPV6 and sent.protocol == "TCP" else "ECONNREFUSED"
        if verdict.action == "pass" and own:
            return "ECONNREFUSED"  # nobody listens there
        return "no answer"
    seen: set[str] = set()
    sources: set[str] = set()
    lost = False
    for backend in verdict.endpoints:
        here = backend.address.startswith(POD_NETWORK[family])
        own = backend.address in LOCAL_ADDRESSES[family]
        source = sent.source
        if verdict.at_connect and client == "node":
            source = backend.address if own else BRIDGE[family] if here else WAN[family]
        if verdict.masquerades(sent, backend) and (client == "node" or not own):
            source = BRIDGE[family] if here or own else WAN[family]
        elif client in {"remote-pod", "outside"} and not here and not own:
            lost = True  # it answers past the node
            continue
        seen.add(f"{backend.address}<-{source}")
        sources.add("client" if source == sent.source else "node")
    if verdict.port is not None and verdict.port.affinity and not lost:
        depends = len(sources) > 1 or client in {"node", "endpoint"}
        return ["*"] if depends else [f"*<-{sources.pop()}"]
    if not seen:
        return "no answer"
    return sorted(seen | ({SOME_LOST} if lost else set()))
