"""What the kernel does with real packets of a flow, beside what was predicted.

Packets are traced by nf_tables (`netlink.nft.trace`). Of each it is seen where it leaves for, whether it is
masqueraded on the way, or which rule of whichever table drops or rejects it.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping
from typing import Final

from msgspec.structs import replace

from kubeproxy import backends, protocols
from kubeproxy.answers.answer import Answer
from kubeproxy.answers.seen import Live, Seen, TracedPacket
from kubeproxy.api.addresses import IPV4, family_of, join, pack, unpack
from kubeproxy.backends.base import SyncError, UnsupportedError
from kubeproxy.linux import run
from kubeproxy.machine.base import Machine
from kubeproxy.netlink import wire
from kubeproxy.netlink.nft import messages, reading
from kubeproxy.netlink.nft.kernel import NftKernel
from kubeproxy.netlink.nft.trace import FAMILIES, TracedFlow, TraceEvent, Tracer

QUIET_SECONDS: Final = 0.25
"""When no event of a packet came for so long, there are no more."""

_MASQUERADES: Final = frozenset({"masquerade", "MASQUERADE", "masq"})
_REJECTS: Final = frozenset({"reject", "REJECT"})
_COMMENT: Final = re.compile(r'comment "[^"]*"|/\*.*?\*/')


async def watch(machine: Machine, answer: Answer, count: int, seconds: float) -> Live:
    """Traces packets of the flow of an answered question.

    Args:
        machine: this host, for which it was answered.
        answer: the prediction.
        count: so many packets.
        seconds: how long to wait for them.
    """
    mode = backends.mode(answer.mode)
    try:
        cannot = await asyncio.to_thread(mode.untraceable, machine, family_of(answer.destination))
        if cannot:
            return Live(cannot=cannot)
        tracer = Tracer(machine, _flow(answer))
    except (OSError, SyncError, UnsupportedError) as e:
        lacking = machine.lacks(("CAP_NET_ADMIN",))
        why = f"; this process has no {lacking[0]}" if lacking else ""
        return Live(cannot=f"the kernel does not trace: {e}{why}")
    loop = asyncio.get_running_loop()
    start = loop.time()
    with tracer:
        packets = await _gather(tracer, count, seconds)
        took = loop.time() - start
        rules = _Rules(machine)
        found = tuple(rules.judge(events, answer) for events in packets.values())
    matches = sum(each.match for each in found)
    return Live(found, matches, len(found) - matches, tracer.losses, round(took, 1))


def _flow(answer: Answer) -> TracedFlow:
    """The packets to trace: what this host sends may have any of its addresses."""
    return TracedFlow(
        messages.IP if family_of(answer.destination) == IPV4 else messages.IP6,
        protocols.NUMBERS[answer.protocol],
        pack(answer.source) if answer.interface else b"",
        pack(answer.destination),
        answer.port,
        own=not answer.interface,
    )


async def _gather(tracer: Tracer, count: int, seconds: float) -> dict[int, list[TraceEvent]]:
    """The events of the first packets, until these are complete or the time is over."""
    loop = asyncio.get_running_loop()
    arrived = asyncio.Event()
    loop.add_reader(tracer.fileno(), arrived.set)
    packets: dict[int, list[TraceEvent]] = {}
    last: dict[int, float] = {}
    deadline = loop.time() + seconds
    try:
        while (now := loop.time()) < deadline:
            if len(packets) >= count and all(now - at >= QUIET_SECONDS for at in last.values()):
                break
            try:
                async with asyncio.timeout(min(QUIET_SECONDS, deadline - now)):
                    await arrived.wait()
            except TimeoutError:
                continue
            arrived.clear()
            for event in tracer.read():
                if event.packet in packets or len(packets) < count:
                    packets.setdefault(event.packet, []).append(event)
                    last[event.packet] = loop.time()
    finally:
        loop.remove_reader(tracer.fileno())
    return packets


class _Rules:
    """The rules that packets met, read when they are needed."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._texts: dict[tuple[int, str, str, int], str] = {}

    def judge(self, events: list[TraceEvent], answer: Answer) -> TracedPacket:
        """What became of a packet, and whether that was predicted."""
        sources = [_place(event.source) for event in events if event.source]
        places = [_place(event.destination) for event in events if event.destination]
        end = places[-1] if places else (answer.destination, answer.port)
        masquerade = any(not _MASQUERADES.isdisjoint(self.words(event)) for event in events if event.handle)
        stop = next((event for event in reversed(events) if event.verdict == messages.DROP), None)
        seen: Seen = "pass" if end == (answer.destination, answer.port) else "forward"
        if stop is not None:
            seen = "drop" if _REJECTS.isdisjoint(self.words(stop)) else "reject"
        packet = TracedPacket(join(*sources[0]) if sources else "", seen, join(*end), masquerade, match=True)
        if stop is not None:
            packet = replace(
                packet,
                table=f"{FAMILIES.get(stop.family, stop.family)} {stop.table}",
                chain=stop.chain,
                handle=stop.handle,
                rule=self.text(stop) if stop.handle else "its policy is drop",
            )
        why = _difference(packet, end, answer)
        return replace(packet, match=not why, why=why)

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


def shown(packet: TracedPacket) -> str:
    """What became of a packet, as a line of text."""
    text = f"{packet.source} {_WORDS[packet.verdict]}"
    if packet.verdict in {"forward", "pass"}:
        text += f" {packet.destination}{', masqueraded' if packet.masquerade else ''}"
    if packet.table:
        rule = f"rule with handle {packet.handle}: {packet.rule}" if packet.handle else packet.rule
        text += f" in table {packet.table}, chain {packet.chain}, {rule}"
    return text if packet.match else f"{text}; {packet.why}"


_WORDS: Final = {"forward": "->", "pass": "passed to", "drop": "dropped", "reject": "rejected"}
