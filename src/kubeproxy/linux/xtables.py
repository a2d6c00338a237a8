"""The size of a table of the legacy iptables kernel code, without reading the table; also its rules as bytes.

Source: struct ipt_getinfo, linux/netfilter_ipv4/ip_tables.h; ip6t_getinfo is the same.
"""

import ctypes
import os
import socket
import struct

from kubeproxy.netlink.namespace import Sockets

_SO_GET_INFO = 64
_SO_GET_ENTRIES = 65
_INFO = struct.Struct("=32s I 5I 5I I I")
_HEAD = struct.Struct("=32s I 4x")  # struct ipt_get_entries
_FORWARD = 2
_TARGET_HEAD = 32  # struct xt_entry_target
_DROP = -1  # -NF_DROP - 1
_LARGEST = 1 << 20


def table_size(namespace: Sockets, domain: int, table: str) -> tuple[int, int]:
    """The number of rules of a table and their size in bytes.

    Both stay the same only if rules are replaced by ones of equal length.

    Args:
        namespace: the network namespace of the table.
        domain: socket.AF_INET or AF_INET6.
        table: its name.

    Raises:
        OSError: the kernel has no such table, or we lack CAP_NET_ADMIN or CAP_NET_RAW.
    """
    fields = _INFO.unpack(_query(namespace, domain, _SO_GET_INFO, table.encode(), _INFO.size))
    return fields[-2], fields[-1]


def drops_forwarded(namespace: Sockets, domain: int, table: str = "filter") -> bool:
    """Whether the policy of chain FORWARD is DROP.

    False for a table of more than 1 MiB, which is too large to be read for this.

    Args:
        namespace: the network namespace of the table.
        domain: socket.AF_INET or AF_INET6.
        table: its name; it must exist.

    Raises:
        OSError: as with `table_size`.
    """
    fields = _INFO.unpack(_query(namespace, domain, _SO_GET_INFO, table.encode(), _INFO.size))
    policy, size = fields[7 + _FORWARD], fields[-1]
    if size > _LARGEST:
        return False
    rules = _entries(namespace, domain, table, size)
    (target,) = struct.unpack_from("=H", rules, policy + (88 if domain == socket.AF_INET else 140))
    (verdict,) = struct.unpack_from("=i", rules, policy + target + _TARGET_HEAD)
    return bool(verdict == _DROP)


def entries(namespace: Sockets, domain: int, table: str) -> bytes:
    """The rules of a table in the format of the kernel; the bytes contain the names of its chains.

    Args:
        namespace: the network namespace of the table.
        domain: socket.AF_INET or AF_INET6.
        table: its name; it must exist.

    Raises:
        OSError: as with `table_size`, or the table was changed meanwhile (EAGAIN).
    """
    return _entries(namespace, domain, table, table_size(namespace, domain, table)[1])


def _entries(namespace: Sockets, domain: int, table: str, size: int) -> bytes:
    head = _HEAD.pack(table.encode(), size)
    return _query(namespace, domain, _SO_GET_ENTRIES, head, len(head) + size)[len(head) :]


def _query(namespace: Sockets, domain: int, option: int, given: bytes, size: int) -> bytes:
    """Calls getsockopt with a buffer of some size that starts with given bytes; returns the buffer."""
    level = socket.IPPROTO_IP if domain == socket.AF_INET else socket.IPPROTO_IPV6
    buffer = ctypes.create_string_buffer(given, size)
    length = ctypes.c_uint32(size)
    with namespace.socket(domain, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as raw:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.getsockopt(raw.fileno(), level, option, buffer, ctypes.byref(length)) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    return buffer.raw
