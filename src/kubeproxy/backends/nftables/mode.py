"""nftables mode."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from kubeproxy.backends.base import Comparable, ConnectionCounter, Driver
from kubeproxy.backends.mode import FailureMetric, Mode
from kubeproxy.config import checks
from kubeproxy.config.checks import Problem
from kubeproxy.config.gates import LOCALHOST_NODE_PORTS, resolve
from kubeproxy.config.types import PRIMARY, KubeProxyConfiguration
from kubeproxy.model.distribution import BalancingSupport
from kubeproxy.model.manners import Manners
from kubeproxy.model.node import NodeConfig

if TYPE_CHECKING:
    from kubeproxy.backends.mode import Sockets
    from kubeproxy.machine.base import Machine
    from kubeproxy.model.plan import ServicePlan


def _open(machine: "Machine", node: NodeConfig) -> Driver:
    from kubeproxy.backends.nftables import prepare

    return prepare.open_driver(machine, node)


def _reader(machine: "Machine", node: NodeConfig, sockets: "Sockets") -> Comparable:
    from kubeproxy.backends.nftables import prepare

    return prepare.open_reader(machine, node, sockets)


def _describe(node: NodeConfig, plan: "ServicePlan", _: int) -> list[str]:
    from kubeproxy.api.addresses import IPV4
    from kubeproxy.backends.nftables import describe, layout
    from kubeproxy.netlink.nft.messages import IP, IP6, TableName

    return describe.service(plan, node, TableName(IP if node.family == IPV4 else IP6, layout.TABLE))


def _counter(machine: "Machine", node: NodeConfig) -> ConnectionCounter:
    from kubeproxy.backends.nftables.counts import MapCounter
    from kubeproxy.netlink.nft.kernel import NftKernel

    return MapCounter(NftKernel(machine), node)


def _cleanup(machine: "Machine") -> None:
    from kubeproxy.backends.nftables import cleanup

    cleanup.cleanup(machine)


def _serves(machine: "Machine") -> bool:
    from kubeproxy.backends.nftables import cleanup

    return cleanup.serves(machine)


def _node(node: NodeConfig, config: KubeProxyConfiguration) -> NodeConfig:
    """A relay serves node ports on localhost where the configuration names it (KEP-6032).

    It serves UDP, too. If the feature gate is set, all else is as in v1.38.
    """
    gates = config.feature_gates
    return replace(
        node,
        localhost_relay=node.names_loopback and resolve(gates)[LOCALHOST_NODE_PORTS],
        localhost_policy=gates.get(LOCALHOST_NODE_PORTS, False),
        counters=config.nftables.counters,
    )


def _problems(config: KubeProxyConfiguration) -> Iterator[Problem]:
    return checks.bit("KubeProxyNFTablesConfiguration.MasqueradeBit", config.nftables.masquerade_bit)


MODE: Final = Mode(
    name="nftables",
    section="nftables",
    masquerade="nftables",
    node_port_addresses=(PRIMARY,),
    replaces=("ebpf", "ipvs", "iptables"),
    manners=Manners(closed_cluster_ips=True, firewall_first=True),
    balancing=BalancingSupport(weights=True, maglev=True, spill_over=True, steered=True),
    failure_metrics=(FailureMetric("kubeproxy_sync_proxy_rules_nftables_sync_failures_total"),),
    node=_node,
    problems=_problems,
    open=_open,
    reader=_reader,
    describe=_describe,
    counter=_counter,
    cleanup=_cleanup,
    serves=_serves,
)
