"""Starts userspace mode."""

from msgspec.structs import replace

from kubeproxy.backends.base import Driver, UnsupportedError
from kubeproxy.backends.localhost import Localhost
from kubeproxy.backends.nftables import prepare as nftables
from kubeproxy.backends.userspace import here
from kubeproxy.backends.userspace.led import Led
from kubeproxy.model.node import NodeConfig
from kubeproxy.relay.control import Relay


def open_driver(node: NodeConfig) -> Driver:
    """Makes the driver of a node's family.

    Raises:
        UnsupportedError: it cannot run here.
        SyncError: it cannot run now.
    """
    try:
        rules = nftables.open_driver(replace(node, localhost_relay=False), forwards=False)
    except UnsupportedError as e:
        raise UnsupportedError(
            f"userspace mode leads traffic to itself by nftables rules; --userspace-listen does without: {e}"
        ) from e
    relay = Relay(f"{node.family} relay", mark=node.masquerade_mark, labels={"ip_family": node.family})
    led = Led(rules, relay, here.Reachable())
    return Localhost(led, relay, shared=True) if node.localhost_relay else led
