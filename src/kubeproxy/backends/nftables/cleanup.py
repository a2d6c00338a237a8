"""Removes the tables of nftables mode; detects whether they serve Services."""

import errno
import logging
from typing import Final

from kubeproxy.backends.nftables import layout
from kubeproxy.machine.base import Machine
from kubeproxy.netlink.nft import objects
from kubeproxy.netlink.nft.kernel import NftKernel, drop_table
from kubeproxy.netlink.nft.messages import IP, IP6, TableName

log = logging.getLogger(__name__)

_NO_NF_TABLES: Final = {errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EINVAL, errno.EAFNOSUPPORT}
"""The errors of a kernel without nf_tables, or without a family. It has no table of ours."""

_TABLES: Final = (TableName(IP, layout.TABLE), TableName(IP6, layout.TABLE))


def serves(machine: Machine) -> bool:
    """Whether a table, of ours or of the reference, has the ClusterIP of a Service.

    Raises:
        OSError: the kernel refused.
    """
    try:
        with NftKernel(machine) as kernel:
            return any(
                layout.CLUSTER_IPS in objects.sets(kernel, table)
                and any(objects.elements(kernel, table, layout.CLUSTER_IPS))
                for table in _TABLES
            )
    except OSError as e:
        if e.errno not in {*_NO_NF_TABLES, errno.ENOENT}:
            raise
        return False


def cleanup(machine: Machine) -> None:
    """Deletes what this mode, or the reference in it, left in the kernel.

    Raises:
        OSError: the kernel refused.
    """
    for table in _TABLES:
        try:
            if drop_table(machine, table):
                log.info("Deleted table %(table)s of nftables mode", {"table": table})
        except OSError as e:
            if e.errno not in _NO_NF_TABLES:
                raise
