"""The iptables backend on tables in memory."""

import re
from collections.abc import Iterator

from kubeproxy.api import types
from kubeproxy.backends.fake_tables import BUILTIN, FakeTables
from kubeproxy.backends.iptables import names
from kubeproxy.backends.iptables.compile import SHARED
from kubeproxy.backends.iptables.driver import IPTablesDriver
from kubeproxy.backends.programs import Variant
from kubeproxy.model.node import NodeConfig
from tests.fakes.cluster import NODE, Proxy, endpoints, service

VARIANTS: tuple[Variant, ...] = ("legacy", "nf_tables")
Rules = dict[tuple[str, str], list[str]]


class Rig(Proxy):
    """A proxy and its tables."""

    def __init__(self, tables: FakeTables | None = None, node: NodeConfig = NODE) -> None:
        self.tables = tables or FakeTables()
        super().__init__(IPTablesDriver(self.tables, counters=True, drop_invalid=True), node)

    def sent(self) -> list[tuple[str, list[str]]]:
        """The inputs since the last call: table and lines."""
        found = [(table, text.splitlines()) for table, text in self.tables.inputs]
        self.tables.inputs.clear()
        return found

    def restarted(self, node: NodeConfig | None = None) -> "Rig":
        """Another run over the same tables that has heard the same; perhaps the node is another now."""
        other = Rig(self.tables, node or self.node)
        other.state = self.state
        self.tables.inputs.clear()
        return other

    def fresh(self) -> "Rig":
        """Another run that has heard the same, over tables of its own, after its first sync."""
        other = Rig(FakeTables(self.tables.variant), self.node)
        other.state = self.state
        assert not other.full()
        return other

    def rules(self) -> Rules:
        """All rules."""
        return rules(self.tables)


def rules(tables: FakeTables) -> Rules:
    """All rules, sorted where their order says nothing: among Services, and among jumps out of the kernel's chains.

    The rules that must be last are last.
    """
    found: Rules = {}
    for table, chains in tables.tables.items():
        for chain, held in chains.items():
            loose = (table, chain) in SHARED or chain in BUILTIN[table]
            tail = [rule for rule in held if "NOTE: this must be the last rule" in rule]
            body = [rule for rule in held if rule not in tail]
            assert held[len(held) - len(tail) :] == tail
            found[table, chain] = [*(sorted(body) if loose else body), *tail]
    return found


def chains_of(lines: list[str]) -> set[str]:
    """The chains an input speaks of, as places or as targets."""
    return {chain for line in lines for chain in re.findall(r"\bKUBE-[A-Z0-9-]+\b", line)}


def places(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Verb and chain of each line."""
    for line in lines:
        if line.startswith(":"):
            yield ":", line[1:].split(" ")[0]
        else:
            verb, chain, *_ = line.split(" ")
            yield verb, chain


def suffix(name: str, endpoint: str = "", protocol: str = "tcp") -> str:
    """The suffix of a Service's chains, or of one endpoint's."""
    return names.suffix(name + protocol + endpoint)


def rich() -> Iterator[types.Service | types.EndpointSlice]:
    """Services of every kind, of both families."""
    port = types.ServicePort
    yield service("plain", "10.96.0.1", "fd00:10:96::1")
    yield service("none", "10.96.0.2", "fd00:10:96::2", ports=[port(80, node_port=30002)])
    yield service(
        "node",
        "10.96.0.3",
        "fd00:10:96::3",
        type="NodePort",
        ports=[port(80, "http", node_port=30080), port(53, "dns", "UDP", 30053)],
        external_traffic_policy="Local",
        internal_traffic_policy="Local",
    )
    yield service(
        "balanced",
        "10.96.0.4",
        "fd00:10:96::4",
        type="LoadBalancer",
        ports=[port(443, node_port=30443)],
        balancer=["203.0.113.4", "2001:db8:203::4"],
        external_ips=("203.0.113.44", "2001:db8:203::44"),
        load_balancer_source_ranges=("192.0.2.0/24", "2001:db8:2::/64"),
        session_affinity="ClientIP",
    )
    yield service(
        "local",
        "10.96.0.5",
        "fd00:10:96::5",
        type="LoadBalancer",
        ports=[port(443, node_port=30444)],
        balancer=["203.0.113.5", "2001:db8:203::5"],
        external_traffic_policy="Local",
        health_check_node_port=31000,
    )
    for family, net in (("4", "10.244."), ("6", "fd00:10:244:")):
        near, far = (
            ([f"{net}1.11", f"{net}1.12"], [f"{net}2.21"])
            if family == "4"
            else (
                [f"{net}1::b", f"{net}1::c"],
                [f"{net}2::15"],
            )
        )
        yield endpoints("plain", *near, *far, name=f"plain-{family}", local=near)
        yield endpoints("node", *near, *far, name=f"http-{family}", port_name="http", local=near)
        yield endpoints("node", *near, name=f"dns-{family}", port_name="dns", protocol="UDP", local=near)
        yield endpoints("balanced", *near, *far, name=f"balanced-{family}", local=near)
        yield endpoints("local", *far, name=f"local-{family}")
