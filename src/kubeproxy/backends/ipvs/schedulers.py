"""Which scheduler of the kernel divides connections as a Service asks for, and with which flags.

A Service without annotations has that of the configuration. One that has only weights keeps it, too, if it
knows weights.

Source: net/netfilter/ipvs/ip_vs_{rr,wrr,lc,wlc,dh,sed,mh}.c.
"""

from typing import Final

from kubeproxy.model.distribution import Distribution
from kubeproxy.netlink import ipvs

MAGLEV: Final = "mh"
LEAST_CONNECTIONS: Final = "wlc"

SPILL_OVER: Final = "sed"
"""With large weights of near real servers and upper thresholds (`spill`)."""

_WITH_WEIGHTS: Final = {"rr": "wrr", "lc": "wlc", "dh": "wrr"}
"""Schedulers that ignore weights, and what is used instead."""

FALLBACK: Final = ipvs.SCHEDULER_1
"""With `mh`: a client whose real server drains gets another one; otherwise it is refused."""

BY_PORT: Final = ipvs.SCHEDULER_2
"""With `mh` and `sh`: the client's port counts, too."""


def chosen(by: Distribution | None, default: str, flags: int) -> tuple[str, int]:
    """The scheduler of a virtual server, and its flags.

    Args:
        by: how connections are divided; None: as those of other Services.
        default: the scheduler of the configuration.
        flags: its flags.
    """
    if by is None:
        return default, flags
    if by.method == "maglev":
        return MAGLEV, FALLBACK | (BY_PORT if by.by_port else 0)
    if by.preferred:
        return SPILL_OVER, 0
    if by.method == "least-connections":
        return LEAST_CONNECTIONS, 0
    if by.weights and default in _WITH_WEIGHTS:
        return _WITH_WEIGHTS[default], 0
    return default, flags
