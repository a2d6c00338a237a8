"""Notices what others do to our table, whatever program they use."""

from collections.abc import Callable

from kubeproxy.netlink.namespace import Namespace
from kubeproxy.netlink.nft.lookout import LOST, Lookout, words
from kubeproxy.netlink.nft.messages import TableName
from kubeproxy.netlink.nft.monitor import TableEvent


def watch(namespace: Namespace, table: TableName, disturbed: Callable[[str], None]) -> Lookout:
    """Starts a look-out over one table, in the running event loop. It hears nothing before `join`.

    Args:
        namespace: the network namespace it is in.
        table: the table.
        disturbed: told what was done, in the event loop.

    Raises:
        OSError: the kernel refuses.
    """

    def heard(events: list[TableEvent], program: str) -> bool:
        found = [event for event in events if (event.family, event.table) == table]
        if found:
            disturbed(f"{program or 'somebody'} changed table {table}: {words(found)}")
        return bool(found)

    return Lookout(namespace, heard, lambda: disturbed(LOST))
