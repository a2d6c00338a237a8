"""The driver of one family: that of nftables mode, and the programs in front of it.

The table is programmed first. So what the programs do not know is served before they know it, and of a
Service that the kernel refuses, the programs keep what the table keeps.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kubeproxy.backends.base import (
    Change,
    Comparable,
    Driver,
    Failures,
    HeldState,
    KernelComparison,
    SyncError,
)
from kubeproxy.backends.ebpf import describe, held
from kubeproxy.backends.ebpf.front import ConnectFront
from kubeproxy.backends.ebpf.held import HeldConnect, HeldFronts, as_connect
from kubeproxy.backends.ebpf.steps import ConnectSteps, FrontSteps
from kubeproxy.backends.shared.threads import in_thread
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, ServicePlan, fronts_of, without_fronts


class ConnectDriver:
    """See `backends.base.Driver`."""

    def __init__(self, inner: Driver, front: ConnectFront) -> None:
        """Makes it.

        Args:
            inner: the driver of nftables mode.
            front: the programs.
        """
        self._inner = inner
        self._front = front
        self._node: NodeConfig | None = None
        self._had: dict[Key, ServicePlan] = {}

    async def load(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        """See `Driver`."""
        failures = await self._inner.load(node, plans)
        kept = _with_refused(plans, failures, self._had) if failures else plans
        await in_thread(self._front.load, node, kept)
        self._node, self._had = node, dict(kept)
        return failures

    async def apply(self, node: NodeConfig, changes: Sequence[Change]) -> Failures:
        """See `Driver`."""
        failures = await self._inner.apply(node, changes)
        self._front.apply(changes)
        for change in changes:
            if change.after is None:
                self._had.pop(change.key, None)
            else:
                self._had[change.key] = change.after
        return failures

    async def read(self) -> HeldConnect:
        """See `Readable`."""
        return HeldConnect(await self._readable().read(), await self._held(self._front.read))

    def difference(self, held: HeldState, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> ConnectSteps:
        """See `Readable`."""
        there = as_connect(held)
        return ConnectSteps(
            self._readable().difference(there.rules, node, plans), self._steps(there, node, plans)
        )

    def describe(self, node: NodeConfig, plan: ServicePlan) -> list[str]:
        """See `Readable`."""
        return [*self._readable().describe(node, plan), *describe.service(plan, self._front.compiler(node))]

    async def read_part(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> HeldConnect:
        """See `Comparable`."""
        rules = await self._readable().read_part(node, plans)
        return HeldConnect(rules, await self._held(self._front.read_part, node, plans))

    def compare(
        self, held: HeldState, node: NodeConfig, plans: Mapping[Key, ServicePlan]
    ) -> KernelComparison:
        """See `Comparable`."""
        there = as_connect(held)
        found = self._readable().compare(there.rules, node, plans)
        steps = self._steps(there, node, plans)
        return KernelComparison(
            (*found.lacking, *steps.lacking()),
            (*found.foreign, *steps.foreign()),
            found.reordered,
            found.writes + bool(steps),
        )

    async def intact(self) -> bool:
        """See `Driver`."""
        if self._node is not None and not await in_thread(self._front.intact, self._node, self._had):
            return False
        return await self._inner.intact()

    def watch(self, disturbed: Callable[[str], None]) -> bool:
        """See `Driver`. Changes of maps and programs are not reported by the kernel; `intact` finds them."""
        return self._inner.watch(disturbed)

    async def close(self) -> None:
        """See `Driver`. The programs stay."""
        self._front.close()
        await self._inner.close()

    def _steps(self, there: HeldConnect, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> FrontSteps:
        wanted = held.wanted(plans.values(), self._front.compiler(node))
        return FrontSteps(there.front or HeldFronts(), wanted)

    async def _held(self, read: Callable[..., HeldFronts], *arguments: Any) -> HeldFronts:
        try:
            return await in_thread(read, *arguments)
        except OSError as e:
            raise SyncError(f"connect-time programs: {e}") from e

    def _readable(self) -> Comparable:
        assert isinstance(self._inner, Comparable)
        return self._inner


class LeftDriver(ConnectDriver):
    """Reads what is left of the programs. The table is the mode's that is in use, which may not have any."""

    def __init__(self, front: ConnectFront) -> None:
        """Makes it.

        Args:
            front: the programs.
        """
        self._front = front

    async def read(self) -> HeldConnect:
        """See `Readable`."""
        return HeldConnect(HeldFronts(), await self._held(self._front.read))

    async def close(self) -> None:
        """See `Comparable`."""
        self._front.close()


def _with_refused(
    plans: Mapping[Key, ServicePlan], failures: Iterable[Key], had: Mapping[Key, ServicePlan]
) -> Mapping[Key, ServicePlan]:
    """The plans, in which refused Services have what they had, without fronts that others have now."""
    found = {key: plan for key, plan in plans.items() if key not in failures}
    taken = {front for plan in found.values() for front in fronts_of(plan)}
    for key in failures:
        if key in had:
            found[key] = without_fronts(had[key], taken)
    return found
