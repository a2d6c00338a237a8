"""Accounting objects of netfilter: named packet counters that iptables rules can increment.

Source: linux/netfilter/nfnetlink_acct.h.
"""

import errno
import struct

from kubeproxy.netlink import wire
from kubeproxy.netlink.namespace import Namespace

_SUBSYSTEM = 7 << 8
_NEW = _SUBSYSTEM | 0
_GET = _SUBSYSTEM | 1
_NAME, _PACKETS = 1, 2
_NFGENMSG = struct.pack(">BBH", 0, 0, 0)


def ensure(namespace: Namespace, name: str) -> None:
    """Creates a counter if there is none of that name; an existing one keeps its value.

    Raises:
        OSError: the kernel does not support them (module nfnetlink_acct), or we lack CAP_NET_ADMIN.
    """
    with wire.Socket(namespace, wire.NETFILTER) as kernel:
        try:
            kernel.request(_NEW, _NFGENMSG + wire.text(_NAME, name), wire.CREATE | wire.EXCL)
        except OSError as e:
            # The error for an existing counter is EBUSY or EEXIST, depending on the kernel version.
            if e.errno not in {errno.EEXIST, errno.EBUSY}:
                raise


def packets(namespace: Namespace, name: str) -> int:
    """The number of packets that a counter has counted.

    Raises:
        OSError: ENOENT if there is no such counter.
    """
    with wire.Socket(namespace, wire.NETFILTER) as kernel:
        for reply in kernel.request(_GET, _NFGENMSG + wire.text(_NAME, name)):
            return int.from_bytes(wire.attributes(reply.body[4:])[_PACKETS])
    raise OSError(errno.ENOENT, f"no counter {name}")
