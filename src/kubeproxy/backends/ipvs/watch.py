"""Detects changes by other programs, of addresses of kube-ipvs0 and of our rules, when they happen.

The kernel sends no notifications of virtual servers and sets. Notifications of our own changes of addresses
are received, too: a deleted address that no Service wants, or that has been added again, is no drift.
"""

import asyncio
from collections.abc import Callable

from kubeproxy.api.addresses import unpack
from kubeproxy.backends.ipvs import names
from kubeproxy.backends.ipvs.frame import HOOKS
from kubeproxy.backends.notice import notice
from kubeproxy.backends.programs import FILTER, NAT, Tables
from kubeproxy.netlink import route
from kubeproxy.netlink.nft.lookout import Lookout
from kubeproxy.netlink.nft.monitor import RULE_DELETED, TABLE_ADDED, TableEvent

_OURS = frozenset(
    {
        names.SERVICES,
        names.POSTROUTING,
        names.MARK_MASQ,
        names.FORWARD,
        names.PROXY_FIREWALL,
        *names.OWN_CHAINS,
    }
)
_HOOKED = frozenset(chain for (_, chain), _ in HOOKS)
_JUMPS = tuple(f"{chain}\0".encode() for chain in sorted(_OURS))


class Watch:
    """Watches one family, in the running event loop. Rules are not watched before `join`."""

    def __init__(
        self,
        tables: Tables,
        wants: Callable[[bytes], bool],
        missing: Callable[[], set[bytes]],
        disturbed: Callable[[str], None],
    ) -> None:
        """Starts it.

        Args:
            tables: the tables our rules are in.
            wants: whether kube-ipvs0 should have an address.
            missing: the addresses it should have and has not.
            disturbed: called with a description of the change.

        Raises:
            OSError: the kernel refuses.
        """
        self._wants = wants
        self._missing = missing
        self._disturbed = disturbed
        self._loop = asyncio.get_running_loop()
        self._monitor = route.monitor(tables.machine)
        self._loop.add_reader(self._monitor.fileno(), self._read)
        self._rules: Lookout | None = None
        if tables.variant == "nf_tables":
            self._rules = notice(tables, concerns, disturbed)

    def join(self) -> None:
        """From now on rules are watched, and read. May be called from any thread, and again."""
        if self._rules is not None:
            self._rules.join()
            self._rules.look()

    def close(self) -> None:
        """Ends it."""
        self._loop.remove_reader(self._monitor.fileno())
        self._monitor.close()
        if self._rules is not None:
            self._rules.close()

    def _read(self) -> None:
        suspicious = False
        try:
            while messages := list(self._monitor.receive(wait=False)):
                deleted = (route.address_of(m) for m in messages if m.type == route.DELETE_ADDRESS)
                suspicious = suspicious or any(self._wants(address) for address in deleted)
        except OSError:  # notifications were lost
            suspicious = True
        if suspicious and (lost := self._missing()):
            some = ", ".join(sorted(map(unpack, lost))[:3])
            more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
            self._disturbed(f"another program deleted {some}{more} from {names.INTERFACE}")


def concerns(event: TableEvent) -> bool:
    """Whether a rule or chain of ours was changed, in any family."""
    if event.table not in {NAT, FILTER} or event.what == TABLE_ADDED:
        return False
    if not event.where or event.where in _OURS:
        return True
    return (
        event.what == RULE_DELETED and event.where in _HOOKED and any(jump in event.body for jump in _JUMPS)
    )
