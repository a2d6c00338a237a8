"""A monitor in an event loop, and words for what it hears."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable

from kubeproxy.netlink.namespace import Namespace
from kubeproxy.netlink.nft.kernel import generation
from kubeproxy.netlink.nft.monitor import Monitor, TableEvent

_MOST_TOLD = 5


class Lookout:
    """Hears what other processes do to the rules of this host. Deaf before `join`.

    Attributes:
        joined: whether it hears.
    """

    def __init__(
        self, namespace: Namespace, heard: Callable[[list[TableEvent], str], bool], lost: Callable[[], None]
    ) -> None:
        """Starts it, in the running event loop.

        Args:
            namespace: whose rules.
            heard: told what was done and which program did it, "" if that is not known; says whether it matters.
            lost: told when more was done than could be told.

        Raises:
            OSError: the kernel refuses.
        """
        self._heard, self._lost = heard, lost
        self._namespace = namespace
        self._monitor = Monitor(namespace)
        self.joined = False
        self._looked: int | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._monitor.fileno(), self._read)

    def close(self) -> None:
        """Ends it."""
        self._loop.remove_reader(self._monitor.fileno())
        self._monitor.close()

    def ignore(self, process: int) -> None:
        """Hears nothing of what this process does, which takes the place of the one ignored before. From any thread."""
        with contextlib.suppress(OSError):  # it may be closed by now
            self._monitor.ignore(process)

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

    def look(self) -> None:
        """The rules are read from now on: what was done before is no news. May be called from any thread.

        Raises:
            OSError: the kernel does not tell the number of its rule set.
        """
        self._looked = generation(self._namespace)

    def catch_up(self, quiet: Callable[[], bool]) -> None:
        """Hears what there is to be heard, and makes an end of it.

        Args:
            quiet: whether nobody has done anything since `look`.
        """
        self._read()
        if quiet():
            self._monitor.forget()

    def _read(self) -> None:
        try:
            done = self._monitor.read()
        except OSError:
            # A transaction that lost some of its messages has its number by now: what is still told of it is no news, and
            # must not be taken for part of the next one, which may be our own repair.
            self._monitor.forget()
            with contextlib.suppress(OSError):
                self.look()
            self._lost()
            return
        for events, whole, program, number in done:
            if self._looked is not None and not _is_later(number, self._looked):
                continue
            if not self._heard(events, program) and not whole:
                self._lost()


def _is_later(number: int, than: int) -> bool:
    """Whether a generation comes after another one; their numbers begin anew after 32 bits."""
    return 0 < (number - than) % (1 << 32) < 1 << 31


LOST = "more was done to the rules of this host than could be told"


def words(events: Iterable[TableEvent]) -> str:
    """What was done, alike things counted, the most frequent first."""
    counted = Counter((event.what, event.where) for event in events)
    told = [
        f"{what}{f' in {where}' if where else ''}{f' ({count} times)' if count > 1 else ''}"
        for (what, where), count in counted.most_common(_MOST_TOLD)
    ]
    return ", ".join(told) + (" and more" if len(counted) > _MOST_TOLD else "")
