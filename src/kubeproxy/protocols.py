"""The numbers of the transport protocols that Services have (IANA, Protocol Numbers)."""

from collections.abc import Mapping
from typing import Final

TCP: Final = 6
UDP: Final = 17
SCTP: Final = 132

NUMBERS: Final[Mapping[str, int]] = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP}
NAMES: Final[Mapping[int, str]] = {number: name for name, number in NUMBERS.items()}
