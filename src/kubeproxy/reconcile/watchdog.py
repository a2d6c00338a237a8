"""Detects drift: whether another program changed the rules of one IP family.

Where the kernel sends notifications, the driver reports a change at once; in addition the driver is asked at
intervals whether the kernel still holds the rules, and once an hour everything is compared although no drift
was detected. The watchdog only detects; the reconciler restores.
"""

import logging
import math
from collections.abc import Callable
from typing import Final

from kubeproxy.api.addresses import Family
from kubeproxy.backends.base import Driver

log = logging.getLogger(__name__)

FULL_SYNC_SECONDS: Final = 3600.0
"""How often everything is compared with the kernel although no drift was detected."""

_COST_FACTOR: Final = 1000.0
"""A slow comparison is done less often: it takes a thousandth of the time at most."""


class Watchdog:
    """The watchdog of one driver. All times are of the control loop's clock, in seconds.

    Attributes:
        drifted: drift was detected, and no full sync has begun since.
        repairs: how often drift was detected; what is reported until `began` counts once.
        suspended: another driver takes over, so that reported changes are its own and ignored.
    """

    def __init__(
        self,
        driver: Driver,
        family: Family,
        *,
        look_seconds: float,
        restore: Callable[[], None],
        compare: Callable[[], None],
        detected: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Creates it; no drift is detected.

        Args:
            driver: the driver that is asked.
            family: its IP family, for the log.
            look_seconds: the time between two checks of the kernel.
            restore: called when all rules must be compared with what was programmed.
            compare: called when it is time to plan and compare everything.
            detected: called with what was detected, for those who record it.
        """
        self._driver = driver
        self._family = family
        self._look_seconds = look_seconds
        self._restore = restore
        self._compare = compare
        self._detected = detected
        self._next_look = -math.inf
        self._next_comparison = -math.inf
        self.drifted = False
        self.repairs = 0
        self.suspended = False

    @property
    def next(self) -> float:
        """When `check` has something to do."""
        return min(self._next_look, self._next_comparison)

    def watch(self) -> None:
        """From now on changes by other programs are detected at once, if the kernel sends notifications."""
        try:
            if self._driver.watch(self._report):
                self._restore()
        except OSError as e:
            log.warning(
                "%(ipFamily)s: changes of the rules by other programs are not detected at once: %(err)s",
                {"ipFamily": self._family, "err": e},
            )

    async def check(self, now: float) -> None:
        """Does what is due. Not to be called while a sync runs: the driver is asked."""
        if now >= self._next_comparison:
            self._compare()
        elif now >= self._next_look:
            await self.look(now)

    async def look(self, now: float) -> None:
        """Asks the driver whether the kernel still holds the rules. Not to be called while a sync runs."""
        self._next_look = now + self._look_seconds
        if not await self._driver.intact():
            self._report("another program changed the rules in the kernel")

    def began(self) -> None:
        """A full sync begins: it repairs what was detected so far."""
        self.drifted = False

    def compared(self, now: float, seconds: float) -> None:
        """A full sync has ended, which took so many seconds: the rules are right."""
        self._next_comparison = now + max(FULL_SYNC_SECONDS, _COST_FACTOR * seconds)
        self._next_look = now + self._look_seconds

    def _report(self, what: str) -> None:
        """Another program changed the rules. They are restored at once, unless this happens all the time."""
        if self.drifted or self.suspended:
            return
        self.drifted = True
        self.repairs += 1
        log.warning(
            "%(ipFamily)s: %(drift)s; all rules are compared and restored",
            {"ipFamily": self._family, "drift": what},
        )
        self._detected(what)
        self._restore()
