"""ipvs mode."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from kubeproxy.api.addresses import IPV4, IPV6, Family, family_of
from kubeproxy.backends.base import Comparable, ConnectionCounter, Driver
from kubeproxy.backends.mode import FailureMetric, Mode
from kubeproxy.config import checks
from kubeproxy.config.checks import Problem
from kubeproxy.config.types import KubeProxyConfiguration
from kubeproxy.model.distribution import EVERYTHING
from kubeproxy.model.manners import Manners
from kubeproxy.model.node import IPVSSettings, NodeConfig

if TYPE_CHECKING:
    from kubeproxy.backends.mode import Sockets
    from kubeproxy.backends.programs import Tables
    from kubeproxy.machine.base import Machine
    from kubeproxy.model.plan import ServicePlan

_SECTION = "KubeProxyIPVSConfiguration"


def _open(machine: "Machine", node: NodeConfig) -> Driver:
    from kubeproxy.backends.ipvs import prepare

    return prepare.open_driver(machine, node)


def _reader(machine: "Machine", node: NodeConfig, _: "Sockets") -> Comparable:
    from kubeproxy.backends.ipvs import prepare

    return prepare.open_reader(machine, node)


def _describe(node: NodeConfig, plan: "ServicePlan", _: int) -> list[str]:
    from kubeproxy.backends.ipvs import describe
    from kubeproxy.backends.ipvs.compile import ServerContext

    return describe.service(plan, ServerContext(node), node.family)


def _counter(machine: "Machine", node: NodeConfig) -> ConnectionCounter:
    from kubeproxy.backends.ipvs.counts import ServerCounter
    from kubeproxy.netlink.ipvs import IPVSSocket

    return ServerCounter(IPVSSocket(machine), node)


def _cleanup(machine: "Machine") -> None:
    from kubeproxy.backends.ipvs import cleanup

    cleanup.cleanup(machine)


def _serves(machine: "Machine") -> bool:
    from kubeproxy.backends.ipvs import cleanup

    return cleanup.serves(machine)


def _clean_tables(tables: "Tables") -> int:
    from kubeproxy.backends.ipvs import cleanup

    return cleanup.clean(tables)


def _node(node: NodeConfig, config: KubeProxyConfiguration) -> NodeConfig:
    given = config.ipvs
    timeouts = int(given.tcp_timeout), int(given.tcp_fin_timeout), int(given.udp_timeout)
    settings = IPVSSettings(given.scheduler, config.ipvs_exclude_cidrs, given.strict_arp, timeouts)
    return replace(node, ipvs=settings)


def _problems(config: KubeProxyConfiguration) -> Iterator[Problem]:
    given = config.ipvs
    yield from checks.at_least_0(f"{_SECTION}.TCPTimeout", given.tcp_timeout)
    yield from checks.at_least_0(f"{_SECTION}.TCPFinTimeout", given.tcp_fin_timeout)
    yield from checks.at_least_0(f"{_SECTION}.UDPTimeout", given.udp_timeout)
    yield from checks.cidrs(f"{_SECTION}.ExcludeCidrs", given.exclude_cidrs or ())


def _doubts(config: KubeProxyConfiguration, primary: Family) -> Iterator[str]:
    other = IPV6 if primary == IPV4 else IPV4
    if {family_of(cidr) for cidr in config.ipvs_exclude_cidrs} == {other}:
        yield f"ipvs.excludeCIDRs has only {other} ranges, but this host has only {primary}"


MODE: Final = Mode(
    name="ipvs",
    section="ipvs",
    balancing=replace(EVERYTHING, own_tables=False),
    replaces=("ebpf", "nftables", "iptables"),
    manners=Manners(firewall_first=True, falls_back=True, owns_addresses=True),
    failure_metrics=(FailureMetric("kubeproxy_sync_proxy_rules_iptables_restore_failures_total"),),
    node=_node,
    problems=_problems,
    doubts=_doubts,
    open=_open,
    reader=_reader,
    describe=_describe,
    counter=_counter,
    cleanup=_cleanup,
    serves=_serves,
    clean_tables=_clean_tables,
)
