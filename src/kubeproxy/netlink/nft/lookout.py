"""A monitor in an event loop, and a description of the events that it receives."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable

from kubeproxy.netlink.namespace import Namespace
from kubeproxy.netlink.nft.kernel import generation
from kubeproxy.netlink.nft.monitor import Monitor, TableEvent

_MOST_DESCRIBED = 5


class Lookout:
    """Receives notifications about changes of this host's rules by other processes, after `join` was called.

    Attributes:
        joined: whether it receives notifications.
    """

    def __init__(
        self, namespace: Namespace, changed: Callable[[list[TableEvent], str], bool], lost: Callable[[], None]
    ) -> None:
        """Creates it in the running event loop.

        Args:
            namespace: the network namespace of the rules.
            changed: called with the events of a transaction and the name of the program that made it ("" if
                that is not known); returns whether the events concern the caller.
            lost: called when notifications were lost.

        Raises:
            OSError: the kernel refuses.
        """
        self._changed, self._lost = changed, lost
        self._namespace = namespace
        self._monitor = Monitor(namespace)
        self.joined = False
        self._looked: int | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._monitor.fileno(), self._read)

    def close(self) -> None:
        """Closes its socket."""
        self._loop.remove_reader(self._monitor.fileno())
        self._monitor.close()

    def ignore(self, process: int) -> None:
        """Ignores the changes of a process, instead of those of the one ignored before.

        May be called from any thread.
        """
        with contextlib.suppress(OSError):  # it may be closed already
            self._monitor.ignore(process)

    def join(self) -> None:
        """Starts to receive notifications. May be called from any thread, and repeatedly."""
        if not self.joined:
            self._monitor.join()
            self.joined = True

    def leave(self) -> None:
        """Stops receiving notifications. May be called from any thread, and repeatedly."""
        if self.joined:
            self._monitor.leave()
            self.joined = False

    def look(self) -> None:
        """Must be called before the rules are read: notifications about earlier changes are ignored then.

        May be called from any thread.

        Raises:
            OSError: the kernel does not report the number of its rule set.
        """
        self._looked = generation(self._namespace)

    def catch_up(self, quiet: Callable[[], bool]) -> None:
        """Reads all notifications that have arrived.

        Args:
            quiet: returns whether no process has changed anything since `look`. Then an incomplete
                transaction is forgotten.
        """
        self._read()
        if quiet():
            self._monitor.forget()

    def _read(self) -> None:
        try:
            done = self._monitor.read()
        except OSError:
            # The transaction that lost some of its messages is complete, so its number is known. Its
            # remaining messages must be ignored and must not be assigned to the next transaction, which may
            # be our own repair.
            self._monitor.forget()
            with contextlib.suppress(OSError):
                self.look()
            self._lost()
            return
        for events, whole, program, number in done:
            if self._looked is not None and not _is_later(number, self._looked):
                continue
            if not self._changed(events, program) and not whole:
                self._lost()


def _is_later(number: int, than: int) -> bool:
    """Whether a generation comes after another one; the numbers have 32 bits and wrap around."""
    return 0 < (number - than) % (1 << 32) < 1 << 31


LOST = "notifications of the kernel about changes of rules were lost"


def words(events: Iterable[TableEvent]) -> str:
    """A description of events: equal ones are counted, and the most frequent are the first."""
    counted = Counter((event.what, event.where) for event in events)
    described = [
        f"{what}{f' in {where}' if where else ''}{f' ({count} times)' if count > 1 else ''}"
        for (what, where), count in counted.most_common(_MOST_DESCRIBED)
    ]
    return ", ".join(described) + (" and more" if len(counted) > _MOST_DESCRIBED else "")
