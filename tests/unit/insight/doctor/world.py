"""A node in memory without any fault, which tests then break."""

import asyncio
from pathlib import Path
from typing import Any

import yaml
from msgspec import structs

from kubeproxy.backends.base import KernelComparison
from kubeproxy.backends.nftables import layout
from kubeproxy.config.commandline import parse
from kubeproxy.config.load import load
from kubeproxy.insight.doctor.facts import (
    Facts,
    FlowCount,
    LegacyTable,
    Part,
    Probes,
    RunningDaemon,
    Sample,
    Tracking,
)
from kubeproxy.insight.doctor.gather import gather
from kubeproxy.insight.origin import Origin
from kubeproxy.insight.snapshot import take
from kubeproxy.linux.instance import Holder
from kubeproxy.linux.process import RunningProgram
from kubeproxy.machine.fake import FakeMachine
from kubeproxy.model.plan import Front, Key
from kubeproxy.netlink.nft.messages import FORWARD, IP, PREROUTING, Hook
from kubeproxy.netlink.nft.objects import AnyChain

NOW = 1_000_000.0
API = ("shop", "api")
LISTENS = "  sl  local_address rem_address   st\n   0: {} 00000000:0000 0A 0\n"
"""A line of /proc/net/tcp."""


def service(name: str, ip: str, port: int, protocol: str = "TCP", **spec: Any) -> dict[str, Any]:
    ports = [{"name": "main", "port": port, "protocol": protocol}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": ip, "ports": ports, **spec},
    }


def endpoint(address: str, node: str = "n1", **more: Any) -> dict[str, Any]:
    return {"addresses": [address], "nodeName": node, "hints": {"forZones": [{"name": "z1"}]}, **more}


def endpoint_slice(
    service_name: str, port: int, *endpoints: dict[str, Any], protocol: str = "TCP"
) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "addressType": "IPv4",
        "metadata": {
            "name": f"{service_name}-1",
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": service_name},
        },
        "ports": [{"name": "main", "port": port, "protocol": protocol}],
        "endpoints": list(endpoints),
    }


def chain(
    table: str, name: str, family: int = IP, hook: Hook | None = None, *, drops: bool = False
) -> AnyChain:
    return AnyChain(family, table, name, hook, drops)


FORWARD_HOOK = Hook("filter", FORWARD, 0)
NAT_HOOK = Hook("nat", PREROUTING, -100)


class World:
    """A node, its cluster and its kube-proxy; every attribute may be changed before `facts`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.machine = FakeMachine(["127.0.0.1", "192.0.2.1", "10.244.1.1"])
        self.machine.settings |= {
            "net/ipv4/ip_local_port_range": "32768\t60999",
            "net/ipv4/ip_local_reserved_ports": "",
            "net/ipv4/neigh/default/gc_thresh3": "1024",
            "net/ipv4/conf/all/route_localnet": "0",
            "net/ipv4/conf/all/arp_ignore": "0",
            "net/ipv4/conf/all/arp_announce": "0",
            "net/ipv4/conf/all/rp_filter": "0",
            "net/ipv4/conf/eth0/rp_filter": "0",
            "net/netfilter/nf_conntrack_max": "262144",
            "net/netfilter/nf_conntrack_buckets": "65536",
            "net/netfilter/nf_conntrack_tcp_timeout_established": "86400",
            "net/netfilter/nf_conntrack_tcp_timeout_close_wait": "3600",
            "net/netfilter/nf_conntrack_tcp_be_liberal": "0",
            "net/netfilter/nf_conntrack_tcp_loose": "1",
        }
        self.machine.programs = [
            RunningProgram(1, "systemd", "systemd"),
            RunningProgram(7, "kube-proxy", "python3.11"),
        ]
        self.machine.lock_holder = Holder(7, 0)
        self.machine.files["stat/arp_cache"] = b"entries\n00000010 0\n"
        self.config: dict[str, Any] = {"mode": "nftables", "clusterCIDR": "10.244.0.0/16"}
        self.node: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
        }
        self.api = service("api", "10.96.0.10", 80, type="NodePort")
        self.api["spec"]["ports"][0]["nodePort"] = 30080
        self.api_slice = endpoint_slice("api", 8080, endpoint("10.244.1.11"), endpoint("10.244.2.12", "n2"))
        self.more: list[dict[str, Any]] = [
            service("dns", "10.96.0.53", 53, "UDP"),
            endpoint_slice("dns", 5353, endpoint("10.244.1.53"), protocol="UDP"),
        ]
        self.samples = [
            *(
                Sample("kubeproxy_watch_age_seconds", {"kind": kind}, 12.0)
                for kind in ("Service", "EndpointSlice")
            ),
            *(
                Sample("kubeproxy_watch_connected", {"kind": kind}, 1.0)
                for kind in ("Service", "EndpointSlice")
            ),
            Sample("kubeproxy_sync_proxy_rules_duration_seconds_count", {"ip_family": "IPv4"}, 100.0),
            Sample("kubeproxy_sync_proxy_rules_last_timestamp_seconds", {"ip_family": "IPv4"}, NOW - 300),
            Sample(
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", {"ip_family": "IPv4"}, NOW - 301
            ),
        ]
        self.reasons: Part[tuple[str, ...]] = Part(())
        self.comments: dict[str, str] = {"IPv4": layout.COMMENT}
        self.chains = [
            chain(layout.TABLE, "nat-prerouting", hook=NAT_HOOK),
            chain("nat", "PREROUTING", hook=NAT_HOOK),
            chain("filter", "FORWARD", hook=FORWARD_HOOK),
            chain("filter", "KUBE-FIREWALL"),
        ]
        self.legacy: list[LegacyTable] = []
        self.entries = 50
        self.counters = {"insert": 1_000_000, "insert_failed": 20, "drop": 0, "early_drop": 0, "invalid": 50}
        self.flows = [
            FlowCount("TCP", ("10.96.0.10", 80), ("10.244.1.11", 8080), "ESTABLISHED", True, False, 40),
            FlowCount("TCP", ("10.96.0.10", 80), ("10.244.1.11", 8080), "SYN_SENT", False, False, 1),
            FlowCount("UDP", ("10.96.0.53", 53), ("10.244.1.53", 5353), "REPLIED", True, False, 9),
        ]
        self.routes = {"10.96.0.10": True}
        self.seen = {("10.244.1.11", 8080): "", ("10.244.2.12", 8080): ""}
        self.fronts: dict[tuple[Key, Front], str] = {(API, ("10.96.0.10", "TCP", 80)): ""}
        self.rules = KernelComparison()
        self.changes: dict[str, Any] = {}

    def flow(
        self, count: int, state: str, endpoint: tuple[str, int], front: tuple[str, int], protocol: str = "TCP"
    ) -> None:
        """Adds tracked flows."""
        replied = state not in {"SYN_SENT", "UNREPLIED"}
        self.flows.append(FlowCount(protocol, front, endpoint, state, replied, False, count))

    def sample(self, name: str, value: float, **labels: str) -> None:
        """Replaces a metric."""
        self.samples = [s for s in self.samples if s.name != name]
        self.samples.append(Sample(name, labels or {"ip_family": "IPv4"}, value))

    def facts(self, **options: Any) -> Facts:
        """What is read on this node."""
        manifests = self.folder / "manifests"
        manifests.mkdir(exist_ok=True)
        (manifests / "a.yaml").write_text(
            yaml.safe_dump_all([self.node, self.api, self.api_slice, *self.more])
        )
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            **self.config,
        }
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config))
        flags = [f"--config={self.folder}/config.yaml", f"--manifests={manifests}", "--hostname-override=n1"]
        loaded = load(parse(flags, "linux"), "linux")
        taken = asyncio.run(take(Origin(loaded), self.machine, patience=5))
        found = gather(self.machine, Part(taken), Part(loaded), costly=(), **options)
        if not any(sample.name == "kubeproxy_services" for sample in self.samples):
            self.sample("kubeproxy_services", len(found.plans["IPv4"]))
        holder = found.daemon().holder
        daemon = RunningDaemon(holder, Part(reason="in memory"), self.reasons, Part(tuple(self.samples)), NOW)
        services = dict.fromkeys(self.seen, (API,))
        parts: dict[str, Any] = {
            "daemon": daemon,
            "table_comments": self.comments,
            "chains": tuple(self.chains),
            "legacy": tuple(self.legacy),
            "tracking": Tracking(self.entries, 262144, self.counters, tuple(self.flows)),
            "routes": self.routes,
            "rules": {"IPv4": self.rules},
            "probes": Probes(self.seen, self.fronts, services),
            **self.changes,
        }
        made = {name: value if isinstance(value, Part) else Part(value) for name, value in parts.items()}
        return structs.replace(found, **made)
