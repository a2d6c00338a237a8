"""Starts nftables mode."""

import errno

from kubeproxy.backends.base import Backend, SyncError, UnsupportedError
from kubeproxy.backends.nftables import probe
from kubeproxy.backends.nftables.backend import NFTables
from kubeproxy.model.node import NodeConfig
from kubeproxy.netlink.nft.kernel import Kernel

_NO_RIGHT = {errno.EPERM, errno.EACCES}


def open_backend(node: NodeConfig) -> Backend:
    """Makes the backend of a node's family.

    Raises:
        UnsupportedError: it cannot run here.
        SyncError: it cannot run now.
    """
    try:
        kernel = Kernel()
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
    rules = NFTables(kernel, node)
    if not node.localhost_relay:
        return rules
    from kubeproxy.backends.localhost import Localhost
    from kubeproxy.relay.control import Relay

    return Localhost(rules, Relay(f"{node.family} relay for localhost", labels={"ip_family": node.family}))
