"""Follows a packet through the hooks of the kernel: translation, filters, IPVS, masquerading.

The order is that of netfilter: a packet that comes in passes nat PREROUTING, then filter INPUT or FORWARD by
its new destination, then nat POSTROUTING if it leaves; one of this node passes nat OUTPUT and filter OUTPUT,
and filter INPUT, too, if its destination is the node. IPVS takes packets to its virtual servers after filter
INPUT, or between nat OUTPUT and filter OUTPUT (net/netfilter/ipvs/ip_vs_core.c).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol

from msgspec import Struct, structs

from kubeproxy.api.rows import Protocol as Transport
from kubeproxy.insight.reference.outcome import Fate, Outcome, Path, Target, of_paths
from kubeproxy.insight.reference.packet_state import PROTOCOLS, PacketState
from kubeproxy.model.verdict import Packet


class Server(Struct, frozen=True):
    """A virtual server of IPVS.

    Attributes:
        reals: the real servers that take new connections.
        affinity: so many seconds a client keeps its real server; 0 without persistence.
    """

    reals: tuple[Target, ...]
    affinity: int = 0


Servers = Mapping[tuple[str, str, int], Server]
"""Virtual servers by protocol ("tcp"), address and port."""


class Hooks(Protocol):
    """IptablesRules that packets meet at the hooks of the kernel."""

    def hook(self, table: str, chain: str, state: PacketState) -> Iterator[tuple[Fate | None, PacketState]]:
        """What the rules at a hook do: dropped, rejected, or None where the packet continues.

        Args:
            table: "nat" for rules that see a packet before its destination is final, or when it leaves; else
                "filter".
            chain: the hook, by the name of its built-in chain.
            state: the packet.

        Raises:
            UnknownRuleError: it meets a rule that cannot be evaluated.
        """

    def asked(self) -> set[str]:
        """The ranges with which rules have compared sources since the last call."""

    def affinity(self, endpoints: int) -> int:
        """For how many seconds a client keeps its endpoint, by the rules evaluated since the last call.

        Args:
            endpoints: how many endpoints these rules lead to.

        Returns:
            The seconds; 0 for none, `outcome.SOME` if it is for some endpoints only.
        """

    def named(self) -> Iterator[tuple[str, Transport, int]]:
        """The fronts that rules name: address ("" for a node port), protocol and port."""


class Router:
    """The rules of one IP family, and the virtual servers if there are any."""

    def __init__(
        self, rules: Hooks, local_addresses: Collection[str], servers: Servers | None = None
    ) -> None:
        """Makes it.

        Args:
            rules: the rules.
            local_addresses: the addresses of the node, also those of interfaces that only hold addresses.
            servers: the virtual servers.
        """
        self._rules = rules
        self._local = frozenset(local_addresses)
        self._servers = servers or {}

    def outcome(self, packet: Packet) -> Outcome:
        """The outcome for a packet.

        Raises:
            UnknownRuleError: it meets a rule that cannot be evaluated.
        """
        state = PacketState(
            packet.source, packet.destination, packet.port, packet.protocol.lower(), packet.interface
        )
        self._rules.affinity(0)
        found = of_paths(self._incoming(state) if packet.interface else self._outgoing(state))
        server = self._servers.get((state.protocol, state.destination, state.port))
        affinity = self._rules.affinity(len(found.targets))
        return structs.replace(found, affinity=affinity or (server.affinity if server else 0))

    def asked(self) -> set[str]:
        """The ranges with which rules have compared sources since the last call."""
        return self._rules.asked()

    def named(self) -> Iterator[tuple[str, Transport, int]]:
        """The fronts that rules and virtual servers name: address ("" for a node port), protocol and port."""
        yield from self._rules.named()
        for protocol, address, port in self._servers:
            yield address, PROTOCOLS[protocol.upper()], port

    def _incoming(self, state: PacketState) -> Iterator[Path]:
        for early, after in self._rules.hook("nat", "PREROUTING", state):
            if early:
                yield _ended(early, after)
                continue
            if after.destination not in self._local:
                for fate, passed in self._rules.hook("filter", "FORWARD", after):
                    yield from [_ended(fate, passed)] if fate else self._leaves(passed)
                continue
            for fate, passed in self._rules.hook("filter", "INPUT", after):
                if fate:
                    yield _ended(fate, passed)
                elif (reals := self._reals(passed)) is None:
                    yield _arrived(passed)
                else:
                    for chosen in _scheduled(passed, reals):
                        yield from [_ended("reject", passed)] if chosen is None else self._leaves(chosen)

    def _outgoing(self, state: PacketState) -> Iterator[Path]:
        for early, after in self._rules.hook("nat", "OUTPUT", state):
            if early:
                yield _ended(early, after)
                continue
            reals = self._reals(after)
            for chosen in [after] if reals is None else _scheduled(after, reals):
                if chosen is None:
                    yield _ended("reject", after)
                    continue
                for fate, passed in self._rules.hook("filter", "OUTPUT", chosen):
                    yield from [_ended(fate, passed)] if fate else self._sent(passed)

    def _sent(self, state: PacketState) -> Iterator[Path]:
        """A packet of this node that passed its filters; if the node is its destination it comes in again."""
        if state.destination not in self._local:
            yield from self._leaves(state)
            return
        for path, left in self._masqueraded(state):
            for fate, passed in self._rules.hook("filter", "INPUT", left):
                yield _ended(fate, passed) if fate else path

    def _leaves(self, state: PacketState) -> Iterator[Path]:
        return (path for path, _ in self._masqueraded(state))

    def _masqueraded(self, state: PacketState) -> Iterator[tuple[Path, PacketState]]:
        for _, after in self._rules.hook("nat", "POSTROUTING", state):
            yield _arrived(after), after

    def _reals(self, state: PacketState) -> Sequence[Target] | None:
        server = self._servers.get((state.protocol, state.destination, state.port))
        return None if server is None else server.reals


def _scheduled(state: PacketState, reals: Sequence[Target]) -> Iterator[PacketState | None]:
    """The real servers that a virtual server can choose, all as likely; None if it has none."""
    if not reals:
        yield None
    for address, port in reals:
        yield structs.replace(
            state,
            destination=address,
            port=port,
            translated=True,
            probability=state.probability / len(reals),
            virtual=(state.destination, state.port),
        )


def _arrived(state: PacketState) -> Path:
    if not state.translated:
        return Path(state.probability, "pass")
    return Path(state.probability, "forward", (state.destination, state.port), state.masquerade)


def _ended(fate: Fate, state: PacketState) -> Path:
    return Path(state.probability, fate)
