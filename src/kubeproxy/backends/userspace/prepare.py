"""Starts userspace mode."""

from msgspec.structs import replace

from kubeproxy.backends.base import Driver, UnsupportedError
from kubeproxy.backends.localhost import Localhost
from kubeproxy.backends.nftables import prepare as nftables
from kubeproxy.backends.userspace import here
from kubeproxy.backends.userspace.driver import Led
from kubeproxy.machine.base import Machine
from kubeproxy.model.node import NodeConfig
from kubeproxy.relay.control import Relay


def open_driver(machine: Machine, node: NodeConfig) -> Driver:
    """Makes the driver of a node's family.

    Raises:
        UnsupportedError: it cannot run here.
        SyncError: it cannot run now.
    """
    try:
        rules = nftables.open_driver(machine, replace(node, localhost_relay=False), forwards=False)
    except UnsupportedError as e:
        raise UnsupportedError(
            f"userspace mode leads traffic to itself by nftables rules; --userspace-listen does without: {e}"
        ) from e
    relay = Relay(
        machine, f"{node.family} relay", mark=node.masquerade_mark, labels={"ip_family": node.family}
    )
    led = Led(rules, relay, here.Reachable(machine))
    return Localhost(led, relay, shared=True) if node.localhost_relay else led
