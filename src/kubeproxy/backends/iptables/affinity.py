"""Session affinity in iptables mode: the kernel module xt_recent remembers the clients, and only so many of each endpoint."""

import logging
from collections.abc import Iterable
from pathlib import Path

from kubeproxy.api.addresses import Family
from kubeproxy.model.plan import ServicePlan

log = logging.getLogger(__name__)

LIMIT_FILE = Path("/sys/module/xt_recent/parameters/ip_list_tot")
_DEFAULT = 100


class AffinityWarning:
    """Says once that the number of clients is limited, as soon as a Service has session affinity."""

    def __init__(self, family: Family, file: Path = LIMIT_FILE) -> None:
        self._family = family
        self._file = file
        self._said = False

    def look(self, plans: Iterable[ServicePlan]) -> None:
        """Looks at the plans of Services that are new or changed."""
        if self._said:
            return
        for plan in plans:
            if any(port.affinity for port in plan.ports):
                self._said = True
                log.warning(
                    "%s: Service %s/%s has session affinity: for each endpoint the kernel remembers the last %d clients only"
                    " (parameter ip_list_tot of module xt_recent), further ones may change their endpoint",
                    self._family,
                    *plan.key,
                    self._limit(),
                )
                return

    def _limit(self) -> int:
        try:
            return int(self._file.read_text())
        except (OSError, ValueError):
            return _DEFAULT
