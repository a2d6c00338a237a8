"""iptables mode."""

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from kubeproxy.api.addresses import IPV4
from kubeproxy.backends.base import Comparable, ConnectionCounter, Driver
from kubeproxy.backends.mode import FailureMetric, Mode
from kubeproxy.config.types import KubeProxyConfiguration
from kubeproxy.model.distribution import BalancingSupport
from kubeproxy.model.manners import Manners
from kubeproxy.model.node import NodeConfig

if TYPE_CHECKING:
    from kubeproxy.backends.mode import Sockets
    from kubeproxy.backends.programs import Tables
    from kubeproxy.machine.base import Machine
    from kubeproxy.model.plan import ServicePlan


def _open(machine: "Machine", node: NodeConfig) -> Driver:
    from kubeproxy.backends.iptables import prepare

    return prepare.open_driver(machine, node)


def _reader(machine: "Machine", node: NodeConfig, _: "Sockets") -> Comparable:
    from kubeproxy.backends.iptables import prepare

    return prepare.open_reader(machine, node)


def _counter(machine: "Machine", node: NodeConfig) -> ConnectionCounter:
    from kubeproxy.backends import programs
    from kubeproxy.backends.iptables.counts import RuleCounter

    return RuleCounter(programs.find(machine, node.family, attempt=False))


def _describe(node: NodeConfig, plan: "ServicePlan", endpoints: int) -> list[str]:
    from kubeproxy.backends.iptables import describe
    from kubeproxy.backends.iptables.compile import RuleContext
    from kubeproxy.backends.iptables.driver import LARGE_CLUSTER_ENDPOINTS

    return describe.service(plan, RuleContext(node, comments=endpoints <= LARGE_CLUSTER_ENDPOINTS))


def _cleanup(machine: "Machine") -> None:
    from kubeproxy.backends.iptables import cleanup

    cleanup.cleanup(machine)


def _serves(machine: "Machine") -> bool:
    from kubeproxy.backends.iptables import cleanup

    return cleanup.serves(machine)


def _clean_tables(tables: "Tables") -> int:
    from kubeproxy.backends.iptables import cleanup

    return cleanup.clean(tables)


def _node(node: NodeConfig, config: KubeProxyConfiguration) -> NodeConfig:
    """Node ports work on localhost over IPv4, unless the configuration excludes it."""
    wanted = node.family == IPV4 and config.iptables.localhost_node_ports
    return replace(node, localhost_node_ports=wanted and (not node.node_port_ranges or node.names_loopback))


MODE: Final = Mode(
    name="iptables",
    replaces=("ebpf", "nftables", "ipvs"),
    manners=Manners(refuses_everywhere=True, lets_own_out=True),
    balancing=BalancingSupport(weights=True, spill_over=True, steered=True),
    failure_metrics=(
        FailureMetric("kubeproxy_sync_proxy_rules_iptables_restore_failures_total"),
        FailureMetric(
            "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
            "Syncs of changes that failed and were done again in full.",
            partial=True,
        ),
    ),
    node=_node,
    open=_open,
    reader=_reader,
    counter=_counter,
    describe=_describe,
    cleanup=_cleanup,
    serves=_serves,
    clean_tables=_clean_tables,
)
