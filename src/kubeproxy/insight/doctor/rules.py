"""Compares the rules in the kernel with the plans, by the driver of the mode. Nothing is changed."""

import asyncio
from collections.abc import Mapping
from typing import Final

from kubeproxy.answers.reader import open_reader, unreadable
from kubeproxy.answers.snapshot import Snapshot
from kubeproxy.api.addresses import Family
from kubeproxy.backends.base import Comparable, KernelComparison
from kubeproxy.insight.doctor.facts import UnreadError
from kubeproxy.machine.base import Machine
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, ServicePlan

SETTLE_SECONDS: Final = 0.5
"""After so long a difference is looked at again: kube-proxy may have been programming a change."""


async def compare(
    machine: Machine, taken: Snapshot, plans: Mapping[Family, Mapping[Key, ServicePlan]], only: Key | None
) -> Mapping[Family, KernelComparison]:
    """How the kernel differs from the plans, for each family.

    Args:
        machine: this host.
        taken: the cluster.
        plans: the plans of all Services.
        only: the Service to compare; None for all.

    Raises:
        UnreadError: the mode cannot be read, or the kernel has nothing of it.
        OSError, SyncError, UnsupportedError: the kernel cannot be read.
    """
    if reason := unreadable(taken):
        raise UnreadError(reason)
    found = {}
    for node in taken.nodes:
        driver = await open_reader(taken, machine, node)
        try:
            found[node.family] = await _family(driver, node, plans[node.family], only, taken.mode.name)
        finally:
            await driver.close()
    return found


async def _family(
    driver: Comparable, node: NodeConfig, plans: Mapping[Key, ServicePlan], only: Key | None, mode: str
) -> KernelComparison:
    wanted = {key: plan for key, plan in plans.items() if only in {None, key}}
    for last in (False, True):
        held = await (driver.read() if only is None else driver.read_part(node, wanted))
        if held.empty:
            raise UnreadError(f"the kernel has nothing of {mode} mode for {node.family}")
        found = driver.compare(held, node, wanted)
        if last or not found:
            break
        await asyncio.sleep(SETTLE_SECONDS)
    return found
