"""Notices what others do to the rules of a mode that writes them by the iptables programs, where these are of nf_tables.

Our own changes come from programs, too: they are told by their process numbers, by which the kernel's notifications name
who sent a change.
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
    """Starts a look-out over the rules of one family, in the running event loop. It hears nothing before `join`.

    Args:
        tables: the tables of the family.
        concerns: whether a change is one of ours, of whatever family.
        disturbed: told what was done, in the event loop.

    Raises:
        OSError: the kernel refuses.
    """
    number = IP if tables.family == IPV4 else IP6

    def heard(events: list[TableEvent], program: str) -> bool:
        found = [e for e in events if e.family == number and concerns(e) and not tables.wrote(e.port)]
        if found:
            where = ", ".join(sorted({event.table for event in found}))
            disturbed(f"{program or 'somebody'} changed our rules in table {where}: {words(found)}")
        return bool(found)

    lookout = Lookout(tables.machine, heard, lambda: disturbed(LOST))
    spare(tables.machine, lookout)
    return lookout
