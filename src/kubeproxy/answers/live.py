"""What the kernel does with real packets of a flow, beside what was predicted.

Packets are traced by nf_tables (`netlink.nft.trace`). Of each it is seen where it leaves for, whether it is
masqueraded on the way, and which rule of whichever table drops or rejects it. A packet that is gone although
no rule dropped it was lost by something that nf_tables does not trace: routing, or rules of legacy iptables.
The first answers of endpoints are traced as well, where they come in.
"""

import asyncio
import contextlib
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from kubeproxy import backends, protocols
from kubeproxy.answers import reasons, routing
from kubeproxy.answers.answer import Answer
from kubeproxy.answers.paths import PacketPath, answers_of, gather
from kubeproxy.answers.seen import Live, Reply, Seen, TracedPacket
from kubeproxy.api.addresses import IPV4, family_of, join, pack, unpack
from kubeproxy.linux import run
from kubeproxy.machine.base import Machine
from kubeproxy.netlink import wire
from kubeproxy.netlink.nft import messages, reading
from kubeproxy.netlink.nft.kernel import NftKernel
from kubeproxy.netlink.nft.trace import (
    DELIVERED,
    FAMILIES,
    FORWARDED,
    RECEIVED,
    SENT,
    TracedFlow,
    TraceEvent,
    Tracer,
)

CONNECT_SECONDS: Final = 0.5
"""So long a connection that is made for this waits for an answer."""

MOST_ANSWERING: Final = 16
"""Answers of so many endpoints are traced."""

_MASQUERADES: Final = frozenset({"masquerade", "MASQUERADE", "masq"})
_REJECTS: Final = frozenset({"reject", "REJECT"})
_DIVERTS: Final = frozenset(
    {"dnat", "DNAT", "redirect", "REDIRECT", "notrack", "NOTRACK", "CT", "tproxy", "TPROXY"}
)
"""What changes the destination of a packet, or excludes it from translation."""

_ENDS_HERE: Final = (
    "this mode connects to endpoints itself: packets of clients end at its sockets; its own connections are traced by"
    " --from node --to ENDPOINT:PORT"
)
_COMMENT: Final = re.compile(r'comment "[^"]*"|/\*.*?\*/')


async def watch(
    machine: Machine, answer: Answer, count: int, seconds: float, *, connect: bool = False
) -> Live:
    """Traces packets of the flow of an answered question.

    Args:
        machine: this host, for which it was answered.
        answer: the prediction.
        count: so many packets.
        seconds: how long to wait for them.
        connect: make so many connections, too; the packets are those of a process of this host.
    """
    if answer.service and not backends.mode(answer.mode).forwards:
        return Live(cannot=_ENDS_HERE)
    try:
        flow = _flow(answer)
        tracer = Tracer(machine, flow)
    except OSError as e:
        return Live(cannot=f"the kernel does not trace: {reasons.why(machine, e)}")
    loop = asyncio.get_running_loop()
    start = loop.time()
    with tracer:
        connecting = asyncio.create_task(_connect(machine, answer, count if connect else 0))
        endpoints = {address + port.to_bytes(2) for address, port in flow.endpoints}
        packets = await gather(tracer, count, seconds, endpoints)
        connecting.cancel()
        took = loop.time() - start
        judge = _LiveJudge(machine, answer, complete=not tracer.losses)
        found = tuple(judge.judge(packets))
    matches = sum(each.match for each in found)
    return Live(found, matches, len(found) - matches, tracer.losses, round(took, 1))


async def _connect(machine: Machine, answer: Answer, count: int) -> None:
    """Connects to the destination of a question, and closes each connection at once."""
    domain = socket.AF_INET if family_of(answer.destination) == IPV4 else socket.AF_INET6
    kind = socket.SOCK_DGRAM if answer.protocol == "UDP" else socket.SOCK_STREAM
    loop = asyncio.get_running_loop()
    for _ in range(count):
        with contextlib.suppress(OSError), machine.socket(domain, kind) as client:
            client.setblocking(False)
            async with asyncio.timeout(CONNECT_SECONDS):
                await loop.sock_connect(client, (answer.destination, answer.port))
            if kind == socket.SOCK_DGRAM:
                client.send(b"")


def _flow(answer: Answer) -> TracedFlow:
    """The packets to trace: what this host sends may have any of its addresses."""
    return TracedFlow(
        messages.IP if family_of(answer.destination) == IPV4 else messages.IP6,
        protocols.NUMBERS[answer.protocol],
        pack(answer.source) if answer.interface else b"",
        pack(answer.destination),
        answer.port,
        own=not answer.interface,
        endpoints=tuple((pack(address), port) for address, port in _answering(answer)),
    )


def _answering(answer: Answer) -> list[tuple[str, int]]:
    """The endpoints whose answers are traced; a destination that is no Service answers itself."""
    if answer.verdict == "pass":
        return [(answer.destination, answer.port)]
    return [(each.address, each.port) for each in answer.endpoints[:MOST_ANSWERING]]


class _LiveJudge:
    """Decides what became of packets. The rules that they met are read when they are needed."""

    def __init__(self, machine: Machine, answer: Answer, *, complete: bool) -> None:
        """Starts without any.

        Args:
            machine: this host.
            answer: the prediction.
            complete: no event was lost.
        """
        self._machine = machine
        self._answer = answer
        self._complete = complete
        self._texts: dict[tuple[int, str, str, int], str] = {}

    def judge(self, routes: Sequence[PacketPath]) -> Iterator[TracedPacket]:
        """What became of packets and their answers, and whether that was predicted.

        Args:
            routes: the ways of first packets and of answers.
        """
        answers = answers_of(routes)
        for path in routes:
            if path.first:
                packet = self._packet(path)
                reply = answers.get((path.end, path.left))
                yield self._answered(packet, path, reply) if packet.match else packet

    def _packet(self, path: PacketPath) -> TracedPacket:
        """What became of a first packet."""
        answer = self._answer
        asked = answer.destination, answer.port
        end = _place(path.end) if path.end else asked
        masquerade = any(
            not _MASQUERADES.isdisjoint(self.words(event)) for event in path.rules if event.handle
        )
        if SENT in path.passed:  # rules of legacy iptables are not seen
            masquerade = masquerade or path.left[:-2] != path.source[:-2]
        seen: Seen = "pass" if end == asked else "forward"
        packet = TracedPacket(join(*_place(path.source)), seen, join(*end), masquerade, match=True)
        packet = self._stopped(packet, path)
        why = _difference(packet, end, answer)
        if why and packet.verdict in {"forward", "pass"}:
            return self._diverted(packet, why, path.rules)
        return replace(packet, match=not why, why=why)

    def _stopped(self, packet: TracedPacket, path: PacketPath) -> TracedPacket:
        """A packet, with the rule that dropped it, or the place where it was lost, if it was."""
        if path.stop is not None:
            verdict: Seen = "drop" if _REJECTS.isdisjoint(self.words(path.stop)) else "reject"
            return replace(self._by(packet, path.stop), verdict=verdict)
        if self._complete and path.passed.isdisjoint({SENT, DELIVERED}):
            return replace(packet, verdict="drop", lost=self._lost(path))
        return packet

    def _answered(self, packet: TracedPacket, path: PacketPath, reply: PacketPath | None) -> TracedPacket:
        """A packet that was treated as predicted, with what became of the answer."""
        if SENT not in path.passed or _place(path.end) not in _answering(self._answer):
            return packet
        if reply is None:
            return replace(packet, answer="none" if self._complete else "")
        stopped = self._stopped(packet, reply)
        if stopped.table or stopped.lost:
            kind: Reply = "lost" if stopped.lost else "dropped"
            why = "the endpoint answered, and the answer did not leave this host"
            return replace(stopped, verdict=packet.verdict, answer=kind, match=False, why=why)
        refused = self._answer.protocol == "TCP" and reply.reset
        return replace(packet, answer="refused" if refused else "came")

    def _lost(self, path: PacketPath) -> str:
        """Where a packet was lost."""
        untraced = "by something that nf_tables does not trace, such as a rule of legacy iptables (iptables-legacy-save -c)"
        for name, hook in ((FORWARDED, "forward or postrouting"), (RECEIVED, "input")):
            if name in path.passed:
                return f"in hook {hook}, {untraced}"
        if not path.interface:
            return f"in hook output or postrouting, {untraced}"
        name = self._machine.interface_name(path.interface)
        source, destination = _place(path.source)[0], _place(path.end)[0]
        why = routing.obstacle(self._machine, source, [destination], name)
        if why:
            return f"by routing, received on {name}: {why}"
        return "in hook prerouting or by routing: see ip rule, and iptables-legacy-save -c"

    def _diverted(self, packet: TracedPacket, why: str, rules: Sequence[TraceEvent]) -> TracedPacket:
        """A packet that went elsewhere, with the rule that sent it there or excluded it from translation."""
        found = replace(packet, match=False, why=why)
        for event in reversed(rules):
            if event.handle and not _DIVERTS.isdisjoint(self.words(event)):
                return self._by(found, event)
        if self._answer.protocol == "TCP":
            by = (
                "no rule that nf_tables traces did this: look at iptables-legacy-save -t nat, and ipvsadm -Ln"
            )
        else:
            by = "no rule did this, so its flow was tracked before; `kube-proxy verify` lists such flows"
        return replace(found, why=f"{why}; {by}")

    def _by(self, packet: TracedPacket, event: TraceEvent) -> TracedPacket:
        """A packet with the rule, or policy, that decided."""
        return replace(
            packet,
            table=f"{FAMILIES.get(event.family, event.family)} {event.table}",
            chain=event.chain,
            handle=event.handle,
            rule=self.text(event) if event.handle else "its policy is drop",
        )

    def words(self, event: TraceEvent) -> set[str]:
        """The text of an event's rule, without its comment."""
        if not event.handle:
            return set()
        return set(_COMMENT.sub("", self.text(event)).replace('"', "").split())

    def text(self, event: TraceEvent) -> str:
        """The rule of an event, as nft prints it; without nft, what can be read of it."""
        key = event.family, event.table, event.chain, event.handle
        if key not in self._texts:
            self._texts |= {(*key[:3], handle): text for handle, text in self._listed(event).items()}
            self._texts.setdefault(key, self._read(event))
        return self._texts[key]

    def _listed(self, event: TraceEvent) -> Mapping[int, str]:
        """The rules of the event's chain by their handles, as nft lists them."""
        if self._machine.which("nft") is None:
            return {}
        argv = ["nft", "-a", "list", "chain", FAMILIES[event.family], event.table, event.chain]
        found = {}
        try:
            for line in self._machine.lines(argv):
                rule, mark, handle = line.rpartition(" # handle ")
                if mark and handle.isdecimal() and not rule.rstrip().endswith("{"):
                    found[int(handle)] = rule.strip()
        except (OSError, run.ProgramError):
            return {}
        return found

    def _read(self, event: TraceEvent) -> str:
        """The rule of an event read by its expressions."""
        asked = wire.text(1, event.table) + wire.text(2, event.chain) + wire.be64(3, event.handle)
        try:
            with NftKernel(self._machine) as kernel:
                (body,) = kernel.ask(messages.GETRULE, event.family, asked)
        except (OSError, ValueError):
            return "a rule that is gone"
        expressions = wire.attributes(body)[4]
        try:
            return reading.Reader(event.family, {}).read(expressions)
        except (ValueError, KeyError):
            return " ".join(_names(expressions))


def _difference(packet: TracedPacket, end: tuple[str, int], answer: Answer) -> str:
    """How a packet differs from the prediction, "" if it does not."""
    if packet.lost and answer.verdict == "reject":  # which of the two it was is not seen
        return ""
    if packet.verdict != answer.verdict:
        return f"predicted was {answer.verdict}"
    if packet.verdict != "forward":
        return ""
    reached = {(each.address, each.port): each for each in answer.endpoints}
    if end not in reached:
        return f"{join(*end)} is none of the endpoints that were predicted"
    if packet.masquerade != reached[end].masquerade:
        return f"predicted was that it is {'' if reached[end].masquerade else 'not '}masqueraded"
    return ""


def _names(expressions: memoryview) -> Iterable[str]:
    """The names of a rule's expressions; of those of iptables those of the match or target."""
    for _, expression in wire.attribute_list(expressions):
        parts = wire.attributes(expression)
        name = wire.string(parts[1])
        yield wire.string(wire.attributes(parts[2])[1]) if name in {"match", "target"} else name


def _place(place: bytes) -> tuple[str, int]:
    return unpack(place[:-2]), int.from_bytes(place[-2:])


def shown(packet: TracedPacket, source: str) -> str:
    """What became of a packet, as a line of text; `source` is where it came from."""
    text = f"{source} {_WORDS[packet.verdict]}"
    if packet.verdict in {"forward", "pass"}:
        text += f" {packet.destination}{', masqueraded' if packet.masquerade else ''}"
    answer = _ANSWERS.get(packet.answer, "")
    if packet.lost:
        text = f"{text}{answer} {packet.lost}" if answer else f"{source} lost {packet.lost}"
    elif packet.table:
        rule = f"rule with handle {packet.handle}: {packet.rule}" if packet.handle else packet.rule
        text += f"{answer} in table {packet.table}, chain {packet.chain}, {rule}"
    else:
        text += answer
    return text if packet.match else f"{text}; {packet.why}"


_WORDS: Final = {"forward": "->", "pass": "passed to", "drop": "dropped", "reject": "rejected"}
_ANSWERS: Final = {
    "came": ", answered",
    "refused": ", which refused the connection",
    "none": ", no answer came back to this node",
    "dropped": ", its answer was dropped",
    "lost": ", its answer was lost",
}
