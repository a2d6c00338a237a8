"""The answer of `explain`, as programs get it: its fields and their names do not change.

`kernel` says whether the kernel holds what the plan of the Service asks for: it was compared (agrees, differs) or not
(unread), for example because the answer is for another node.
"""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType, field

from kubeproxy.insight.snapshot import Snapshot
from kubeproxy.model.explain import Excluded, Explanation, Stage

Kernel = Literal["agrees", "differs", "unread"]


class EndpointAnswer(Struct, frozen=True):
    """An endpoint that is reached. See `model.explain.Reached`."""

    address: str
    port: int
    share: float
    local: bool
    node: str
    zone: str
    masquerade: bool
    slice: str


class Answer(Struct, frozen=True, kw_only=True, rename="camel"):
    """Why a packet goes where it goes.

    Attributes:
        source: the source address ("from").
        destination: the destination address ("to").
        port: the destination port.
        protocol: TCP, UDP or SCTP.
        interface: the interface the packet comes in by; "" if a process of the node sends it.
        mode: the proxy mode.
        node: the node.
        verdict: forward, drop, reject, or pass: no Service has the destination.
        reason: why.
        service: namespace/name of the Service; "" if it is for none.
        port_name: the name of the Service port.
        front: what the destination is to the Service: ClusterIP, external IP, load balancer IP or node port.
        masquerade: the source becomes an address of the node, whichever endpoint is chosen.
        endpoints: where it can go.
        excluded: other endpoints of the Service port, each with the reason.
        stages: how it was decided, step by step.
        kernel: whether the kernel holds the plan of the Service.
        differences: how it differs.
        live: what was seen of real packets; not there if none were traced.
    """

    source: str = field(name="from")
    destination: str = field(name="to")
    port: int
    protocol: str
    interface: str
    mode: str
    node: str
    verdict: str
    reason: str
    service: str
    port_name: str
    front: str
    masquerade: bool
    endpoints: tuple[EndpointAnswer, ...]
    excluded: tuple[Excluded, ...]
    stages: tuple[Stage, ...]
    kernel: Kernel = "unread"
    differences: tuple[str, ...] = ()
    live: dict[str, Any] | UnsetType = UNSET


def answer(snapshot: Snapshot, explained: Explanation) -> Answer:
    """The answer without what the kernel holds.

    Args:
        snapshot: the cluster.
        explained: the explanation.
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
            EndpointAnswer(
                each.address,
                each.port,
                round(each.share, 4),
                each.local,
                each.node,
                each.zone,
                each.masquerade or carried,
                each.slice,
            )
            for each in explained.endpoints
        ),
        excluded=explained.excluded,
        stages=explained.stages,
    )
