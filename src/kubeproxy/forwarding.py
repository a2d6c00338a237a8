"""Whether this host forwards packets: without that, only its own connections reach the endpoints of Services.

Kubernetes expects the network plugin or the administrator to turn forwarding on (net.ipv4.ip_forward,
net.ipv6.conf.all.forwarding). Of our modes only ipvs does so itself, as the reference, and any program may
turn it off later. So it is checked when rules are in place, whenever the kernel notifies of a change, and
periodically. A family is checked once it has a Service: where IPv6 is not used, its forwarding may be off.

Single interfaces may differ from the rest. IPv4 forwards packets that arrive on an interface whose own
`forwarding` is 1, IPv6 on one with `force_forwarding` (Linux 6.17). If there is such an interface, forwarding
was configured on purpose, and nothing is reported.

Source: Documentation/networking/ip-sysctl.rst.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

from kubeproxy.api.addresses import IPV4, IPV6, Family
from kubeproxy.figures import Figure
from kubeproxy.machine.base import Machine
from kubeproxy.reconcile.reconciler import Reconciler

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 30.0
"""Seconds between two checks without a notification."""

_FOLDERS: Final[Mapping[Family, str]] = {IPV4: "net/ipv4/conf", IPV6: "net/ipv6/conf"}
_OF_INTERFACE: Final[Mapping[Family, str]] = {IPV4: "forwarding", IPV6: "force_forwarding"}
_NAMES: Final[Mapping[Family, str]] = {IPV4: "net.ipv4.ip_forward", IPV6: "net.ipv6.conf.all.forwarding"}

_OFF = (
    "%(ipFamily)s forwarding is off (%(sysctl)s is 0): packets of Pods and of other hosts do not reach endpoints, only"
    " connections of this host itself do; set %(sysctl)s=1 with sysctl -w, and in /etc/sysctl.d for the next boot"
)


class NodeEvent(Protocol):
    """Writes an Event of the Node; see `events.Events.node`."""

    def __call__(self, reason: str, action: str, note: str, *, warning: bool) -> None:
        """Writes one."""


def enabled(machine: Machine, family: Family) -> bool:
    """Whether this host forwards packets of a family, on some interface at least.

    Raises:
        OSError: that cannot be read.
    """
    folder = _FOLDERS[family]
    if machine.sysctl(f"{folder}/all/forwarding") != "0":
        return True
    for interface in machine.sysctls(folder):
        if interface not in {"all", "default", "lo"}:
            with contextlib.suppress(OSError):  # the interface may have been deleted meanwhile
                if machine.sysctl(f"{folder}/{interface}/{_OF_INTERFACE[family]}") != "0":
                    return True
    return False


class Forwarding:
    """Reports when forwarding of a family is off, and when it is on again."""

    def __init__(self, machine: Machine, loops: Sequence[Reconciler], event: NodeEvent) -> None:
        """Nothing is checked before `run`, except for the metrics.

        Args:
            machine: the host.
            loops: the loop of each family.
            event: how an Event is written.
        """
        self._machine = machine
        self._loops = loops
        self._event = event
        self._off: set[Family] = set()

    def figures(self) -> Iterable[Figure]:
        """Whether each family is forwarded now."""
        text = "Whether this host forwards packets; without that, only its own connections reach endpoints."
        for loop in self._loops:
            with contextlib.suppress(OSError):
                labels = {"ip_family": loop.family}
                yield Figure(
                    "kubeproxy_forwarding_enabled", "gauge", text, enabled(self._machine, loop.family), labels
                )

    async def run(self) -> None:
        """Checks until it is cancelled."""
        changed = asyncio.Event()
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._machine.watch_sysctls(changed.set))
            except OSError as e:
                log.debug(
                    "IP forwarding is checked every %(seconds)g s, because there are no notifications: %(err)s",
                    {"seconds": LOOK_SECONDS, "err": e},
                )
            while True:
                changed.clear()
                for loop in self._loops:
                    if loop.ledger.plans:
                        self._look(loop.family)
                await self._machine.clock.wait(changed, LOOK_SECONDS)

    def _look(self, family: Family) -> None:
        try:
            on = enabled(self._machine, family)
        except OSError as e:
            log.debug(
                "%(ipFamily)s: whether packets are forwarded cannot be read: %(err)s",
                {"ipFamily": family, "err": e},
            )
            return
        if on and family in self._off:
            self._off.discard(family)
            log.info("%(ipFamily)s forwarding is on now", {"ipFamily": family})
        elif not on and family not in self._off:
            self._off.add(family)
            fields = {"ipFamily": family, "sysctl": _NAMES[family]}
            log.error(_OFF, fields)
            self._event("ForwardingDisabled", "CheckForwarding", _OFF % fields, warning=True)
