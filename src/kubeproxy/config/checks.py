"""Rules for single fields, used for the common ones and by the modes for those of their sections."""

from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct

from kubeproxy.config.netparse import parse_cidr

NOT_NEGATIVE: Final = "must be greater than or equal to 0"
POSITIVE: Final = "must be greater than 0"
BIT: Final = "must be within the range [0, 31]"
CIDR: Final = "must be a valid CIDR"


class Problem(Struct, frozen=True, gc=False):
    """A value that breaks a rule.

    Attributes:
        path: the field, by the names of the reference.
        value: what it holds.
        why: the rule.
    """

    path: str
    value: Any
    why: str


def bit(path: str, value: int) -> Iterator[Problem]:
    """The number of a bit of the packet mark."""
    if not 0 <= value <= 31:
        yield Problem(path, value, BIT)


def at_least_0(path: str, value: float) -> Iterator[Problem]:
    """A number or duration that may not be negative."""
    if value < 0:
        yield Problem(path, value, NOT_NEGATIVE)


def cidrs(path: str, values: tuple[str, ...]) -> Iterator[Problem]:
    """A list of ranges."""
    for i, value in enumerate(values):
        if parse_cidr(value) is None:
            yield Problem(f"{path}[{i}]", value, CIDR)
