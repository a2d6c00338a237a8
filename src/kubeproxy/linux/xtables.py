"""How much is in a table of the legacy iptables kernel code, without reading the table.

Source: struct ipt_getinfo, linux/netfilter_ipv4/ip_tables.h; ip6t_getinfo is the same.
"""

import ctypes
import os
import socket
import struct

_SO_GET_INFO = 64
_INFO = struct.Struct("=32s I 5I 5I I I")


def table_size(domain: int, table: str) -> tuple[int, int]:
    """The number of rules of a table and their size in bytes: any change but a rewording of equal length shows.

    Args:
        domain: socket.AF_INET or AF_INET6.
        table: its name.

    Raises:
        OSError: the kernel has no such table, or we lack CAP_NET_ADMIN or CAP_NET_RAW.
    """
    level = socket.IPPROTO_IP if domain == socket.AF_INET else socket.IPPROTO_IPV6
    buffer = ctypes.create_string_buffer(table.encode(), _INFO.size)
    length = ctypes.c_uint32(_INFO.size)
    with socket.socket(domain, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as raw:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.getsockopt(raw.fileno(), level, _SO_GET_INFO, buffer, ctypes.byref(length)) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    fields = _INFO.unpack(buffer.raw)
    return fields[-2], fields[-1]
