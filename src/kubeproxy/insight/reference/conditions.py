"""The conditions of iptables rules: each option of `iptables-save` that kube-proxy writes, as a function.

Source: iptables-extensions(8).
"""

from collections.abc import Callable, Collection, Mapping
from typing import Final

from kubeproxy.api.addresses import contains, parse_address
from kubeproxy.insight.reference.outcome import SOME, UnknownRuleError
from kubeproxy.insight.reference.packet_state import PacketState

_WITH_VALUE: Final = frozenset({"--seconds", "--hitcount", "--name", "--mask"})
"""Options of the match `recent` that have a value."""

Sets = Mapping[str, frozenset[tuple[str, ...]]]
"""Elements of ipset sets: an address or range, PROTOCOL:PORT or a port, and another address or range."""

Match = Callable[[PacketState], float]
"""How likely a rule's condition holds for a packet, from 0 to 1."""


class Conditions:
    """Makes the conditions of the rules of one IP family, and records which ranges they compare."""

    def __init__(self, local_addresses: Collection[str], sets: Sets) -> None:
        """Makes it.

        Args:
            local_addresses: the addresses of the node.
            sets: the sets that rules look into.
        """
        self._local = frozenset(local_addresses)
        self._sets = sets
        self._asked: set[str] = set()
        self._affinity: list[int] = []

    def asked(self) -> set[str]:
        """The ranges with which rules have compared sources since the last call."""
        asked, self._asked = self._asked, set()
        return asked

    def affinity(self, endpoints: int) -> int:
        """For how many seconds a client keeps its endpoint, by the rules evaluated since the last call.

        Args:
            endpoints: how many endpoints these rules lead to; each has a rule that finds its clients.

        Returns:
            The seconds; 0 for none, `outcome.SOME` if not all endpoints have a rule.
        """
        met, self._affinity = self._affinity, []
        return 0 if not met else met[0] if len(met) == endpoints and len(set(met)) == 1 else SOME

    def parse(self, module: str, word: str, rest: list[str], text: str, *, negated: bool) -> Match | None:
        """The condition of one option; None if it always holds."""

        def test(condition: Callable[[PacketState], bool]) -> Match:
            return lambda state: float(condition(state) != negated)

        match module, word:
            case _, "-s":
                cidr = _cidr(rest.pop())
                return test(lambda state: self._is_from(cidr, state))
            case _, "-d":
                cidr = _cidr(rest.pop())
                return test(lambda state: contains(cidr, state.destination))
            case _, "-i":
                name = rest.pop()
                return test(lambda state: _is_interface(name, state.incoming))
            case _, "-p":
                protocol = rest.pop()
                return test(lambda state: state.protocol == protocol)
            case (("tcp" | "udp" | "sctp"), "--dport"):
                low, _, high = rest.pop().partition(":")
                return test(lambda state: int(low) <= state.port <= int(high or low))
            case "comment", "--comment":
                rest.pop()
                return None
            case "addrtype", ("--dst-type" | "--src-type"):
                if rest.pop() != "LOCAL":
                    raise UnknownRuleError(text)
                if word == "--dst-type":
                    return test(lambda state: self._is_local(state.destination))
                return test(lambda state: self._is_local(state.source))
            case "conntrack", "--ctstate":
                states = set(rest.pop().split(","))
                return test(lambda state: "NEW" in states or ("DNAT" in states and state.translated))
            case "mark", "--mark":
                value, _, mask = rest.pop().partition("/")
                bits, wanted = int(mask or "0xffffffff", 16), int(value, 16)
                return test(lambda state: state.mark & bits == wanted)
            case "statistic", "--mode":
                if rest.pop() != "random" or rest.pop() != "--probability" or negated:
                    raise UnknownRuleError(text)
                chance = float(rest.pop())
                return lambda _: chance
            case "recent", _:
                return self._recent(word, rest, text)
            case "nfacct", "--nfacct-name":
                rest.pop()
                return None
            case "set", "--match-set":
                return test(self._in_set(rest.pop(), rest.pop(), text))
            case "physdev", "--physdev-is-in":
                return test(lambda _: False)
            case _, "--vproto":
                return test(_of_virtual(rest, text))
        raise UnknownRuleError(text)

    def _recent(self, word: str, rest: list[str], text: str) -> Match | None:
        """Session affinity: a new client is in no list; `--set` puts it there and always holds."""
        options = {word: rest.pop() if word in _WITH_VALUE else ""}
        while rest and rest[-1].startswith("--"):
            option = rest.pop()
            options[option] = rest.pop() if option in _WITH_VALUE else ""
        if "--rcheck" in options or "--update" in options:
            seconds = int(options.get("--seconds") or 0)

            def unknown(_: PacketState) -> float:
                self._affinity.append(seconds)
                return 0.0

            return unknown
        if "--set" in options:
            return None
        raise UnknownRuleError(text)

    def _is_from(self, cidr: str, state: PacketState) -> bool:
        if not cidr.endswith(("/32", "/128")):  # those are endpoints
            self._asked.add(cidr)
        return contains(cidr, state.source)

    def _is_local(self, address: str) -> bool:
        return address in self._local or contains("127.0.0.0/8", address)

    def _in_set(self, name: str, directions: str, text: str) -> Callable[[PacketState], bool]:
        elements = self._sets.get(name)
        if elements is None:
            raise UnknownRuleError(f"{text}: set {name} cannot be read")
        exact = {element for element in elements if not any("/" in part for part in element)}
        ranges = [element for element in elements if element not in exact]
        shape = len(next(iter(elements), ()))
        sides = directions.split(",")

        def condition(state: PacketState) -> bool:
            if not elements:
                return False
            number = f"{state.protocol}:{state.port}"
            first = state.source if sides[0] == "src" else state.destination
            if shape == 1:
                return (first,) in exact or (str(state.port),) in exact
            key: tuple[str, ...] = (first, number)
            if shape == 2:
                return key in exact
            other = state.source if sides[2] == "src" else state.destination
            if sides[2] == "src":
                self._asked.update(each[2] for each in ranges if each[:2] == key)
            return (*key, other) in exact or any(
                element[:2] == key and contains(element[2], other) for element in ranges if "/" in element[2]
            )

        return condition


def _cidr(text: str) -> str:
    address, slash, length = text.partition("/")
    return f"{parse_address(address)}/{length if slash else (128 if ':' in address else 32)}"


def _is_interface(name: str, incoming: str) -> bool:
    return incoming.startswith(name[:-1]) if name.endswith("+") else incoming == name


def _of_virtual(rest: list[str], text: str) -> Callable[[PacketState], bool]:
    """Packets that a virtual server of IPVS has handled."""
    numbers = {"6": "tcp", "17": "udp", "132": "sctp"}
    protocol = numbers.get(rest.pop(), "")
    if rest.pop() != "--vaddr":
        raise UnknownRuleError(text)
    address = parse_address(rest.pop().partition("/")[0])
    if rest.pop() != "--vport":
        raise UnknownRuleError(text)
    port = int(rest.pop())
    return lambda state: state.protocol == protocol and state.virtual == (address, port)
