"""nf_tables over nfnetlink.

Source: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h.
"""

import errno
import struct

from kubeproxy.netlink import wire

_SUBSYSTEM = 10 << 8
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_DELTABLE, _GETGEN = _SUBSYSTEM | 2, _SUBSYSTEM | 16
_TABLE_NAME, _GEN_ID = 1, 1
_FAMILIES = {"ip": 2, "ip6": 10}


def _nfgenmsg(family: int, resource: int = 0) -> bytes:
    return struct.pack(">BBH", family, 0, resource)


def generation() -> int:
    """The number of the kernel's present rule set: every transaction of anybody makes it another.

    Raises:
        OSError: the kernel has no nf_tables.
    """
    with wire.Socket(wire.NETFILTER) as kernel:
        for reply in kernel.request(_GETGEN, _nfgenmsg(0)):
            return int.from_bytes(wire.attributes(reply.body[4:])[_GEN_ID])
    raise OSError(errno.ENOTSUP, "no generation number")


def delete_table(family: str, name: str) -> bool:
    """Deletes a table with all it holds; returns whether there was one.

    Args:
        family: "ip" or "ip6".
        name: the table.

    Raises:
        OSError: the kernel refused.
    """
    with wire.Socket(wire.NETFILTER) as kernel:
        # All have one number: a batch that is refused as a whole is refused at its begin.
        sequence = kernel.next_sequence()
        body = _nfgenmsg(_FAMILIES[family]) + wire.text(_TABLE_NAME, name)
        kernel.send(
            wire.message(_BATCH_BEGIN, wire.REQUEST, _nfgenmsg(0, 10), sequence)
            + wire.message(_DELTABLE, wire.REQUEST | wire.ACK, body, sequence)
            + wire.message(_BATCH_END, wire.REQUEST, _nfgenmsg(0, 10), sequence)
        )
        while True:
            for reply in kernel.receive():
                if reply.type == wire.ERROR and reply.sequence == sequence:
                    try:
                        wire.check(reply)
                    except wire.NetlinkError as e:
                        if e.errno == errno.ENOENT:
                            return False
                        raise
                    return True
