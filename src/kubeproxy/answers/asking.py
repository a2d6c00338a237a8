"""Answers a question: what a packet is, the verdict on it and why, and whether the kernel agrees."""

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from kubeproxy.answers import kernel, packets, routing
from kubeproxy.answers.answer import Answer
from kubeproxy.answers.kernel import KernelState
from kubeproxy.answers.packets import PacketError
from kubeproxy.answers.snapshot import Snapshot
from kubeproxy.api.addresses import family_of
from kubeproxy.machine.base import Machine
from kubeproxy.model.explain import Explanation, Stage, explain
from kubeproxy.model.plan import FORWARD

_UNREAD: Final = KernelState()


class QuestionError(Exception):
    """The question cannot be answered; the message has the reason."""


async def ask(
    snapshot: Snapshot,
    machine: Machine,
    source: str,
    destination: str,
    interface: str,
    addresses: Sequence[str] = (),
) -> Answer:
    """Determines the verdict on a packet.

    Args:
        snapshot: the cluster.
        machine: this host.
        source: who sends it, as `packets` reads it.
        destination: where to.
        interface: the interface it comes in by; "" to look it up.
        addresses: the addresses of the source, if it is a Pod and they are known.

    Raises:
        QuestionError: it cannot be answered.
    """
    try:
        packet = packets.packet(snapshot, machine, source, destination, interface, addresses=addresses)
    except PacketError as e:
        raise QuestionError(str(e)) from e
    family = family_of(packet.destination)
    node, manners = snapshot.node(family), snapshot.mode.manners
    if node is None or manners is None:
        raise QuestionError(f"{snapshot.mode.name} mode cannot be explained")
    explained = explain(snapshot.state, node, snapshot.local_addresses[family], manners, packet)
    found = answer(snapshot, explained, await kernel.look(snapshot, machine, explained))
    obstacle = _obstacle(snapshot, machine, found)
    if not obstacle:
        return found
    return replace(
        found, routing=obstacle, stages=(*found.stages, Stage("routing", f"drops packets: {obstacle}"))
    )


def _obstacle(snapshot: Snapshot, machine: Machine, found: Answer) -> str:
    """Why the routing of this host drops a packet that rules forward, "" if it does not."""
    here = snapshot.own and not snapshot.past and (found.kernel != "unread" or machine.holder() is not None)
    if found.verdict != FORWARD or not here or not snapshot.mode.forwards:
        return ""
    return routing.obstacle(
        machine, found.source, [each.address for each in found.endpoints], found.interface
    )


def answer(snapshot: Snapshot, explained: Explanation, kernel: KernelState = _UNREAD) -> Answer:
    """The answer.

    Args:
        snapshot: the cluster.
        explained: the explanation.
        kernel: what the kernel holds.
    """
    packet, verdict = explained.packet, explained.verdict
    carried = not snapshot.mode.forwards and verdict.action == "forward"  # connections are made by this node
    return Answer(
        source=packet.source,
        destination=packet.destination,
        port=packet.port,
        protocol=packet.protocol,
        interface=packet.interface,
        mode=snapshot.mode.name,
        node=snapshot.name,
        verdict=verdict.action,
        reason=verdict.reason,
        service="/".join(explained.service) if explained.service else "",
        port_name=verdict.port.name.partition(":")[2] if verdict.port else "",
        front=verdict.front,
        masquerade=verdict.masquerade or carried,
        endpoints=tuple(
            replace(each, share=round(each.share, 4), masquerade=each.masquerade or carried)
            for each in explained.endpoints
        ),
        excluded=explained.excluded,
        stages=explained.stages,
        kernel=kernel.state,
        differences=kernel.differences,
        rules=kernel.rules,
        unread=kernel.unread,
    )
