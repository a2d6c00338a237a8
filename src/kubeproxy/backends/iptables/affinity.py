"""Session affinity in iptables mode: xt_recent remembers a limited number of clients of each endpoint."""

import logging
from collections.abc import Iterable

from kubeproxy.backends.programs import Tables
from kubeproxy.log import ObjectRef
from kubeproxy.model.plan import ServicePlan

log = logging.getLogger(__name__)

_DEFAULT = 100


class AffinityWarning:
    """Logs once that the number of clients is limited, as soon as a Service has session affinity."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._said = False

    def look(self, plans: Iterable[ServicePlan]) -> None:
        """Looks at the plans of Services that are new or changed."""
        if self._said:
            return
        for plan in plans:
            if any(port.affinity for port in plan.ports):
                self._said = True
                log.warning(
                    "%(ipFamily)s: Service %(service)s has session affinity: for each endpoint the kernel remembers the last %(limit)d clients only"
                    " (parameter ip_list_tot of module xt_recent), further ones may change their endpoint",
                    {
                        "ipFamily": self._tables.family,
                        "service": ObjectRef(*plan.key),
                        "limit": self._limit(),
                    },
                )
                return

    def _limit(self) -> int:
        try:
            return int(self._tables.machine.module("xt_recent", "ip_list_tot"))
        except (OSError, ValueError):
            return _DEFAULT
