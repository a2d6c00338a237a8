"""Detects drift in modes that write rules by the iptables programs, if these are the nf_tables variant.

Our own changes are made by programs as well. They are recognised by the process IDs of these programs, which
are in the kernel's notifications.
"""

from collections.abc import Callable

from kubeproxy.api.addresses import IPV4
from kubeproxy.backends.programs import Tables, spare
from kubeproxy.netlink.nft.lookout import LOST, Lookout, words
from kubeproxy.netlink.nft.messages import IP, IP6
from kubeproxy.netlink.nft.monitor import TableEvent


def notice(
    tables: Tables,
    concerns: Callable[[TableEvent], bool],
    disturbed: Callable[[str], None],
) -> Lookout:
    """Starts a look-out for the rules of one family, in the running event loop.

    It receives nothing before `join`.

    Args:
        tables: the tables of the family.
        concerns: returns whether a change concerns our rules, in any family.
        disturbed: called in the event loop with a description of the change.

    Raises:
        OSError: the kernel refuses.
    """
    number = IP if tables.family == IPV4 else IP6

    def changed(events: list[TableEvent], program: str) -> bool:
        found = [e for e in events if e.family == number and concerns(e) and not tables.wrote(e.port)]
        if found:
            where = ", ".join(sorted({event.table for event in found}))
            disturbed(f"{program or 'another program'} changed our rules in table {where}: {words(found)}")
        return bool(found)

    lookout = Lookout(tables.machine, changed, lambda: disturbed(LOST))
    spare(tables.machine, lookout)
    return lookout
