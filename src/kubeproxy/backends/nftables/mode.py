"""Starts nftables mode."""

import errno
import logging

from kubeproxy.backends.base import Backend, UnsupportedError
from kubeproxy.backends.nftables.backend import NFTables
from kubeproxy.model.node import NodeConfig
from kubeproxy.netlink.nft.kernel import Kernel

log = logging.getLogger(__name__)


def open_backend(node: NodeConfig) -> Backend:
    """Makes the backend of a node's family.

    Raises:
        UnsupportedError: it cannot run here.
    """
    try:
        kernel = Kernel()
        kernel.generation()
    except OSError as e:
        missing = "CAP_NET_ADMIN" if e.errno in {errno.EPERM, errno.EACCES} else "nf_tables in the kernel"
        raise UnsupportedError(f"nftables mode cannot run: {missing} is missing: {e.strerror}") from e
    return NFTables(kernel, node)
