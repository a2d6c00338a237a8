"""Determines when the control loop of one IP family may sync. The syncs are done by `reconciler`.

What the pacing guarantees, with `cost` the seconds a sync took:

1. A change is synced at once if no rest is due.
2. After a partial sync the loop rests as long as that sync took, one second at most: frequent changes are
   collected, syncing takes about half a processor at most, and a cheap sync delays no change noticeably.
3. After a full sync, whatever its reason (the start, a repair, a changed node), the next change is synced at
   once.
4. Between full syncs the loop rests three times the cost of the last one, so that a node that changes all the
   time, a refused Service that is touched all the time, or a program that reverts our rules takes a quarter
   of a processor. Five of them in a minute may begin without that rest, and five repairs in addition; such a
   repair begins at once. While a full sync rests that only a refused Service needs, changes of others are
   synced.
5. A sync that failed is tried again after a delay that grows from 0.25 seconds to the longest one the caller
   allows; other bounds apply while something is awaited that another program makes.
6. If the operator sets minSyncPeriod, it is the rest after every sync, partial or full, in place of 2 and 3;
   4 and 5 apply as well.
"""

import math
from collections import deque
from typing import Final, Literal

REST_FACTOR: Final = 1.0
"""The rest after a partial sync, as a multiple of its duration."""

LONGEST_REST_SECONDS: Final = 1.0
"""The longest rest after a partial sync if minSyncPeriod is not set; the reference's default."""

FULL_REST_FACTOR: Final = 3.0
"""The rest between full syncs, as a multiple of the duration of the first."""

AT_ONCE: Final = 5
"""The number of full syncs in `AT_ONCE_SECONDS` that may begin without that rest."""

AT_ONCE_SECONDS: Final = 60.0

FIRST_RETRY_SECONDS: Final = 0.25

Kind = Literal["partial", "full", "repair"]
"""A repair is a full sync after another program changed the rules."""


class Pacer:
    """The pace of one control loop. All times are of the loop's clock, in seconds."""

    def __init__(self, min_sync_period: float | None, longest_retry: float) -> None:
        """Creates it; no rest is due.

        Args:
            min_sync_period: the rest after each sync; None: adapt to the cost of partial syncs.
            longest_retry: the longest delay before a failed sync is tried again.
        """
        self._min_sync_period = min_sync_period
        self._longest_retry = longest_retry
        self._rest_until = -math.inf
        self._full_rest_until = -math.inf
        self._at_once = {"full": _Allowance(), "repair": _Allowance()}

    def start(self, kind: Kind) -> float:
        """The earliest time a sync of a kind may begin."""
        if kind == "partial":
            return self._rest_until
        rested, at_once = self._full_rest_until, self._at_once[kind].next
        if kind == "full":
            return max(self._rest_until, min(rested, at_once))
        return min(max(self._rest_until, rested), at_once)

    def began(self, kind: Kind, now: float) -> None:
        """A sync begins."""
        if kind != "partial" and now < max(self._rest_until, self._full_rest_until):
            self._at_once[kind].take(now)

    def succeeded(self, kind: Kind, now: float, cost: float) -> None:
        """A sync ended that took so many seconds."""
        if kind != "partial":
            self._full_rest_until = now + FULL_REST_FACTOR * cost
        if self._min_sync_period is not None:
            rest = self._min_sync_period
        else:
            rest = min(REST_FACTOR * cost, LONGEST_REST_SECONDS) if kind == "partial" else 0.0
        self._rest_until = now + rest

    def failed(self, now: float, in_row: int, bounds: tuple[float, float] | None = None) -> float:
        """A sync failed; returns the seconds until it may be tried again.

        Args:
            now: the time.
            in_row: how many have failed since the last success, this one included.
            bounds: the first and the longest delay; None: the usual ones.
        """
        first, longest = bounds or (FIRST_RETRY_SECONDS, self._longest_retry)
        delay: float = min(first * 2 ** min(in_row - 1, 30), longest)
        self._rest_until = now + delay
        return delay


class _Allowance:
    """`AT_ONCE` uses in any `AT_ONCE_SECONDS`."""

    def __init__(self) -> None:
        self._taken: deque[float] = deque([-math.inf] * AT_ONCE, AT_ONCE)

    @property
    def next(self) -> float:
        """When the next use is possible."""
        return self._taken[0] + AT_ONCE_SECONDS

    def take(self, now: float) -> None:
        self._taken.append(now)
