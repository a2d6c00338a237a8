"""Generic netlink: subsystems that are identified by name and whose numbers are assigned at run time.

Source: linux/genetlink.h, Documentation/userspace-api/netlink/intro-specs.
"""

import struct
from typing import Final

from kubeproxy.netlink import wire

_CONTROL, _GET_FAMILY = 0x10, 3
_FAMILY_ID, _FAMILY_NAME = 1, 2
_HEADER = struct.Struct("=BBH")

HEADER_SIZE: Final = _HEADER.size


def header(command: int, version: int = 1) -> bytes:
    """Struct genlmsghdr."""
    return _HEADER.pack(command, version, 0)


def family(kernel: wire.Socket, name: str) -> int:
    """The message type of a subsystem. The kernel loads its module if necessary.

    Raises:
        OSError: ENOENT if the kernel has no subsystem of that name.
    """
    for reply in kernel.request(_CONTROL, header(_GET_FAMILY) + wire.text(_FAMILY_NAME, name)):
        return int(struct.unpack("=H", wire.attributes(reply.body[HEADER_SIZE:])[_FAMILY_ID])[0])
    raise OSError(f"no netlink family {name}")
