"""The host's own addresses."""

from kubeproxy.api.addresses import BITS, Family
from kubeproxy.machine.base import Machine


def packed(machine: Machine, family: Family, *, but: str = "") -> list[bytes]:
    """The addresses of one family, in network order.

    Args:
        machine: the host.
        family: the family.
        but: the name of an interface whose addresses are left out.

    Raises:
        OSError: the kernel does not return them.
    """
    size = BITS[family] // 8
    left_out = machine.interface(but) if but else None
    return [a.packed for a in machine.addresses() if len(a.packed) == size and a.interface != left_out]
