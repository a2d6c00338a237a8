"""Starts userspace mode."""

from collections.abc import Sequence

from msgspec.structs import replace

from kubeproxy.backends.base import Comparable, Driver, UnsupportedError
from kubeproxy.backends.localhost import Localhost, LocalhostReader
from kubeproxy.backends.nftables import prepare as nftables
from kubeproxy.backends.relayed import RelaySocket
from kubeproxy.backends.userspace import here
from kubeproxy.backends.userspace.driver import Led
from kubeproxy.backends.userspace.reader import LedReader
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


def open_reader(machine: Machine, node: NodeConfig, sockets: Sequence[RelaySocket]) -> Comparable:
    """Makes a driver that is only to read.

    Args:
        machine: the host.
        node: the node.
        sockets: those of the relay.

    Raises:
        OSError: the kernel has no nf_tables, or we may not ask it.
    """
    rules = nftables.open_reader(machine, replace(node, localhost_relay=False))
    led = LedReader(rules, sockets, here.Reachable(machine))
    return LocalhostReader(led, sockets, header=True) if node.localhost_relay else led
