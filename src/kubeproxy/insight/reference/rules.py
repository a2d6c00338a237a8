"""Evaluates the rules of iptables, in the form of `iptables-save`, for the first packet of a connection.

Only what kube-proxy writes is followed: chains whose names start with KUBE-, without those of the kubelet.
Rules of other programs in the built-in chains are skipped, and a rule of a kind that kube-proxy does not
write is an error, so that no packet is judged by a rule that was not understood.

Sources: iptables-extensions(8), and the rules recorded of kube-proxy v1.36.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct, structs

from kubeproxy.api.addresses import parse_address
from kubeproxy.api.rows import Protocol
from kubeproxy.backends.shared import saved
from kubeproxy.insight.reference.conditions import Conditions, Match, Sets
from kubeproxy.insight.reference.outcome import Fate, UnknownRuleError
from kubeproxy.insight.reference.packet_state import PROTOCOLS, PacketState

_WORDS: Final = re.compile(r'"(?:\\.|[^"\\])*"|\S+')
_FRONT: Final = re.compile(r"(?:(?:^| )-d ([0-9a-f.:]+)/(?:32|128) )?(?:.* )?-p (\w+) .*--dport (\d+)(?: |$)")
_NAMING: Final = frozenset({"KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS"})
"""Chains whose rules are for fronts."""

_OTHERS: Final = frozenset({"KUBE-FIREWALL", "KUBE-KUBELET-CANARY"})
"""Chains of the kubelet."""


class _ParsedRule(Struct, frozen=True):
    text: str
    matches: tuple[Match, ...]
    action: str
    argument: str
    jumps: bool
    goes: bool


class IptablesRules:
    """The rules of one IP family."""

    def __init__(
        self, lines: Iterable[str], local_addresses: Iterable[str], sets: Sets | None = None
    ) -> None:
        """Reads them; a chain is parsed when it is first used.

        Args:
            lines: what `iptables-save` prints.
            local_addresses: the addresses of the node, also those of interfaces that only hold addresses.
            sets: the sets that rules look into.
        """
        self._conditions = Conditions(frozenset(local_addresses), sets or {})
        self._texts: dict[tuple[str, str], list[str]] = {}
        for table, chain, rule in saved.parse(lines):
            texts = self._texts.setdefault((table, chain), [])
            if rule is not None:
                texts.append(rule)
        self._chains: dict[tuple[str, str], _IndexedChain] = {}

    def asked(self) -> set[str]:
        """The ranges with which rules have compared sources since the last call."""
        return self._conditions.asked()

    def affinity(self, endpoints: int) -> int:
        """See `Conditions.affinity`."""
        return self._conditions.affinity(endpoints)

    def named(self) -> Iterator[tuple[str, Protocol, int]]:
        """The fronts that rules name: address ("" for a node port), protocol and port."""
        for _, chain, text in self.texts():
            found = _FRONT.search(text)
            if found is not None and chain in _NAMING and found[2].upper() in PROTOCOLS:
                address = "" if "NODE" in chain else found[1]
                if address is not None:
                    yield address and parse_address(address), PROTOCOLS[found[2].upper()], int(found[3])

    def texts(self) -> Iterator[tuple[str, str, str]]:
        """Table, chain and text of every rule in chains of kube-proxy."""
        for (table, chain), texts in self._texts.items():
            if chain.startswith("KUBE-") and chain not in _OTHERS:
                for text in texts:
                    yield table, chain, text

    def hook(self, table: str, chain: str, state: PacketState) -> Iterator[tuple[Fate | None, PacketState]]:
        """What the rules of a built-in chain do: dropped, rejected, or None where the packet continues.

        Raises:
            UnknownRuleError: it meets a rule that cannot be evaluated.
        """
        for fate, after in self._run(table, chain, state):
            yield (fate if fate in {"drop", "reject"} else None), after

    def _run(self, table: str, chain: str, state: PacketState) -> Iterator[tuple[Fate | None, PacketState]]:
        found = self._chain(table, chain)
        states = [state]
        for rule in found.candidates(state):
            following: list[PacketState] = []
            for each in states:
                chance = 1.0
                for match in rule.matches:
                    chance *= match(each)
                    if not chance:
                        break
                if not chance:
                    following.append(each)
                elif chance == 1:
                    yield from self._apply(table, rule, each, following)
                else:
                    following.append(structs.replace(each, probability=each.probability * (1 - chance)))
                    hit = structs.replace(each, probability=each.probability * chance)
                    yield from self._apply(table, rule, hit, following)
            states = following
            if not states:
                return
        for each in states:
            yield None, each

    def _apply(
        self, table: str, rule: _ParsedRule, state: PacketState, following: list[PacketState]
    ) -> Iterator[tuple[Fate | None, PacketState]]:
        """Applies a rule to a packet that matches it; a packet that continues is added to `following`."""
        if rule.jumps:
            for fate, after in self._run(table, rule.action, state):
                if fate is None and not rule.goes:
                    following.append(after)
                else:
                    yield fate, after
            return
        match rule.action:
            case "":
                following.append(state)
            case "MARK":
                value, _, mask = rule.argument.partition("/")
                mark = (state.mark & ~int(mask or "0xffffffff", 16)) ^ int(value, 16)
                following.append(structs.replace(state, mark=mark))
            case "RETURN":
                yield None, state
            case "ACCEPT":
                yield "pass", state
            case "DROP":
                yield "drop", state
            case "REJECT":
                yield "reject", state
            case "DNAT":
                address, _, port = rule.argument.rpartition(":")
                target = parse_address(address.strip("[]"))
                yield "pass", structs.replace(state, destination=target, port=int(port), translated=True)
            case "MASQUERADE":
                yield "pass", structs.replace(state, masquerade=True)
            case _:
                raise UnknownRuleError(rule.text)

    def _chain(self, table: str, chain: str) -> "_IndexedChain":
        found = self._chains.get((table, chain))
        if found is None:
            builtin = not chain.startswith("KUBE-")
            rules = []
            for text in self._texts.get((table, chain), ()):
                target = _target(text)
                if not builtin or (target.startswith("KUBE-") and target not in _OTHERS):
                    rules.append((self._parse(text), *_key(text)))
            found = self._chains[table, chain] = _IndexedChain(rules)
        return found

    def _parse(self, text: str) -> _ParsedRule:
        words = _WORDS.findall(text)
        matches: list[Match] = []
        action = argument = ""
        jumps = goes = False
        module = ""
        negated = False
        rest = list(reversed(words))
        while rest:
            word = rest.pop()
            if word == "!":
                negated = True
                continue
            if word in {"-j", "-g"}:
                action = rest.pop()
                jumps, goes = action.startswith("KUBE-"), word == "-g"
                argument = self._argument(action, rest, text)
                continue
            if word == "-m":
                module = rest.pop()
                continue
            match = self._conditions.parse(module, word, rest, text, negated=negated)
            negated = False
            if match is not None:
                matches.append(match)
        return _ParsedRule(text, tuple(matches), action, argument, jumps, goes)

    @staticmethod
    def _argument(action: str, rest: list[str], text: str) -> str:
        """The argument of a target."""
        argument = ""
        while rest:
            word = rest.pop()
            match action, word:
                case ("MARK", "--set-xmark") | ("DNAT", "--to-destination"):
                    argument = rest.pop()
                case ("MARK", "--or-mark"):
                    value = rest.pop()
                    argument = f"{value}/{value}"
                case ("MASQUERADE", "--random-fully" | "--random"):
                    pass
                case ("REJECT", "--reject-with"):
                    rest.pop()
                case _:
                    raise UnknownRuleError(text)
        return argument


class _IndexedChain:
    """The rules of a chain, found by the destination that most of them name."""

    def __init__(self, rules: Iterable[tuple[_ParsedRule, str, str]]) -> None:
        self._rules: list[_ParsedRule] = []
        self._by_address: dict[str, list[int]] = {}
        self._by_port: dict[str, list[int]] = {}
        self._others: list[int] = []
        for number, (rule, address, port) in enumerate(rules):
            self._rules.append(rule)
            if address:
                self._by_address.setdefault(address, []).append(number)
            elif port:
                self._by_port.setdefault(port, []).append(number)
            else:
                self._others.append(number)
        self._always = [self._rules[number] for number in self._others]

    def candidates(self, state: PacketState) -> Iterable[_ParsedRule]:
        """The rules that may match a packet whose destination the chain does not change, in their order."""
        at = self._by_address.get(state.destination) if self._by_address else None
        of_port = self._by_port.get(f"{state.protocol} {state.port}") if self._by_port else None
        if not at and not of_port:
            return self._always
        return (self._rules[number] for number in sorted((*(at or ()), *(of_port or ()), *self._others)))


def _key(text: str) -> tuple[str, str]:
    """The one destination address, or else the one protocol and port, of a rule; "" if it has several."""
    address = re.match(r"(?:-s \S+ )?-d (\S+)/(32|128) ", text)
    if address and not text.startswith("!") and (":" in address[1]) == (address[2] == "128"):
        return parse_address(address[1]), ""
    port = re.search(r"-p (\w+) .*--dport (\d+)(?: |$)", text)
    return "", f"{port[1]} {port[2]}" if port and "! -p" not in text and "! --dport" not in text else ""


def _target(text: str) -> str:
    found = re.search(r" ?-[jg] (\S+)", text)
    return found[1] if found else ""
