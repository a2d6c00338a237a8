"""ebpf mode."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from kubeproxy.backends.base import Comparable, ConnectionCounter, Driver
from kubeproxy.backends.mode import FailureMetric, Mode
from kubeproxy.backends.nftables import mode as nftables
from kubeproxy.backends.sockets import TranslatedSockets
from kubeproxy.config.checks import Problem
from kubeproxy.config.types import KubeProxyConfiguration
from kubeproxy.model.manners import Manners
from kubeproxy.model.node import ConnectSettings, NodeConfig

if TYPE_CHECKING:
    from kubeproxy.backends.mode import Sockets
    from kubeproxy.machine.base import Machine
    from kubeproxy.model.plan import ServicePlan

HOST, ALL = "host", "all"
"""The scopes."""


def _open(machine: "Machine", node: NodeConfig) -> Driver:
    from kubeproxy.backends.ebpf import prepare

    return prepare.open_driver(machine, node)


def _reader(machine: "Machine", node: NodeConfig, _: "Sockets") -> Comparable:
    from kubeproxy.backends.ebpf import prepare

    return prepare.open_reader(machine, node)


def _install(machine: "Machine", node: NodeConfig) -> None:
    from kubeproxy.backends.ebpf import prepare

    prepare.install(machine, node)


def _describe(node: NodeConfig, plan: "ServicePlan", endpoints: int) -> list[str]:
    from kubeproxy.backends.ebpf import describe
    from kubeproxy.backends.ebpf.compile import FrontCompiler

    assert nftables.MODE.describe is not None
    return [*nftables.MODE.describe(node, plan, endpoints), *describe.service(plan, FrontCompiler(node))]


def _counter(machine: "Machine", node: NodeConfig) -> ConnectionCounter:
    from kubeproxy.backends.ebpf.counts import open_counter

    return open_counter(machine, node)


def _sockets(machine: "Machine", node: NodeConfig) -> TranslatedSockets:
    from kubeproxy.backends.ebpf.sockets import ConnectSockets

    return ConnectSockets(machine, node)


def _cleanup(machine: "Machine") -> None:
    from kubeproxy.backends.ebpf import cleanup

    cleanup.cleanup(machine)


def _serves(machine: "Machine") -> bool:
    from kubeproxy.backends.ebpf import cleanup

    assert nftables.MODE.serves is not None
    return nftables.MODE.serves(machine) or cleanup.serves(machine)


def _node(node: NodeConfig, config: KubeProxyConfiguration) -> NodeConfig:
    """Sockets of the host are connected at loopback addresses, too, where the configuration names these."""
    given = config.ebpf
    return replace(
        node,
        counters=config.nftables.counters,
        localhost_node_ports=node.names_loopback,
        connects=ConnectSettings(
            everywhere=given.scope == ALL,
            peer_names=given.peer_names,
            strict=given.strict,
            cgroup=given.cgroup,
            pins=given.pins,
        ),
    )


def _problems(config: KubeProxyConfiguration) -> Iterator[Problem]:
    yield from nftables.MODE.problems(config)
    if config.ebpf.scope not in {HOST, ALL}:
        yield Problem("KubeProxyEBPFConfiguration.Scope", config.ebpf.scope, f"must be {HOST} or {ALL}")


MODE: Final = Mode(
    name="ebpf",
    section="nftables",
    masquerade="nftables",
    node_port_addresses=nftables.MODE.node_port_addresses,
    replaces=("ipvs", "iptables"),
    manners=Manners(closed_cluster_ips=True, firewall_first=True, at_connect=True),
    balancing=nftables.MODE.balancing,
    failure_metrics=(FailureMetric("kubeproxy_sync_proxy_rules_nftables_sync_failures_total"),),
    node=_node,
    problems=_problems,
    open=_open,
    install=_install,
    reader=_reader,
    describe=_describe,
    counter=_counter,
    sockets=_sockets,
    cleanup=_cleanup,
    serves=_serves,
)
