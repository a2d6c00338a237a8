"""Reads the facts from this host. Each part may fail by itself; nothing is changed."""

import asyncio
import errno
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Final, TypeVar

from kubeproxy.answers.snapshot import Snapshot
from kubeproxy.api.addresses import FAMILIES, IPV4, IPV6, Family, unpack
from kubeproxy.backends.base import SyncError, UnsupportedError
from kubeproxy.backends.nftables import layout
from kubeproxy.config.load import RunOptions
from kubeproxy.config.types import KubeProxyConfiguration
from kubeproxy.insight.doctor import ask, probe, rules
from kubeproxy.insight.doctor.check import Costly
from kubeproxy.insight.doctor.facts import (
    ConnectProgram,
    Facts,
    FlowCount,
    LegacyTable,
    ListeningSocket,
    Part,
    Probes,
    RunningDaemon,
    SettingsRead,
    Tracking,
    UnreadError,
)
from kubeproxy.linux import xtables
from kubeproxy.linux.bpf import pins
from kubeproxy.linux.bpf.host import BpfPlaces
from kubeproxy.linux.bpf.programs import Attach
from kubeproxy.machine.base import Machine
from kubeproxy.model.plan import Key, ServicePlan
from kubeproxy.netlink import conntrack
from kubeproxy.netlink.nft import objects
from kubeproxy.netlink.nft.kernel import NftKernel
from kubeproxy.netlink.nft.messages import IP, IP6, TableName

T = TypeVar("T")

MOST_FLOWS: Final = 300_000
"""So many tracked flows are read at most; reading one costs about 10 us."""

MOST_ROUTES: Final = 5
"""The routes to so many ClusterIPs of each family are looked up."""

MARKERS: Final = ("KUBE-SERVICES", "DOCKER", "ufw-", "cali-", "KUBE-ROUTER", "CILIUM_")
"""Names that are looked for in tables of legacy iptables."""

UNANSWERED: Final = frozenset({"SYN_SENT", "UNREPLIED"})
"""The states of flows without a reply."""

_PROTOCOLS: Final = {conntrack.TCP: "TCP", conntrack.UDP: "UDP", conntrack.SCTP: "SCTP"}
_CONNECT_HOOKS: Final[tuple[Attach, ...]] = ("connect4", "connect6", "sendmsg4", "sendmsg6")
_LEGACY: Final = {IPV4: ("ip_tables_names", AF_INET), IPV6: ("ip6_tables_names", AF_INET6)}
_NEIGHBOURS: Final = {IPV4: "arp_cache", IPV6: "ndisc_cache"}
_TCP_LISTEN, _UDP_UNCONNECTED = 0x0A, 0x07

SETTINGS: Final = (
    "net/ipv4/ip_forward",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_local_reserved_ports",
    "net/ipv4/neigh/default/gc_thresh3",
    "net/ipv6/neigh/default/gc_thresh3",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_buckets",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
    "net/netfilter/nf_conntrack_tcp_loose",
    "net/netfilter/nf_conntrack_tcp_timeout_established",
    "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
    "net/netfilter/nf_conntrack_tcp_timeout_syn_sent",
    "net/netfilter/nf_conntrack_udp_timeout",
    "net/netfilter/nf_conntrack_udp_timeout_stream",
)
"""The settings that are read, beside those of each interface."""

_OF_INTERFACE: Final = {
    "net/ipv4/conf": ("forwarding", "rp_filter", "route_localnet", "arp_ignore", "arp_announce"),
    "net/ipv6/conf": ("forwarding", "force_forwarding", "disable_ipv6"),
}

_ELSEWHERE: Final = "the answer is for another node"


def gather(
    machine: Machine,
    snapshot: Part[Snapshot],
    options: Part[RunOptions],
    *,
    only: Key | None = None,
    costly: Collection[Costly] = ("connections", "rules"),
) -> Facts:
    """Reads everything.

    Args:
        machine: this host.
        snapshot: the cluster, if it could be read.
        options: the configuration, if it could be read.
        only: the Service that is asked about; None for all.
        costly: what is read of what takes long.
    """
    taken = snapshot.value
    plans = {node.family: taken.plans(node.family) for node in taken.nodes} if taken else {}
    config = options.value.config if options.value else None
    elsewhere = _ELSEWHERE if taken is not None and not taken.own else ""

    def part(read: Callable[[], T]) -> Part[T]:
        return Part(reason=elsewhere) if elsewhere else _part(read)

    def of_cluster(what: Costly, read: Callable[[Snapshot], T]) -> Part[T]:
        if taken is None:
            return Part(reason=snapshot.reason)
        return part(lambda: read(taken)) if what in costly else Part(reason="it was not asked for")

    daemon: Part[RunningDaemon] = part(lambda: ask.running(machine, config))
    held = daemon.value is not None and daemon.value.holder is not None
    return Facts(
        snapshot=snapshot,
        options=options,
        daemon=daemon,
        release=part(lambda: machine.release),
        processors=machine.processors,
        settings=part(lambda: _settings(machine)),
        programs=part(lambda: tuple(machine.running())),
        links=part(lambda: tuple(machine.links())),
        addresses=part(lambda: tuple(machine.addresses())),
        routes=part(lambda: _routes(machine, plans)),
        chains=part(lambda: _chains(machine)),
        table_comments=part(lambda: _comments(machine)),
        legacy=part(lambda: tuple(_legacy(machine))),
        tracking=part(lambda: _tracking(machine)),
        listeners=part(lambda: tuple(_listeners(machine))),
        connectors=part(lambda: tuple(_connectors(machine, config))),
        neighbours=part(lambda: _neighbours(machine)),
        probes=of_cluster("connections", lambda _: _probes(machine, plans, only, fronts=held)),
        rules=of_cluster("rules", lambda taken: asyncio.run(rules.compare(machine, taken, plans, only))),
        plans=plans,
        only=only,
    )


def _part(read: Callable[[], T]) -> Part[T]:
    try:
        return Part(read())
    except OSError as e:
        return Part(reason=why(e))
    except (SyncError, UnsupportedError, UnreadError) as e:
        return Part(reason=str(e))


def why(error: OSError) -> str:
    """Why something could not be read, in a few words."""
    if error.errno in {errno.EPERM, errno.EACCES}:
        return "no permission: run this command as root, or with CAP_NET_ADMIN"
    return error.strerror or str(error)


def _settings(machine: Machine) -> SettingsRead:
    names = list(SETTINGS)
    for folder, files in _OF_INTERFACE.items():
        try:
            interfaces = machine.sysctls(folder)
        except OSError:
            continue
        names += [f"{folder}/{interface}/{file}" for interface in interfaces for file in files]
    values: dict[str, str] = {}
    unread: dict[str, str] = {}
    for name in names:
        try:
            values[name] = machine.sysctl(name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as e:
            unread[name] = why(e)
    return SettingsRead(values, unread)


def _routes(machine: Machine, plans: Mapping[Family, Mapping[Key, ServicePlan]]) -> Mapping[str, bool]:
    found = {}
    for of_family in plans.values():
        ips = dict.fromkeys(
            port.cluster_ip for plan in of_family.values() for port in plan.ports if port.cluster_ip
        )
        for address in list(ips)[:MOST_ROUTES]:
            found[address] = machine.route_to(address) is not None
    return found


def _chains(machine: Machine) -> tuple[objects.AnyChain, ...]:
    with NftKernel(machine) as kernel:
        return tuple(objects.all_chains(kernel))


def _connectors(machine: Machine, config: KubeProxyConfiguration | None) -> Iterator[ConnectProgram]:
    """Those of the cgroup that ebpf mode would use; there are none where the kernel has no such hooks."""
    try:
        cgroup = machine.bpf(BpfPlaces(config.ebpf.cgroup if config else "")).open_cgroup()
    except OSError as e:
        if e.errno in {errno.EPERM, errno.EACCES}:
            raise
        return
    try:
        for number, name in pins.others(cgroup, dict.fromkeys(_CONNECT_HOOKS, frozenset[int]())).items():
            yield ConnectProgram(number, name)
    finally:
        os.close(cgroup)


def _comments(machine: Machine) -> Mapping[Family, str]:
    with NftKernel(machine) as kernel:
        asked: dict[Family, int] = {IPV4: IP, IPV6: IP6}
        found = {
            family: objects.table_comment(kernel, TableName(number, layout.TABLE))
            for family, number in asked.items()
        }
        return {family: comment for family, comment in found.items() if comment is not None}


def _legacy(machine: Machine) -> Iterator[LegacyTable]:
    for family, (listed, domain) in _LEGACY.items():
        try:
            with machine.net(listed) as file:
                names = file.read().decode().split()
        except FileNotFoundError:
            continue
        for name in names:
            rules = xtables.entries(machine, domain, name)
            markers = frozenset(marker for marker in MARKERS if marker.encode() in rules)
            drops = name == "filter" and xtables.drops_forwarded(machine, domain)
            yield LegacyTable(family, name, xtables.table_size(machine, domain, name)[0], markers, drops)


def _tracking(machine: Machine) -> Tracking:
    usage = conntrack.usage(machine)
    most = usage.most or int(machine.sysctl("net/netfilter/nf_conntrack_max"))
    counted: Counter[tuple[int, bytes, bytes, str, bool]] = Counter()
    read = 0
    for domain in (AF_INET, AF_INET6):
        for protocol in _PROTOCOLS:
            for flow in conntrack.flows(machine, domain, protocol):
                read += 1
                if read > MOST_FLOWS:
                    break
                zoned = flow.source == flow.destination and bool(flow.zone)
                counted[flow.protocol, flow.destination, flow.source, flow.state, zoned] += 1
    flows = tuple(
        FlowCount(
            _PROTOCOLS[protocol],
            _place(front),
            _place(endpoint),
            state,
            state not in UNANSWERED,
            zoned,
            count,
        )
        for (protocol, front, endpoint, state, zoned), count in counted.items()
    )
    return Tracking(usage.entries, most, conntrack.counters(machine), flows, complete=read <= MOST_FLOWS)


def _place(packed: bytes) -> tuple[str, int]:
    return unpack(packed[:-2]), int.from_bytes(packed[-2:])


def _listeners(machine: Machine) -> Iterator[ListeningSocket]:
    for name, state in (
        ("tcp", _TCP_LISTEN),
        ("tcp6", _TCP_LISTEN),
        ("udp", _UDP_UNCONNECTED),
        ("udp6", _UDP_UNCONNECTED),
    ):
        try:
            with machine.net(name) as file:
                lines = file.read().decode().splitlines()[1:]
        except FileNotFoundError:
            continue
        for line in lines:
            words = line.split()
            if int(words[3], 16) == state:
                address, _, port = words[1].partition(":")
                yield ListeningSocket(name[:3].upper(), _address(address), int(port, 16))


def _address(text: str) -> str:
    """An address as /proc/net/tcp has it: words of 32 bits in the order of the processor."""
    raw = b"".join(bytes.fromhex(word)[::-1] for word in re.findall("........", text))
    return inet_ntop(AF_INET if len(raw) == 4 else AF_INET6, raw)


def _neighbours(machine: Machine) -> Mapping[Family, int]:
    found: dict[Family, int] = {}
    for family in FAMILIES:
        try:
            with machine.net(f"stat/{_NEIGHBOURS[family]}") as file:
                found[family] = int(file.read().split(b"\n")[1].split()[0], 16)
        except FileNotFoundError:
            continue
    return found


def _probes(
    machine: Machine,
    plans: Mapping[Family, Mapping[Key, ServicePlan]],
    only: Key | None,
    *,
    fronts: bool,
) -> Probes:
    mine: Iterable[ServicePlan] = (
        plan for of_family in plans.values() for key, plan in of_family.items() if only in {None, key}
    )
    return asyncio.run(probe.run(machine, list(mine), fronts=fronts))
