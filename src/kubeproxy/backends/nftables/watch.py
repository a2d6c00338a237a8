"""Notices what others do to our table, whatever program they use."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable

from kubeproxy.netlink.nft.messages import Table
from kubeproxy.netlink.nft.monitor import Event, Monitor, events_about

_MOST_TOLD = 5


class Watch:
    """A look-out over one table. It hears nothing before `join`."""

    def __init__(self, table: Table, disturbed: Callable[[str], None]) -> None:
        """Starts it, in the running event loop.

        Args:
            table: the table.
            disturbed: told what was done, in the event loop.

        Raises:
            OSError: the kernel refuses.
        """
        self._table = table
        self._disturbed = disturbed
        self._monitor = Monitor()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._monitor.fileno(), self._read)

    def close(self) -> None:
        """Ends it."""
        self._loop.remove_reader(self._monitor.fileno())
        self._monitor.close()

    def join(self) -> None:
        """From now on it hears."""
        self._monitor.join()

    def leave(self) -> None:
        """It hears nothing more."""
        self._monitor.leave()

    def _read(self) -> None:
        try:
            events, program = self._monitor.read()
        except OSError as e:
            self._disturbed(f"more was done to the rules of this host than could be told ({e.strerror})")
            return
        events = list(events_about(events, self._table.family, self._table.name))
        if events:
            self._disturbed(f"{program or 'somebody'} changed table {self._table}: {_told(events)}")


def _told(events: Iterable[Event]) -> str:
    """What was done, alike things counted."""
    counted = Counter((event.what, event.where) for event in events)
    told = [
        f"{what}{f' in {where}' if where else ''}{f' ({count} times)' if count > 1 else ''}"
        for (what, where), count in counted.most_common(_MOST_TOLD)
    ]
    return ", ".join(told) + (" and more" if len(counted) > _MOST_TOLD else "")
