"""Counts of new connections, from the rules that send to an endpoint.

Only the first packet of a connection passes table nat, so the packets that the DNAT rule of a KUBE-SEP chain
counts are connections. Both variants give counters only with the whole table, so this reads all of it.
"""

import re
from collections.abc import Collection, Iterable
from typing import Final

from kubeproxy.backends.base import EndpointCounts
from kubeproxy.backends.iptables.compile import endpoint_chain_name
from kubeproxy.backends.programs import Programs
from kubeproxy.backends.shared.totals import Totals
from kubeproxy.model.plan import Key, PortId, ServicePlan

_SENT: Final = re.compile(r"\[(\d+):\d+\] -A (KUBE-SEP-\S+) .*-j DNAT ")


class RuleCounter:
    """See `ConnectionCounter`."""

    by_service = False
    partial = False

    def __init__(self, tables: Programs) -> None:
        self._tables = tables
        self._totals = Totals()
        self._chains: dict[str, tuple[PortId, tuple[str, int]]] = {}
        self._of: dict[Key, list[str]] = {}

    def set(self, key: Key, plan: ServicePlan | None) -> None:
        """See `ConnectionCounter`."""
        for chain in self._of.pop(key, ()):
            self._chains.pop(chain, None)
        found = {
            endpoint_chain_name(endpoint, port, port.protocol.lower()): (
                (port.name, port.protocol),
                (endpoint.address, endpoint.port),
            )
            for port in (plan.ports if plan else ())
            for endpoint in port.endpoints
        }
        self._chains.update(found)
        self._of[key] = list(found)

    def read(self, only: Collection[Key] = ()) -> EndpointCounts | None:
        """See `ConnectionCounter`."""
        del only
        return self.take(self._tables.nat_counters())

    def take(self, lines: Iterable[str]) -> EndpointCounts:
        """Reads what `iptables-save --counters` prints."""
        for line in lines:
            if "-A KUBE-SEP-" not in line or (found := _SENT.match(line)) is None:
                continue
            if (what := self._chains.get(found[2])) is not None:
                self._totals.take(found[2], int(found[1]), *what)
        self._totals.prune(len(self._chains), lambda: self._chains)
        return self._totals.counts

    def close(self) -> None:
        """See `ConnectionCounter`."""
