"""Observed packets and connections of a flow, in the format for programs: part of an answer of `explain`."""

from typing import Literal

from msgspec import Struct

Seen = Literal["forward", "drop", "reject", "pass"]
Reply = Literal["", "came", "refused", "none", "dropped", "lost"]
"""The answer of the endpoint: not looked for; it left this host or was received by it; a TCP reset; nothing
came; it came, and this host dropped or lost it."""


class TracedPacket(Struct, frozen=True, rename="camel", gc=False):
    """What became of a packet.

    Attributes:
        source: where it came from, with its port.
        verdict: what became of it; "pass": its destination was not changed.
        destination: where it went, with its port.
        masquerade: its source became an address of the node.
        match: that is what was predicted.
        why: how it differs, "" if it does not.
        answer: what became of the endpoint's answer.
        table: the table, with its family, of the rule that decided: that dropped or rejected it, dropped the
            answer, or sent it elsewhere.
        chain: the chain.
        handle: the handle of the rule; 0: it was the policy of the chain.
        rule: the rule.
        lost: where it, or the answer, was lost, if no rule that nf_tables traces did that; "" if it was not.
    """

    source: str
    verdict: Seen
    destination: str
    masquerade: bool
    match: bool
    why: str = ""
    answer: Reply = ""
    table: str = ""
    chain: str = ""
    handle: int = 0
    rule: str = ""
    lost: str = ""


class Live(Struct, frozen=True):
    """What was seen.

    Attributes:
        packets: the packets.
        matches: how many of them did what was predicted.
        differs: how many did not.
        losses: how often the kernel had more events than could be received.
        seconds: how long packets were waited for.
        cannot: why none could be traced, "" if they could.
    """

    packets: tuple[TracedPacket, ...] = ()
    matches: int = 0
    differs: int = 0
    losses: int = 0
    seconds: float = 0
    cannot: str = ""


class OpenFlow(Struct, frozen=True, gc=False):
    """A connection.

    Attributes:
        client: its source address and port.
        endpoint: the address and port that answer; the destination itself if it was not translated.
        state: its state, as conntrack prints it.
        expected: new connections go to this endpoint, too.
    """

    client: str
    endpoint: str
    state: str
    expected: bool


class Followed(Struct, frozen=True, rename="camel"):
    """The connections of a flow.

    Attributes:
        flows: the connections.
        endpoints: how many each endpoint has.
        more: there are more than are listed.
        cannot: why they could not be read, "" if they were.
    """

    flows: tuple[OpenFlow, ...] = ()
    endpoints: dict[str, int] = {}
    more: bool = False
    cannot: str = ""
