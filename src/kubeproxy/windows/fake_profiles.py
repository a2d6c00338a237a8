"""How versions of Windows Server differ, for the HNS in memory.

Where it is not known what HNS does, a profile can do either, so that tests can require that both work.
"""

from typing import Final

from msgspec import Struct

from kubeproxy.windows.fake_forms import ReturnedForm
from kubeproxy.windows.values import HnsVersion


class Profile(Struct, frozen=True, gc=False, kw_only=True):
    """What an HNS does.

    Attributes:
        version: its version.
        twins: a local endpoint may have the address of another one (kubernetes issue 138000); otherwise it is
            refused (130963).
        unique_macs: MAC addresses that were made up (02-...) are used once in a network.
        identical: the code when a load balancer with the same settings exists, if not PORT_ALREADY_EXISTS
            (139519).
        ignores_affinity: a version without session affinity accepts it and ignores it.
        keeps_names: `Name` and `Owner` of load balancers are kept.
        keeps_ids: a new object has the id that the request names; otherwise HNS chooses one all the same.
        modify_ignored: a Modify reports success and changes nothing (131466).
        modifies_all: a Modify may change what is not the key: ports, flags, distribution.
        keeps_dangling: load balancers stay when their network is removed; otherwise they are removed with it.
        refuses_used: an endpoint that a load balancer names cannot be deleted.
        failing_delete: every so-manieth deletion of a load balancer fails (113524); 0: none.
        leaked_ports: how many attempts to use a key again are refused after its load balancer was deleted
            (PR 137530).
        listeners_block: a load balancer cannot have the port of a program that listens (kubernetes/community
            issue 8883).
        forms: in which forms objects are returned that differ from what was sent.
    """

    version: HnsVersion
    twins: bool = True
    unique_macs: bool = False
    identical: int = 0
    ignores_affinity: bool = True
    keeps_names: bool = True
    keeps_ids: bool = True
    modify_ignored: bool = False
    modifies_all: bool = False
    keeps_dangling: bool = True
    refuses_used: bool = False
    failing_delete: int = 0
    leaked_ports: int = 0
    listeners_block: bool = False
    forms: frozenset[ReturnedForm] = frozenset()


WS2019: Final = Profile(
    version=HnsVersion(9, 5), failing_delete=5, leaked_ports=1, listeners_block=True, ignores_affinity=False
)
WS2022: Final = Profile(version=HnsVersion(13, 2), twins=False, refuses_used=True)
WS2025: Final = Profile(version=HnsVersion(15, 5), identical=0x800700B7, keeps_names=False)
WS2025_FIRST: Final = Profile(version=HnsVersion(15, 4), modify_ignored=True)
"""The first Windows Server 2025, whose Modify has no effect."""

PROFILES: Final = {
    "WS2019": WS2019,
    "WS2022": WS2022,
    "WS2025": WS2025,
    "WS2025 first": WS2025_FIRST,
}
