"""Starts userspace mode without rules (--userspace-listen)."""

from functools import partial

from kubeproxy.backends.base import Driver
from kubeproxy.backends.userspace import here
from kubeproxy.backends.userspace.listening import Listening
from kubeproxy.model.node import NodeConfig
from kubeproxy.relay.control import Relay


def open_driver(node: NodeConfig) -> Driver:
    """Makes the driver of a node's family."""
    return Listening(
        Relay(f"{node.family} relay", labels={"ip_family": node.family}), partial(here.addresses, node.family)
    )
