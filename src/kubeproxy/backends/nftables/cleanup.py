"""Removes nftables mode's tables."""

import errno
import logging

from kubeproxy.netlink import nftables

log = logging.getLogger(__name__)

TABLE = "kube-proxy"
FAMILIES = ("ip", "ip6")


def cleanup() -> None:
    """Deletes what this mode, or the reference in it, left in the kernel.

    Raises:
        OSError: the kernel refused.
    """
    for family in FAMILIES:
        try:
            if nftables.delete_table(family, TABLE):
                log.info("Deleted table %s %s of nftables mode", family, TABLE)
        except OSError as e:
            # A kernel without nf_tables, or without this family, has no table of ours.
            if e.errno not in {errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EINVAL, errno.EAFNOSUPPORT}:
                raise
