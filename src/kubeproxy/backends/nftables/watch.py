"""Detects drift: changes of our table by other programs."""

from collections.abc import Callable

from kubeproxy.netlink.namespace import Namespace
from kubeproxy.netlink.nft.lookout import LOST, Lookout, words
from kubeproxy.netlink.nft.messages import TableName
from kubeproxy.netlink.nft.monitor import TableEvent


def watch(namespace: Namespace, table: TableName, disturbed: Callable[[str], None]) -> Lookout:
    """Starts a look-out for one table, in the running event loop. It receives nothing before `join`.

    Args:
        namespace: the network namespace of the table.
        table: the table.
        disturbed: called in the event loop with a description of the change.

    Raises:
        OSError: the kernel refuses.
    """

    def changed(events: list[TableEvent], program: str) -> bool:
        found = [event for event in events if (event.family, event.table) == table]
        if found:
            disturbed(f"{program or 'another program'} changed table {table}: {words(found)}")
        return bool(found)

    return Lookout(namespace, changed, lambda: disturbed(LOST))
