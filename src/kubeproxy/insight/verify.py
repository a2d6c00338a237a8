"""Whether this kernel holds what is planned, and whether tracked flows lead to endpoints.

The answer of `verify`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final

from msgspec import Struct

from kubeproxy.answers.kernel import SETTLE_SECONDS
from kubeproxy.answers.reader import unreadable
from kubeproxy.answers.reasons import kernel_unread
from kubeproxy.answers.snapshot import Snapshot
from kubeproxy.insight.kernel_diff import FamilyDiff, diff
from kubeproxy.insight.stale_flows import StaleFlow, stale
from kubeproxy.machine.base import Machine

_TRIES: Final = 2
"""Where a kube-proxy runs, differences count if another reading of cluster and kernel still shows them."""


class Verified(Struct, frozen=True, rename="camel"):
    """What was found.

    Attributes:
        mode: the mode of the plans.
        node: the node.
        same: nothing differs, and nothing could not be compared.
        families: each IP family of the node.
        flows: tracked flows that lead to no endpoint of their Service.
        flows_unread: why tracked flows were not looked at, "" if they were.
        troubles: what could not be read of the cluster.
        remedy: what to do.
        cannot: why nothing could be compared, "" if something was.
    """

    mode: str
    node: str
    same: bool
    families: Sequence[FamilyDiff] = ()
    flows: Sequence[StaleFlow] = ()
    flows_unread: str = ""
    troubles: Sequence[str] = ()
    remedy: Sequence[str] = ()
    cannot: str = ""


async def verified(
    read: Callable[[], Awaitable[Snapshot]],
    machine: Machine,
    progress: Callable[[], AbstractContextManager[None]],
) -> Verified:
    """Compares the kernel with the plans of a snapshot.

    Args:
        read: reads the cluster; again if something differs, as a kube-proxy may just be programming a change.
        machine: this host.
        progress: shows that the kernel is being read.
    """
    runs = machine.holder() is not None
    tries = _TRIES if runs else 1
    while True:
        tries -= 1
        taken = await read()
        if cannot := unreadable(taken):
            return Verified(taken.mode.name, taken.name, same=False, troubles=taken.troubles, cannot=cannot)
        with progress():
            families = await diff(taken, machine)
            flows, flows_unread = await asyncio.to_thread(_flows, taken, machine)
        same = not any(each.pieces for each in families) and all(flow.ends for flow in flows)
        if same or not tries:
            break
        await asyncio.sleep(SETTLE_SECONDS)
    unread = [each.unread for each in families if each.unread]
    return Verified(
        taken.mode.name,
        taken.name,
        same and not unread and not flows_unread,
        families,
        flows,
        flows_unread,
        taken.troubles,
        () if same else (_remedy(machine, families),),
        unread[0] if len(unread) == len(families) else "",
    )


def _flows(taken: Snapshot, machine: Machine) -> tuple[list[StaleFlow], str]:
    if not taken.mode.tracked:
        return [], ""
    found: list[StaleFlow] = []
    try:
        for node in taken.nodes:
            found += stale(taken, machine, node, taken.plans(node.family))
    except OSError as e:
        return [], kernel_unread(machine, e)
    return found, ""


def _remedy(machine: Machine, families: Sequence[FamilyDiff]) -> str:
    holder = machine.holder()
    if holder is not None:
        return (
            f"a kube-proxy runs here{f', process {holder.process}' if holder.process else ''}, and has not corrected this:"
            " look at its log and at /readyz; a restart compares everything and corrects it without an interruption"
        )
    if any(each.empty for each in families):
        return "no kube-proxy runs here; if Kubernetes' kube-proxy does, compare its rules with --against reference"
    return "no kube-proxy runs here: a start corrects this; `kube-proxy plan` shows what it would change"
