"""A monitor in an event loop, and words for what it hears."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable

from kubeproxy.netlink.nft.monitor import Event, Monitor

_MOST_TOLD = 5


class Lookout:
    """Hears what other processes do to the rules of this host. Deaf before `join`.

    Attributes:
        joined: whether it hears.
    """

    def __init__(self, heard: Callable[[list[Event], str], None], lost: Callable[[], None]) -> None:
        """Starts it, in the running event loop.

        Args:
            heard: told what was done and which program did it last, "" if that is not known.
            lost: told when more was done than could be told.

        Raises:
            OSError: the kernel refuses.
        """
        self._heard, self._lost = heard, lost
        self._monitor = Monitor()
        self.joined = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._monitor.fileno(), self._read)

    def close(self) -> None:
        """Ends it."""
        self._loop.remove_reader(self._monitor.fileno())
        self._monitor.close()

    def join(self) -> None:
        """From now on it hears. May be called from any thread, and again."""
        if not self.joined:
            self._monitor.join()
            self.joined = True

    def leave(self) -> None:
        """It hears nothing more. May be called from any thread, and again."""
        if self.joined:
            self._monitor.leave()
            self.joined = False

    def _read(self) -> None:
        try:
            events, program = self._monitor.read()
        except OSError:
            self._lost()
            return
        if events:
            self._heard(events, program)


LOST = "more was done to the rules of this host than could be told"


def words(events: Iterable[Event]) -> str:
    """What was done, alike things counted, the most frequent first."""
    counted = Counter((event.what, event.where) for event in events)
    told = [
        f"{what}{f' in {where}' if where else ''}{f' ({count} times)' if count > 1 else ''}"
        for (what, where), count in counted.most_common(_MOST_TOLD)
    ]
    return ", ".join(told) + (" and more" if len(counted) > _MOST_TOLD else "")
