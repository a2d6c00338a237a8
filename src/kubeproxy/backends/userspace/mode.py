"""userspace mode."""

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from kubeproxy.backends.base import Comparable, Driver
from kubeproxy.backends.mode import Mode
from kubeproxy.backends.nftables import mode as nftables
from kubeproxy.config.types import KubeProxyConfiguration
from kubeproxy.model.distribution import EVERYTHING
from kubeproxy.model.node import NodeConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kubeproxy.backends.mode import Plans, Sockets
    from kubeproxy.backends.relayed import RelaySocket
    from kubeproxy.machine.base import Machine


def _open(machine: "Machine", node: NodeConfig) -> Driver:
    from kubeproxy.backends.userspace import prepare

    return prepare.open_driver(machine, node)


def _reader(machine: "Machine", node: NodeConfig, sockets: "Sockets") -> Comparable:
    from kubeproxy.backends.userspace import prepare

    return prepare.open_reader(machine, node, sockets or ())


def _lead(plans: "Plans", node: NodeConfig, sockets: "Sequence[RelaySocket]") -> "Plans":
    from kubeproxy.backends.userspace.led_sockets import KnownSockets

    return KnownSockets(sockets).lead(plans, node.address)


def _node(node: NodeConfig, _: KubeProxyConfiguration) -> NodeConfig:
    """The relay serves node ports on localhost, unless the configuration excludes it."""
    return replace(node, localhost_relay=not node.node_port_ranges or node.names_loopback)


MODE: Final = Mode(
    name="userspace",
    without_rules="userspace-listen",
    replaces=("ebpf", "ipvs", "iptables"),
    forwards=False,
    balancing=EVERYTHING,
    lasting=False,
    manners=nftables.MODE.manners,  # its rules are those of nftables mode
    node=_node,
    open=_open,
    reader=_reader,
    lead=_lead,
)
