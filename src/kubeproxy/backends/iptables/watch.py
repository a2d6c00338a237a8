"""Detects changes of our rules by other programs, where they are rules of nf_tables.

Other programs have rules in the same tables, some in the same chains, so not every change there concerns our
rules.
"""

from collections.abc import Callable
from typing import Final

from kubeproxy.backends.iptables import names
from kubeproxy.backends.notice import notice
from kubeproxy.backends.programs import TABLES, Tables
from kubeproxy.netlink.nft.lookout import Lookout
from kubeproxy.netlink.nft.monitor import RULE_DELETED, TABLE_ADDED, TableEvent

_JUMPS: Final = tuple(f"{chain}\0".encode() for chain in sorted(names.STATIC))


def watch(tables: Tables, disturbed: Callable[[str], None]) -> Lookout:
    """Starts a look-out for the rules of one family, in the running event loop.

    It receives nothing before `join`.

    Args:
        tables: the tables of the family.
        disturbed: called in the event loop with a description of the change.

    Raises:
        OSError: the kernel refuses.
    """
    return notice(tables, concerns, disturbed)


def concerns(event: TableEvent) -> bool:
    """Whether a rule or chain of ours was changed, in any family."""
    if event.table not in TABLES or event.what == TABLE_ADDED:
        return False
    if not event.where or event.where in names.STATIC or names.is_owned(event.where):
        return True
    if event.what != RULE_DELETED:
        return False
    return event.where == names.KUBELET_FIREWALL or any(jump in event.body for jump in _JUMPS)
