"""Removes nftables mode's tables."""

import errno
import logging
from typing import Final

from kubeproxy.backends.nftables import layout
from kubeproxy.netlink.nft.kernel import drop_table
from kubeproxy.netlink.nft.messages import IP, IP6, Table

log = logging.getLogger(__name__)

_NO_NF_TABLES: Final = {errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EINVAL, errno.EAFNOSUPPORT}
"""What a kernel without nf_tables, or without a family, says. It has no table of ours."""


def cleanup() -> None:
    """Deletes what this mode, or the reference in it, left in the kernel.

    Raises:
        OSError: the kernel refused.
    """
    for table in (Table(IP, layout.TABLE), Table(IP6, layout.TABLE)):
        try:
            if drop_table(table):
                log.info("Deleted table %s of nftables mode", table)
        except OSError as e:
            if e.errno not in _NO_NF_TABLES:
                raise
