"""Starts nftables mode."""

import errno
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kubeproxy.backends.base import Comparable, Driver, SyncError, UnsupportedError
from kubeproxy.backends.nftables import forwarding, probe
from kubeproxy.backends.nftables.driver import NFTablesDriver
from kubeproxy.machine.base import Machine
from kubeproxy.model.node import NodeConfig
from kubeproxy.netlink.nft.kernel import NftKernel

if TYPE_CHECKING:
    from kubeproxy.backends.relayed import RelaySocket

log = logging.getLogger(__name__)

_NO_RIGHT = {errno.EPERM, errno.EACCES}


def open_driver(machine: Machine, node: NodeConfig, *, forwards: bool = True) -> Driver:
    """Makes the driver of a node's family.

    Args:
        machine: the host.
        node: the node.
        forwards: the kernel forwards packets to endpoints; otherwise a relay has the connections.

    Raises:
        UnsupportedError: it cannot run here.
        SyncError: it cannot run now.
    """
    try:
        kernel = NftKernel(machine)
        kernel.generation()
    except OSError as e:
        missing = "the right CAP_NET_ADMIN" if e.errno in _NO_RIGHT else "nf_tables in the kernel"
        raise UnsupportedError(
            f"nftables mode cannot run for {node.family}: {missing} is missing: {e.strerror}"
        ) from e
    try:
        refused = probe.missing(kernel, node)
    except OSError as e:
        raise SyncError(f"nftables mode cannot run for {node.family}: {e}") from e
    if refused:
        raise UnsupportedError(
            f"nftables mode cannot run for {node.family}, the kernel does not have: {refused}"
        )
    if forwards:
        _warn_of_drops(machine, kernel, node)
    rules = NFTablesDriver(kernel, node)
    if not node.localhost_relay:
        return rules
    from kubeproxy.backends.localhost import Localhost
    from kubeproxy.relay.control import Relay

    return Localhost(
        rules, Relay(machine, f"{node.family} relay for localhost", labels={"ip_family": node.family})
    )


def open_reader(
    machine: Machine, node: NodeConfig, sockets: "Sequence[RelaySocket] | None" = None
) -> Comparable:
    """Makes a driver that is only to read.

    Args:
        machine: the host.
        node: the node.
        sockets: those of the relay for localhost; None if they are not known.

    Raises:
        OSError: the kernel has no nf_tables, or we may not ask it.
    """
    kernel = NftKernel(machine)
    kernel.generation()
    rules = NFTablesDriver(kernel, node)
    if not node.localhost_relay:
        return rules
    from kubeproxy.backends.localhost import LocalhostReader

    return LocalhostReader(rules, sockets, header=False)


def _warn_of_drops(machine: Machine, kernel: NftKernel, node: NodeConfig) -> None:
    try:
        found = list(forwarding.dropping(machine, kernel, node.family))
    except OSError as e:
        log.info(
            "%(ipFamily)s: cannot read the policies for forwarded packets: %(err)s",
            {"ipFamily": node.family, "err": e},
        )
        return
    for chain in found:
        log.warning(
            "%(ipFamily)s: %(chain)s drops forwarded packets by default, also those to endpoints of Services, unless it has a rule that accepts"
            " them; add one, e.g. 'iptables -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT' or 'ct status dnat accept'",
            {"ipFamily": node.family, "chain": chain},
        )
