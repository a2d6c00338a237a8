"""The answer of `explain`, as programs get it: its fields and their names do not change.

`kernel` says whether the kernel holds what the plan of the Service asks for: it was compared (agrees,
differs) or not (unread), for example because the answer is for another node.
"""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType, field

from kubeproxy.answers.seen import Followed, Live
from kubeproxy.model.excluded import Excluded
from kubeproxy.model.explain import Reached, Stage

State = Literal["agrees", "differs", "unread"]


class HeldRule(Struct, frozen=True, gc=False):
    """Something the kernel holds.

    Attributes:
        text: it, in the syntax of the system's own tools.
        number: its number in its chain, counted from 1; 0 where there is none.
    """

    text: str
    number: int = 0


class Answer(Struct, frozen=True, kw_only=True, rename="camel"):
    """The verdict on a packet, and the reasons.

    Attributes:
        source: the source address ("from").
        destination: the destination address ("to").
        port: the destination port.
        protocol: TCP, UDP or SCTP.
        interface: the interface that receives the packet; "" if a process of the node sends it.
        mode: the proxy mode.
        node: the node.
        verdict: forward, drop, reject, or pass: no Service has the destination.
        reason: why.
        service: namespace/name of the Service; "" if it is for none.
        port_name: the name of the Service port.
        front: what the destination is to the Service: ClusterIP, external IP, load balancer IP or node port.
        masquerade: the source becomes an address of the node, whichever endpoint is chosen.
        endpoints: the endpoints it can reach.
        excluded: other endpoints of the Service port, each with the reason.
        stages: how it was decided, step by step.
        kernel: whether the kernel holds the plan of the Service.
        differences: how it differs.
        rules: what it holds for this packet.
        unread: why it was not compared.
        routing: why the routing of this host drops the packet; "" if it does not, or that is not known.
        live: what was seen of real packets; not there if none were traced.
        flows: its open connections; left out if they were not requested.
        at: the former moment that is answered for, RFC 3339; left out for the present.
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
    endpoints: tuple[Reached, ...]
    excluded: tuple[Excluded, ...]
    stages: tuple[Stage, ...]
    kernel: State = "unread"
    differences: tuple[str, ...] = ()
    rules: tuple[HeldRule, ...] = ()
    unread: str = ""
    routing: str = ""
    live: Live | UnsetType = UNSET
    flows: Followed | UnsetType = UNSET
    at: str | UnsetType = UNSET
