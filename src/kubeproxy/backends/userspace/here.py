"""This host's addresses."""

import logging
import socket

from kubeproxy.api.addresses import IPV4, Family, is_loopback, unpack
from kubeproxy.model.node import NodeConfig
from kubeproxy.netlink import route
from kubeproxy.relay import sockets

log = logging.getLogger(__name__)


def addresses(family: Family) -> list[str]:
    """This host's addresses of a family.

    Raises:
        OSError: the kernel does not tell.
    """
    size = 4 if family == IPV4 else 16
    return [unpack(a.packed) for a in route.addresses() if len(a.packed) == size]


def reachable(node: NodeConfig) -> str:
    """An address of this host that packets from elsewhere are delivered to: the node's, else one this host has."""
    for address in (node.address, _speaking(node.family), *addresses(node.family)):
        if not is_loopback(address) and not address.startswith("fe80:") and _is_mine(address):
            return address
    log.warning(
        "%s: this host has no address but loopback: only its own processes reach Services", node.family
    )
    return "127.0.0.1" if node.family == IPV4 else "::1"


def _is_mine(address: str) -> bool:
    try:
        sockets.bind(address, (0, 0), udp=True).close()
    except OSError:
        return False
    return True


def _speaking(family: Family) -> str:
    """The address this host speaks from when it speaks to the world; nothing is sent to find out."""
    domain, somewhere = (socket.AF_INET, "192.0.2.1") if family == IPV4 else (socket.AF_INET6, "2001:db8::1")
    with socket.socket(domain, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((somewhere, 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])
