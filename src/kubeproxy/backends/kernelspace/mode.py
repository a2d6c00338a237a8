"""kernelspace mode, on Windows."""

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from kubeproxy.backends.base import Comparable, Driver
from kubeproxy.backends.mode import Mode
from kubeproxy.config.types import KubeProxyConfiguration
from kubeproxy.model.manners import Manners
from kubeproxy.model.node import HNSSettings, NodeConfig

if TYPE_CHECKING:
    from kubeproxy.backends.mode import Sockets
    from kubeproxy.machine.base import Machine
    from kubeproxy.model.plan import ServicePlan


def _open(machine: "Machine", node: NodeConfig) -> Driver:
    from kubeproxy.backends.kernelspace import prepare

    return prepare.open_driver(machine, node)


def _reader(machine: "Machine", node: NodeConfig, _: "Sockets") -> Comparable:
    from kubeproxy.backends.kernelspace import prepare

    return prepare.open_reader(machine, node)


def _describe(node: NodeConfig, plan: "ServicePlan", _: int) -> list[str]:
    from kubeproxy.backends.kernelspace import describe, network

    return describe.service(plan, network.assumed(node), "")


def _cleanup(machine: "Machine", config: KubeProxyConfiguration) -> None:
    from kubeproxy.backends.kernelspace import cleanup

    cleanup.cleanup(machine, settings(config))


def settings(config: KubeProxyConfiguration) -> HNSSettings:
    """The settings of the mode."""
    given = config.winkernel
    healthz = config.healthz_address if given.forward_health_check_vip else None
    return HNSSettings(
        network=given.network_name,
        source_vip=given.source_vip,
        dsr=given.enable_dsr,
        root_endpoint=given.root_hns_endpoint_name,
        health_vips=given.forward_health_check_vip,
        healthz_port=healthz[1] if healthz else 0,
        healthz_everywhere=healthz is not None and healthz[0] in {"", "0.0.0.0", "::"},
    )


def _node(node: NodeConfig, config: KubeProxyConfiguration) -> NodeConfig:
    """HNS serves node ports at all addresses, whatever is configured."""
    return replace(node, hns=settings(config), node_port_ranges=())


MODE: Final = Mode(
    name="kernelspace",
    platforms=frozenset({"win32"}),
    tracked=False,
    piecewise=True,
    filters=False,
    limits_sources=False,
    manners=Manners(by_policy_alone=True, passes_unserved=True, admits_all=True, one_port=True),
    node=_node,
    settings=settings,
    open=_open,
    reader=_reader,
    describe=_describe,
    clean_configured=_cleanup,
)
