"""kube-proxy's rules in the other variant of iptables, which a daemon with other programs left behind.

The kernel has two mechanisms for the rules of iptables, `legacy` and `nf_tables`, and a daemon writes through
the programs of one. What an earlier daemon wrote through the other stays in force beside it, and may take
precedence: packets then go to the endpoints of that time. So when a daemon's own rules are in place, and
again at intervals, it reads the other variant. What it finds is removed as the rules of another mode are;
where the programs for that are missing, a warning is logged, and `cleanup` removes it from an image that has
them (`--cleanup-variant`), beside a daemon whose rules are in the other variant or in no variant.

A check is cheap and changes nothing. nf_tables is asked for a chain by its name, and only if anything in it
has changed. A legacy table would be created by reading it, so only those that the kernel lists are read, and
only if their size has changed.
"""

import logging
from collections.abc import Callable, Iterable
from socket import AF_INET, AF_INET6
from typing import Final

from kubeproxy.api.addresses import FAMILIES, IPV4, IPV6, Family
from kubeproxy.backends import programs
from kubeproxy.backends.base import SyncError
from kubeproxy.backends.programs import FILTER, NAT, InputRefusedError, Tables, Variant
from kubeproxy.linux import xtables
from kubeproxy.machine.base import Machine
from kubeproxy.netlink.nft import objects
from kubeproxy.netlink.nft.kernel import NftKernel, generation
from kubeproxy.netlink.nft.messages import IP, IP6, TableName

log = logging.getLogger(__name__)

CHAIN: Final = "KUBE-SERVICES"
"""The chain that every kube-proxy, and no other program, makes in tables nat and filter."""

_HELD: Final = (NAT, FILTER)
_LISTED: Final = {IPV4: "ip_tables_names", IPV6: "ip6_tables_names"}
_PROGRAMS: Final[dict[tuple[Family, Variant], str]] = {
    (IPV4, "legacy"): "iptables-legacy",
    (IPV4, "nf_tables"): "iptables-nft",
    (IPV6, "legacy"): "ip6tables-legacy",
    (IPV6, "nf_tables"): "ip6tables-nft",
}


class _MissingError(SyncError):
    """The programs of a variant are not installed."""


class OtherVariant:
    """A variant that our own rules are not in, of both families."""

    def __init__(
        self, machine: Machine, variant: Variant, cleaners: Iterable[Callable[[Tables], int]]
    ) -> None:
        """Does nothing before `remove` or `cleanup`.

        Args:
            machine: the host.
            variant: the variant to look at.
            cleaners: remove the rules of a mode from some tables, and return how much that was.
        """
        self._machine = machine
        self._variant = variant
        self._cleaners = tuple(cleaners)
        self._seen: dict[Family, object] = {}
        self._warned: set[Family] = set()

    def remove(self) -> None:
        """Removes the rules of kube-proxies. What fails is logged, and retried at the next check."""
        for family in FAMILIES:
            try:
                now = self._fingerprint(family)
                if now == self._seen.get(family):
                    continue
                if now and self._is_there(family):
                    self._clean(family)
                self._seen[family] = self._fingerprint(family)
            except _MissingError as e:
                self._warn(family, e)
            except (InputRefusedError, SyncError) as e:
                log.warning(
                    "%(ipFamily)s: old rules in the %(variant)s tables stay in force: %(err)s",
                    {"ipFamily": family, "variant": self._variant, "err": e},
                )
            except OSError as e:
                log.debug(
                    "%(ipFamily)s: cannot look at the %(variant)s tables: %(err)s",
                    {"ipFamily": family, "variant": self._variant, "err": e},
                )

    def cleanup(self) -> None:
        """Removes the rules of kube-proxies, for `--cleanup-variant`.

        Raises:
            SyncError: a family's rules stay; those of the other were removed.
        """
        troubles = []
        for family in FAMILIES:
            try:
                self._clean(family)
            except _MissingError as e:
                if self._is_there(family):
                    troubles.append(f"{family}: {e}")
            except (OSError, InputRefusedError, SyncError) as e:
                troubles.append(f"{family}: {e}")
        if troubles:
            raise SyncError(f"rules in the {self._variant} tables stay: {'; '.join(troubles)}")

    def _clean(self, family: Family) -> None:
        """Removes what is there.

        Raises:
            _MissingError: there are no programs for it.
            OSError, InputRefusedError, SyncError: it failed.
        """
        found = [
            (name, tables)
            for name, tables in programs.installed(self._machine)
            if (tables.family, tables.variant) == (family, self._variant)
        ]
        if not found:
            raise _MissingError(f"program {_PROGRAMS[family, self._variant]} is not installed")
        for name, tables in found:
            if count := sum(clean(tables) for clean in self._cleaners):
                log.info(
                    "%(ipFamily)s: removed %(count)d chains and rules of a kube-proxy from the %(variant)s tables through %(program)s",
                    {"ipFamily": family, "count": count, "variant": self._variant, "program": name},
                )  # fmt: skip

    def _warn(self, family: Family, missing: "_MissingError") -> None:
        if family not in self._warned:
            self._warned.add(family)
            log.warning(
                "%(ipFamily)s: the %(variant)s tables have rules of another kube-proxy, which may send packets to endpoints"
                " that are gone, and %(err)s: install it for this kube-proxy, or run kube-proxy --cleanup"
                " --cleanup-variant=%(variant)s on this node, in the host's network, from an image that has it:"
                " that removes only the rules in the %(variant)s tables",
                {"ipFamily": family, "variant": self._variant, "err": missing},
            )  # fmt: skip

    def _fingerprint(self, family: Family) -> object:
        """What changes with the tables; false if there are none."""
        if self._variant == "legacy":
            return {
                table: xtables.table_size(self._machine, _domain(family), table)
                for table in _listed(self._machine, family)
            }
        return generation(self._machine)

    def _is_there(self, family: Family) -> bool:
        """Whether kube-proxy's chain is in one of the tables."""
        if self._variant == "legacy":
            name = CHAIN.encode() + b"\0"
            return any(
                name in xtables.entries(self._machine, _domain(family), table)
                for table in _listed(self._machine, family)
            )
        number = IP if family == IPV4 else IP6
        with NftKernel(self._machine) as kernel:
            return any(objects.has_chain(kernel, TableName(number, table), CHAIN) for table in _HELD)


def _domain(family: Family) -> int:
    return AF_INET if family == IPV4 else AF_INET6


def _listed(machine: Machine, family: Family) -> list[str]:
    """The legacy tables there are that may hold our rules."""
    try:
        with machine.net(_LISTED[family]) as file:
            names = file.read().decode().split()
    except FileNotFoundError:
        return []
    return [table for table in _HELD if table in names]
