"""Calls HNS in a thread, and reports a call that HNS does not answer.

HNS has been reported to hang. A call cannot be interrupted, so the driver waits, and health reports that the
changes of the cluster wait; this names the function.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from kubeproxy.backends.shared.threads import in_thread
from kubeproxy.windows.hcn import Hcn

log = logging.getLogger(__name__)

SLOW_SECONDS: Final = 10.0
"""A call that takes longer is reported, again at the same intervals."""

P = ParamSpec("P")
T = TypeVar("T")


async def called(hcn: Hcn, work: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
    """Does work that calls HNS in a thread; see `in_thread`."""
    watching = asyncio.ensure_future(_report(hcn))
    try:
        return await in_thread(work, *args, **more)
    finally:
        watching.cancel()


async def _report(hcn: Hcn) -> None:
    while True:
        await asyncio.sleep(SLOW_SECONDS)
        found = hcn.in_progress
        if found is not None and found.seconds >= SLOW_SECONDS:
            log.warning(
                "HNS has not answered the call %(call)s for %(seconds).0f s, and nothing can be changed until it does; if it"
                " does not, restart the Windows service hns",
                {"call": found.name, "seconds": found.seconds},
            )
