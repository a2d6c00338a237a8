"""The events of traced packets, put together packet by packet."""

import asyncio
from collections.abc import Collection, Sequence
from typing import Final

from kubeproxy.netlink.nft import messages
from kubeproxy.netlink.nft.trace import ANSWER, SENT, START, TraceEvent, Tracer

QUIET_SECONDS: Final = 0.25
"""When no event of a packet came for so long, there are no more."""


ANSWER_SECONDS: Final = 3.0
"""How long an answer is waited for after the first packet, which is sent again after one second."""


class PacketPath:
    """The way of a packet through the hooks.

    Attributes:
        first: it is the first packet of a connection; otherwise the answer to one.
        passed: the chains of our table that it passed.
        rules: the rules and policies that it met.
        stop: the last one that dropped it; None if none did.
        source, destination: where it came from and was sent to, address and port.
        left, end: the same at the last place where it was seen.
        interface: the index of the interface that received it; 0 if this host sent it.
        reset: it resets its TCP connection.
    """

    def __init__(self, events: Sequence[TraceEvent]) -> None:
        """Reads its events, in their order."""
        self.passed = {event.passed for event in events}
        self.first = START in self.passed
        self.rules = [event for event in events if not event.passed]
        self.stop = next((e for e in reversed(self.rules) if e.verdict == messages.DROP), None)
        sources = [event.source for event in events if event.source] or [b"\0" * 6]
        ends = [event.destination for event in events if event.destination] or [b"\0" * 6]
        self.source, self.left = sources[0], sources[-1]
        self.destination, self.end = ends[0], ends[-1]
        self.interface = next((event.interface for event in events if event.interface), 0)
        self.reset = any(event.reset for event in events)


class _Collected:
    """The events of first packets and of answers.

    The kernel numbers packets by what it knows of them, and some kernels change the number on the way, e.g.
    from one hook to the next. So an event with an unknown number is of the packet that was last seen with
    the same identity.

    Attributes:
        packets: the events of each packet, by its first number.
    """

    def __init__(self) -> None:
        """Has none."""
        self.packets: dict[int, list[TraceEvent]] = {}
        self._numbers: dict[int, int] = {}
        self._identities: dict[bytes, int] = {}

    def add(self, event: TraceEvent, *, more: bool) -> int | None:
        """Adds an event, and returns the packet; None if that is none of those that are collected.

        Args:
            event: the event.
            more: it may be of another first packet.
        """
        if event.packet not in self._numbers:
            first = event.packet
            if event.passed == START and not more:
                return None
            if event.passed not in {START, ANSWER}:
                known = self._identities.get(event.identity) if event.identity else None
                if known is None:
                    return None
                first = known
            self._numbers[event.packet] = first
        packet = self._numbers[event.packet]
        self.packets.setdefault(packet, []).append(event)
        if event.identity:
            self._identities[event.identity] = packet
        return packet

    def paths(self) -> dict[int, PacketPath]:
        """The ways of the packets, by their first numbers."""
        return {number: PacketPath(events) for number, events in self.packets.items()}

    def unanswered(self, endpoints: Collection[bytes]) -> set[int]:
        """The first packets that left for one of some endpoints, and of which there is no answer."""
        paths = self.paths()
        answers = answers_of(list(paths.values()))
        return {
            number
            for number, path in paths.items()
            if path.first and SENT in path.passed and path.end in endpoints
            if (path.end, path.left) not in answers
        }


def answers_of(paths: Sequence[PacketPath]) -> dict[tuple[bytes, bytes], PacketPath]:
    """The answer of each endpoint to each client, by the places of both.

    The first one counts: an endpoint may reset a connection later that it has accepted.
    """
    return {(path.source, path.destination): path for path in reversed(paths) if not path.first}


async def gather(
    tracer: Tracer, count: int, seconds: float, endpoints: Collection[bytes] = ()
) -> list[PacketPath]:
    """The ways of the first packets that come in time, and of answers, when these are complete.

    Ctrl-C, which cancels the task, ends the waiting for more first packets, too.

    Args:
        tracer: traces them.
        count: so many first packets.
        seconds: so long they are waited for.
        endpoints: addresses and ports whose answers are waited for as well.
    """
    loop = asyncio.get_running_loop()
    arrived = asyncio.Event()
    loop.add_reader(tracer.fileno(), arrived.set)
    found = _Collected()
    last: dict[int, float] = {}  # of first packets
    deadline = loop.time() + seconds
    try:
        while True:
            now = loop.time()
            over = len(last) >= count or now >= deadline
            events = tracer.read()
            if over and not events and all(now - at >= QUIET_SECONDS for at in last.values()):
                recent = {packet for packet, at in last.items() if now - at < ANSWER_SECONDS}
                if not recent or recent.isdisjoint(found.unanswered(endpoints)):
                    break
            for event in events:
                packet = found.add(event, more=not over and len(last) < count)
                if packet is not None and (event.passed == START or packet in last):
                    last[packet] = loop.time()
            if not events:
                arrived.clear()
                wait = QUIET_SECONDS if over else min(QUIET_SECONDS, deadline - now)
                try:
                    await _until(arrived, wait)
                except asyncio.CancelledError:  # what the kernel has reported is still read
                    if (task := asyncio.current_task()) is not None:
                        task.uncancel()
                    deadline = loop.time()
    finally:
        loop.remove_reader(tracer.fileno())
    return list(found.paths().values())


async def _until(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
