"""This host's addresses."""

import logging
import socket

from kubeproxy.api.addresses import IPV4, Family, is_link_local, is_loopback, unpack
from kubeproxy.backends import own_addresses
from kubeproxy.machine.base import Machine
from kubeproxy.model.node import NodeConfig
from kubeproxy.relay import sockets

log = logging.getLogger(__name__)


def addresses(machine: Machine, family: Family) -> list[str]:
    """This host's addresses of a family.

    Raises:
        OSError: the kernel refused.
    """
    return [unpack(a) for a in own_addresses.packed(machine, family)]


class Reachable:
    """Finds an address of this host that packets of other hosts can be sent to."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._warned = False

    def __call__(self, node: NodeConfig) -> str:
        """The node's address, else one this host has; loopback if there is none, which is logged once."""
        domain = socket.AF_INET if node.family == IPV4 else socket.AF_INET6
        for address in (
            node.address,
            self._machine.source_address(domain),
            *addresses(self._machine, node.family),
        ):
            if address and _is_reachable(address) and _is_mine(self._machine, address):
                self._warned = False
                return address
        if not self._warned:
            self._warned = True
            log.warning(
                "%(ipFamily)s: this host has no address that other hosts can reach: only its own processes reach Services",
                {"ipFamily": node.family},
            )
        return "127.0.0.1" if node.family == IPV4 else "::1"


def _is_reachable(address: str) -> bool:
    """Whether packets for an address can arrive by any interface; for a link-local one they cannot."""
    return not is_loopback(address) and not (":" in address and is_link_local(address))


def _is_mine(machine: Machine, address: str) -> bool:
    try:
        sockets.bind(machine, address, (0, 0), udp=True).close()
    except OSError:
        return False
    return True
