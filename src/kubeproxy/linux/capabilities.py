"""The capabilities of this process (capabilities(7))."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

Capability = Literal["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_RESOURCE"]

_BITS: dict[Capability, int] = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_RESOURCE": 24}
"""linux/capability.h"""


def missing(wanted: Iterable[Capability]) -> list[Capability]:
    """Those of the capabilities that this process does not have; none if this cannot be determined."""
    try:
        status = Path("/proc/self/status").read_text()
        effective = int(status.partition("\nCapEff:")[2].split()[0], 16)
    except (OSError, ValueError, IndexError):
        return []
    return [name for name in wanted if not effective >> _BITS[name] & 1]
