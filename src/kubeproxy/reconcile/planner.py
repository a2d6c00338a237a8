"""Makes the plans of Services for one IP family, and records in the ledger which are wanted.

Other work runs in between: many Services are planned some at a time, and a large one in a thread. Those that
change meanwhile are planned again at the end, without interruption, so that all plans are of the same moment,
in which each front has one owner.
"""

import asyncio
from collections.abc import Collection
from typing import Final

from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, ServicePlan
from kubeproxy.model.state import State
from kubeproxy.reconcile.ledger import Ledger

YIELD_EVERY: Final = 500
"""The number of Services that are planned before other work runs."""

LARGE: Final = 5_000
"""A Service with this many endpoints, counted per port, is planned in a thread: it takes 10 ms or more."""


class Planner:
    """Plans the Services of a state.

    Attributes:
        progress: how many Services are planned of the last `plan_all`, and of how many.
    """

    def __init__(self, state: State, ledger: Ledger) -> None:
        """Creates it; nothing is planned.

        Args:
            state: the Services and their endpoints.
            ledger: where the plans are recorded as wanted.
        """
        self._state = state
        self._ledger = ledger
        self.progress = 0, 0

    async def plan_all(self, node: NodeConfig, *meanwhile: Collection[Key]) -> None:
        """Plans every Service; one that does not exist any more is not wanted any more.

        Args:
            node: the node.
            meanwhile: the Services that change while this runs: they are read at the end.
        """
        keys = list(self._state.services)
        self.progress = 0, len(keys)
        for count, key in enumerate(keys, 1):
            self._ledger.want(key, await self._plan(key, node))
            if count % YIELD_EVERY == 0:
                self.progress = count, len(keys)
                await asyncio.sleep(0)
        self.progress = len(keys), len(keys)
        for key in self._ledger.known():
            if key not in self._state.services:
                self._ledger.want(key, None)
        self._again(node, meanwhile)

    async def plan(self, keys: Collection[Key], node: NodeConfig, *meanwhile: Collection[Key]) -> None:
        """Plans some Services. The arguments are those of `plan_all`."""
        for count, key in enumerate(keys, 1):
            self._ledger.want(key, await self._plan(key, node))
            if count % YIELD_EVERY == 0:
                await asyncio.sleep(0)
        self._again(node, meanwhile)

    def _again(self, node: NodeConfig, meanwhile: Collection[Collection[Key]]) -> None:
        for keys in meanwhile:
            for key in keys:
                self._ledger.want(key, self._state.plan(key, node))

    async def _plan(self, key: Key, node: NodeConfig) -> ServicePlan | None:
        if self._state.size(key) < LARGE:
            return self._state.plan(key, node)
        return await asyncio.to_thread(self._state.prepare(key, node))
