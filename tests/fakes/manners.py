"""What the modes do where the plans do not decide, for tests that ask the verdict."""

from typing import Final

from kubeproxy import backends
from kubeproxy.model.manners import Manners


def of(name: str) -> Manners:
    """The manners of a mode for which the verdict has an answer."""
    manners = backends.mode(name).manners
    assert manners is not None
    return manners


IPTABLES: Final = of("iptables")
NFTABLES: Final = of("nftables")
IPVS: Final = of("ipvs")
EBPF: Final = of("ebpf")
