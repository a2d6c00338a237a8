"""userspace mode without rules (--userspace-listen)."""

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from kubeproxy.backends.base import Driver
from kubeproxy.backends.mode import Mode
from kubeproxy.backends.userspace import mode as userspace
from kubeproxy.config.types import KubeProxyConfiguration
from kubeproxy.model.distribution import EVERYTHING
from kubeproxy.model.node import NodeConfig

if TYPE_CHECKING:
    from kubeproxy.machine.base import Machine


def _open(machine: "Machine", node: NodeConfig) -> Driver:
    from functools import partial

    from kubeproxy.backends.userspace import here
    from kubeproxy.backends.userspace.listening import Listening
    from kubeproxy.relay.control import Relay

    return Listening(
        Relay(machine, f"{node.family} relay", labels={"ip_family": node.family}),
        partial(here.addresses, machine, node.family),
    )


def _node(node: NodeConfig, config: KubeProxyConfiguration) -> NodeConfig:
    """A socket for a node port and one for another front on the same address and port exclude each other."""
    return replace(userspace.MODE.node(node, config), listens=True)


MODE: Final = Mode(
    name=userspace.MODE.without_rules,
    tracked=False,
    forwards=False,
    balancing=EVERYTHING,
    lasting=False,
    node=_node,
    open=_open,
)
