"""Whether the kernel holds what a packet needs: it is read by the mode's own driver, and compared by it.

Only what concerns the packet's Service port is read. A difference counts only if it is still there a moment
later: the daemon may be programming a change.
"""

import asyncio
import re
from collections.abc import Iterable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from kubeproxy.answers import reader
from kubeproxy.answers.answer import HeldRule, State
from kubeproxy.answers.reasons import kernel_unread
from kubeproxy.answers.snapshot import Snapshot
from kubeproxy.api.addresses import family_of
from kubeproxy.backends.base import Comparable, HeldPart, SyncError, UnsupportedError
from kubeproxy.backends.shared.compared import flat
from kubeproxy.backends.shared.held_rules import HeldRules
from kubeproxy.machine.base import Machine
from kubeproxy.model.distribution import slot_of
from kubeproxy.model.explain import Explanation
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, PortPlan, ServicePlan
from kubeproxy.model.verdict import Packet

SETTLE_SECONDS: Final = 0.5
"""After this time a difference is checked again."""

_SLOT: Final = re.compile(r"add element \S+ \S+ maglev-\S+ \{ (\d+) ")
"""A slot of a table of Maglev hashing, which has a thousand or more."""

_COMMENT: Final = re.compile(r' -m comment --comment (?:"[^"]*"|\S+)| comment "[^"]*"')

_NO_SERVICE: Final = ("", "")


class KernelState(Struct, frozen=True, gc=False):
    """What the kernel holds for a packet.

    Attributes:
        state: whether it is what the plan asks for.
        rules: what it holds of it.
        differences: how it differs.
        unread: why it was not read, "" if it was.
    """

    state: State = "unread"
    rules: tuple[HeldRule, ...] = ()
    differences: tuple[str, ...] = ()
    unread: str = ""


async def look(snapshot: Snapshot, machine: Machine, explained: Explanation) -> KernelState:
    """Compares the kernel with what a packet needs.

    Args:
        snapshot: the cluster.
        machine: this host.
        explained: the explanation of the packet.
    """
    if snapshot.past:
        return KernelState(
            unread=f"the kernel is only known as it is now, and not as it was at {snapshot.past}"
        )
    if unread := reader.unreadable(snapshot):
        return KernelState(unread=unread)
    family = family_of(explained.packet.destination)
    node = snapshot.node(family)
    assert node is not None
    try:
        driver = await reader.open_reader(snapshot, machine, node)
    except (OSError, SyncError, UnsupportedError) as e:
        return KernelState(unread=kernel_unread(machine, e))
    try:
        found = await compare(driver, node, explained, snapshot.local_addresses[family])
    except (OSError, SyncError) as e:
        return KernelState(unread=kernel_unread(machine, e))
    finally:
        await driver.close()
    if found is None and machine.holder() is None:
        return KernelState(
            unread=f"no kube-proxy runs here, and the kernel has nothing of {snapshot.mode.name} mode"
        )
    return found or KernelState(
        "differs", differences=(f"the kernel has nothing of {snapshot.mode.name} mode",)
    )


async def compare(
    driver: Comparable,
    node: NodeConfig,
    explained: Explanation,
    local_addresses: Iterable[str],
) -> KernelState | None:
    """Compares by a driver; None if the kernel has nothing of the mode.

    Args:
        driver: a driver that reads.
        node: the node under the family of the packet.
        explained: the explanation of the packet.
        local_addresses: every address of the node.

    Raises:
        SyncError: the kernel cannot be read.
    """
    packet = explained.packet
    wanted = _wanted(explained)
    read = wanted if explained.service else {**wanted, _NO_SERVICE: _phantom(packet, local_addresses)}
    for last in (False, True):
        held = await driver.read_part(node, read)
        if held.empty:
            return None
        found = driver.compare(held, node, wanted)
        if last or not found:
            break
        await asyncio.sleep(SETTLE_SECONDS)
    differences = (
        *(f"the kernel lacks: {line}" for line in found.lacking),
        *(f"the kernel has, and should not: {line}" for line in found.foreign),
        *(f"rules are in another order: {line}" for line in found.reordered),
    )
    rules = tuple(_rules(driver, held, node, explained)) if explained.service else ()
    return KernelState("differs" if found else "agrees", rules, differences)


def _wanted(explained: Explanation) -> dict[Key, ServicePlan]:
    """The Service port that the packet is for; without one the Services that have its address."""
    port = explained.verdict.port
    if port is None:
        return {plan.key: plan for plan in explained.plans}
    plan = next(plan for plan in explained.plans if plan.key == explained.service)
    return {plan.key: replace(plan, ports=(port,), health_check_port=0)}


def _phantom(packet: Packet, local_addresses: Iterable[str]) -> ServicePlan:
    """The plan of a Service that would have the packet's destination: nothing should be there."""
    node_port = packet.port if packet.destination in local_addresses else 0
    port = PortPlan("", packet.protocol, packet.port, packet.destination, node_port)
    return ServicePlan(*_NO_SERVICE, (port,))


def _rules(
    driver: Comparable, held: HeldPart, node: NodeConfig, explained: Explanation
) -> Iterable[HeldRule]:
    """What the kernel holds that this packet meets: without what is for other fronts of the Service port."""
    (plan,) = _wanted(explained).values()
    only = replace(plan, ports=(_only(plan.ports[0], explained.verdict.front, explained.packet),))
    of_port, of_front = ({_bare(line) for line in flat(driver.describe(node, each))} for each in (plan, only))
    numbers = dict(held.numbers) if isinstance(held, HeldRules) else {}
    distribution = explained.verdict.distribution
    slot = None if distribution is None else slot_of(distribution, explained.packet.source)
    for line in held.commands():
        if (found := _SLOT.match(line)) and (slot is None or int(found[1]) != slot):
            continue
        if _bare(line) in of_port & of_front:
            yield HeldRule(line, numbers.get(line, 0))


def _only(port: PortPlan, front: str, packet: Packet) -> PortPlan:
    """A Service port with one of its fronts."""
    at = (packet.destination,)
    only = replace(
        port,
        cluster_ip=port.cluster_ip if front == "ClusterIP" else "",
        external_ips=at if front == "external IP" else (),
        load_balancer_ips=at if front == "load balancer IP" else (),
        node_port=port.node_port if front == "node port" else 0,
    )
    return replace(
        only,
        cluster=only.cluster if only.uses_cluster else (),
        local=only.local if only.uses_local else (),
    )


def _bare(line: str) -> str:
    """A line without its comment: rules of endpoints have none in large clusters."""
    return _COMMENT.sub("", line)
