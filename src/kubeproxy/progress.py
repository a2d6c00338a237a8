"""Logs the progress of a long start every few seconds; of a short start it logs nothing.

A first list of tens of thousands of Services and its first sync can take many seconds, in which an operator
should see what the program is doing.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from kubeproxy.hub import Hub
from kubeproxy.reconcile.reconciler import Reconciler

log = logging.getLogger(__name__)

SECONDS: Final = 5.0
"""Seconds between two reports."""


async def report(hub: Hub, loops: Callable[[], Sequence[Reconciler]], *, seconds: float = SECONDS) -> None:
    """Reports until every family's first sync succeeded.

    Args:
        hub: what is known of the cluster.
        loops: the control loops, none as long as they are not made.
        seconds: the time between two reports.
    """
    while True:
        await asyncio.sleep(seconds)
        there = loops()
        if there and all(loop.synced.is_set() for loop in there):
            return
        if not hub.answered.is_set():
            continue  # the source logs why it gets no answer
        for text in _steps(hub, there):
            log.info("Starting: %(step)s", {"step": text})


def _steps(hub: Hub, loops: Sequence[Reconciler]) -> list[str]:
    """What is being done now."""
    if not hub.lists_complete.is_set():
        return [
            f"reading Services and endpoints, {len(hub.state.services)} Services and"
            f" {hub.received['EndpointSlice']} EndpointSlices so far"
        ]
    found = []
    for loop in loops:
        if loop.synced.is_set():
            continue
        done, total = loop.planned
        if done < total:
            found.append(f"{loop.family}: planned {done} of {total} Services")
        elif total:
            found.append(f"{loop.family}: writing the rules of {total} Services")
    return found
