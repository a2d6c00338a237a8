"""A packet on its way through rules."""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from kubeproxy.api.rows import Protocol
from kubeproxy.insight.reference.outcome import Target

PROTOCOLS: Final[Mapping[str, Protocol]] = {"TCP": "TCP", "UDP": "UDP", "SCTP": "SCTP"}
"""The protocols of Services, by name."""


class PacketState(Struct, frozen=True):
    """A packet on its way through the rules.

    Attributes:
        source: its source address.
        destination: its destination address, after translation.
        port: its destination port, after translation.
        protocol: "tcp", "udp" or "sctp".
        incoming: the interface it came in by; "" if a process of the node sent it.
        probability: how likely it is here.
        mark: its mark.
        translated: its destination was translated.
        masquerade: its source will be translated.
        virtual: address and port of the virtual server of IPVS that handled it.
    """

    source: str
    destination: str
    port: int
    protocol: str
    incoming: str
    probability: float = 1.0
    mark: int = 0
    translated: bool = False
    masquerade: bool = False
    virtual: Target | None = None
