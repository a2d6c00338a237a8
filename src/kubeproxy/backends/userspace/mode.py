"""userspace mode."""

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from kubeproxy.backends.base import Driver
from kubeproxy.backends.mode import Mode
from kubeproxy.backends.nftables import mode as nftables
from kubeproxy.config.types import KubeProxyConfiguration
from kubeproxy.model.node import NodeConfig

if TYPE_CHECKING:
    from kubeproxy.machine.base import Machine


def _open(machine: "Machine", node: NodeConfig) -> Driver:
    from kubeproxy.backends.userspace import prepare

    return prepare.open_driver(machine, node)


def _node(node: NodeConfig, _: KubeProxyConfiguration) -> NodeConfig:
    """The relay serves node ports on localhost, unless the configuration excludes it."""
    return replace(node, localhost_relay=not node.node_port_ranges or node.names_loopback)


MODE: Final = Mode(
    name="userspace",
    without_rules="userspace-listen",
    replaces=("ipvs", "iptables"),
    forwards=False,
    lasting=False,
    manners=nftables.MODE.manners,  # its rules are those of nftables mode
    node=_node,
    open=_open,
    reader=nftables.MODE.reader,
)
