"""Evaluates a table of nf_tables, as the kernel lists it, for the first packet of a connection.

A rule is a list of expressions that read and write registers (`netlink.nft.expressions`). They are run here
on the fields of one packet; a random number takes every value, each with its probability. An expression of a
kind that is not known is an error, so that no packet is judged by a rule that was not understood.

Source: linux/netfilter/nf_tables.h.
"""

import struct
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from socket import IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP
from typing import Final, NamedTuple

from msgspec import structs

from kubeproxy.api.addresses import contains, pack, unpack
from kubeproxy.api.rows import Protocol
from kubeproxy.insight.reference.outcome import Fate, UnknownRuleError
from kubeproxy.insight.reference.packet_state import PROTOCOLS, PacketState
from kubeproxy.insight.reference.registers import (
    bitwise,
    hashed,
    holds,
    load,
    offset,
    swapped,
    value_at,
    word,
)
from kubeproxy.insight.reference.sets import SetContents, cidrs, fields
from kubeproxy.netlink import wire
from kubeproxy.netlink.nft import expressions as x
from kubeproxy.netlink.nft import messages
from kubeproxy.netlink.nft.kernel import NftKernel
from kubeproxy.netlink.nft.messages import TableName

_PROTOCOLS: Final = {"tcp": IPPROTO_TCP, "udp": IPPROTO_UDP, "sctp": IPPROTO_SCTP}
_HOOKS: Final = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
_NAT_PRIORITY: Final = -100
"""Chains at this priority and before it see a packet before its destination is final."""

_UNICAST, _LOCAL = 1, 2
_IGNORED: Final = frozenset({"counter", "log", "dynset"})
"""Expressions that do not decide about a packet."""

_KEEP_ON: Final = object()
_NO_MATCH: Final = object()


class _BaseChain(NamedTuple):
    hook: str
    priority: int
    nat: bool


class NftRules:
    """A table of one family, in the form that `route.Router` asks."""

    def __init__(self, kernel: NftKernel, table: TableName, local_addresses: Collection[str]) -> None:
        """Reads it.

        Args:
            kernel: the kernel.
            table: the table.
            local_addresses: the addresses of the node.

        Raises:
            OSError: the kernel refused, or the table changed meanwhile.
        """
        self._local = frozenset(local_addresses)
        self._chains: dict[str, _BaseChain | None] = {}
        self._rules: dict[str, list[memoryview]] = {}
        self._lookups: dict[str, SetContents] = {}
        self._asked: set[str] = set()
        self._affinity = 0
        self._size = 4 if table.family == messages.IP else 16
        self._source_at = -1
        self._port_at = -1
        self._source_mask = b""
        only = wire.text(1, table.name)
        for body in list(kernel.dump(messages.GETSET, table.family, only)):
            a = wire.attributes(body)
            name = wire.string(a[2])
            timeout = int.from_bytes(a.get(11, b"")) // 1000
            found = self._lookups[name] = SetContents(int.from_bytes(a.get(3, b"")), fields(a), timeout)
            if int.from_bytes(a.get(3, b"")) & messages.EVAL:
                continue  # clients of session affinity: a new client is in none
            for listed in kernel.dump(messages.GETSETELEM, table.family, only + wire.text(2, name)):
                for _, element in wire.attribute_list(wire.attributes(listed).get(3, b"")):
                    found.add(wire.attributes(element))
        for body in kernel.dump_all(messages.GETCHAIN, table.family):
            a = wire.attributes(body)
            if wire.string(a[1]) != table.name:
                continue
            place = wire.attributes(a[4]) if 4 in a else {}
            self._chains[wire.string(a[3])] = (
                _BaseChain(
                    _HOOKS[int.from_bytes(place[1])],
                    struct.unpack(">i", place[2])[0],
                    wire.string(a[7]) == "nat",
                )
                if place
                else None
            )
        for body in kernel.dump(messages.GETRULE, table.family, only):
            a = wire.attributes(body)
            if wire.string(a[1]) == table.name and 4 in a:
                self._rules.setdefault(wire.string(a[2]), []).append(a[4])

    def asked(self) -> set[str]:
        """The ranges with which rules have compared sources since the last call."""
        asked, self._asked = self._asked, set()
        return asked

    def named(self) -> Iterator[tuple[str, Protocol, int]]:
        """The fronts that verdict maps have: address ("" for a node port), protocol and port."""
        names = {number: PROTOCOLS[name.upper()] for name, number in _PROTOCOLS.items()}
        for lookup in self._lookups.values():
            for key in lookup.verdicts():
                if len(key) not in {8, self._size + 8}:
                    continue
                address, protocol = key[:-8], names.get(key[-8])
                if protocol is not None:
                    yield unpack(address) if address else "", protocol, int.from_bytes(key[-4:-2])

    def affinity(self, endpoints: int) -> int:  # noqa: ARG002 one set may be for all
        """The seconds a client keeps its endpoint, by rules evaluated since the last call; 0 for none."""
        seconds, self._affinity = self._affinity, 0
        return seconds

    def hook(self, table: str, chain: str, state: PacketState) -> Iterator[tuple[Fate | None, PacketState]]:
        """What the base chains at a hook do: dropped, rejected, or None where the packet continues.

        Args:
            table: "nat" for chains that see a packet before its destination is final, or when it leaves; else
                "filter".
            chain: the hook.
            state: the packet.

        Raises:
            UnknownRuleError: it meets a rule that cannot be evaluated.
        """
        early = table == "nat"
        found = sorted(
            (info.priority, name)
            for name, info in self._chains.items()
            if info is not None
            and info.hook == chain
            and (chain == "POSTROUTING" or (info.priority <= _NAT_PRIORITY) == early)
        )
        yield from self._pass([name for _, name in found], state)

    def _pass(self, chains: Sequence[str], state: PacketState) -> Iterator[tuple[Fate | None, PacketState]]:
        if not chains:
            yield None, state
            return
        for fate, after in _merged(self._run(chains[0], state)):
            if fate in {"drop", "reject"}:
                yield fate, after
            else:
                yield from self._pass(chains[1:], after)

    def _run(self, chain: str, state: PacketState) -> Iterator[tuple[Fate | None, PacketState]]:
        """Evaluates a chain; None if the packet reaches its end."""
        states = [state]
        for rule in self._rules.get(chain, ()):
            following: list[PacketState] = []
            for each in states:
                steps = [wire.attributes(e) for _, e in wire.attribute_list(rule)]
                for result, after in self._rule(steps, 0, bytes(64), each):
                    if result is _KEEP_ON or result is _NO_MATCH:
                        following.append(after)
                    elif isinstance(result, tuple):
                        code, target = result
                        if code == messages.RETURN:
                            yield None, after
                            continue
                        for fate, returned in self._run(target, after):
                            if fate is None and code == messages.JUMP:
                                following.append(returned)
                            else:
                                yield fate, returned
                    else:
                        yield result, after  # type: ignore[misc]
            states = [after for _, after in _merged((None, each) for each in following)]
        for each in states:
            yield None, each

    def _rule(
        self, steps: Sequence[wire.Attributes], at: int, registers: bytes, state: PacketState
    ) -> Iterator[tuple[object, PacketState]]:
        """Evaluates the expressions of a rule from one on. Yields the decision of each possible path."""
        for number in range(at, len(steps)):
            name = wire.string(steps[number][1])
            a = wire.attributes(steps[number].get(2, b""))
            if name == "numgen" or (name == "hash" and self._hashes_port(a)):
                modulus, offset = (word(a[2]), word(a.get(4, b""))) if name == "numgen" else (word(a[4]), 0)
                for value in range(modulus):
                    into = a[1] if name == "numgen" else a[2]
                    loaded = load(registers, into, (value + offset).to_bytes(4, sys.byteorder))
                    likely = structs.replace(state, probability=state.probability / modulus)
                    yield from self._rule(steps, number + 1, loaded, likely)
                return
            result, registers, state = self._step(name, a, registers, state)
            if result is not _KEEP_ON:
                yield result, state
                return
        yield _KEEP_ON, state

    def _step(
        self, name: str, a: wire.Attributes, registers: bytes, state: PacketState
    ) -> tuple[object, bytes, PacketState]:
        """Runs one expression: what it decides, the registers and the packet after it."""
        match name:
            case "payload":
                self._note_source(a)
                return _KEEP_ON, load(registers, a[1], _payload(a, state)), state
            case "meta" if 3 in a:
                if word(a[2]) != x.META_MARK:
                    raise UnknownRuleError(f"meta key {word(a[2])} is set")
                mark = int.from_bytes(value_at(registers, a[3], 4), sys.byteorder)
                return _KEEP_ON, registers, structs.replace(state, mark=mark)
            case "meta":
                return _KEEP_ON, load(registers, a[1], _meta(word(a[2]), state)), state
            case "ct":
                return _KEEP_ON, load(registers, a[1], _connection(word(a[2]), state)), state
            case "fib":
                return _KEEP_ON, load(registers, a[1], self._fib(a, state)), state
            case "immediate":
                data = wire.attributes(a[2])
                if 2 in data:
                    return _verdict(wire.attributes(data[2])), registers, state
                return _KEEP_ON, load(registers, a[1], bytes(data[1])), state
            case "cmp":
                self._note_comparison(a)
                return _KEEP_ON if holds(a, registers) else _NO_MATCH, registers, state
            case "byteorder":
                value = value_at(registers, a[1], word(a[4]))
                return _KEEP_ON, load(registers, a[2], swapped(value)), state
            case "hash":
                return _KEEP_ON, load(registers, a[2], hashed(a, registers)), state
            case "bitwise":
                if offset(a[1]) == self._source_at:
                    self._source_mask = bytes(wire.attributes(a[4])[1])
                return _KEEP_ON, bitwise(a, registers), state
            case "lookup":
                return self._lookup(a, registers, state)
            case "nat":
                address = value_at(registers, a[3], len(pack(state.destination)))
                port = int.from_bytes(value_at(registers, a[5], 2)) if 5 in a else state.port
                translated = structs.replace(state, destination=unpack(address), port=port, translated=True)
                return "pass", registers, translated
            case "masq":
                return "pass", registers, structs.replace(state, masquerade=True)
            case "reject":
                return "reject", registers, state
            case _ if name in _IGNORED:
                return _KEEP_ON, registers, state
        raise UnknownRuleError(f"expression {name}")

    def _lookup(
        self, a: wire.Attributes, registers: bytes, state: PacketState
    ) -> tuple[object, bytes, PacketState]:
        lookup = self._lookups[wire.string(a[1])]
        if lookup.timeout:
            self._affinity = lookup.timeout
        if offset(a[2]) == self._source_at:
            for first, last in lookup.ranges():
                if len(first) == self._size:
                    self._asked.update(cidrs(first, last))
        found = lookup.find(registers[offset(a[2]) :])
        inverted = 5 in a and bool(word(a[5]) & 1)
        if 3 not in a:
            return _KEEP_ON if (found is not None) != inverted else _NO_MATCH, registers, state
        if found is None:
            return _NO_MATCH, registers, state
        if word(a[3]) == 0:
            return _verdict(wire.attributes(found[2])), registers, state
        return _KEEP_ON, load(registers, a[3], bytes(found[1])), state

    def _note_source(self, a: wire.Attributes) -> None:
        """Remembers in which register the source address is, or the beginning of it."""
        is_source = word(a[2]) == x.NETWORK_HEADER and word(a[3]) == (12 if self._size == 4 else 8)
        if is_source:
            self._source_at, self._source_mask = offset(a[1]), b""
        elif offset(a[1]) == self._source_at:
            self._source_at = -1
        if (word(a[2]), word(a[3]), word(a[4])) == (x.TRANSPORT_HEADER, 0, 2):
            self._port_at = offset(a[1])
        elif offset(a[1]) == self._port_at:
            self._port_at = -1

    def _hashes_port(self, a: wire.Attributes) -> bool:
        """Whether a hash is of the client's port, too, which may be any."""
        return offset(a[1]) <= self._port_at < offset(a[1]) + word(a[3])

    def _note_comparison(self, a: wire.Attributes) -> None:
        """Remembers the range of sources that is compared with."""
        if offset(a[1]) != self._source_at:
            return
        constant = bytes(wire.attributes(a[3])[1])
        bits = int.from_bytes(self._source_mask).bit_count() if self._source_mask else 8 * len(constant)
        if bits < 8 * self._size:
            self._asked.add(f"{unpack(constant.ljust(self._size, bytes(1)))}/{bits}")

    def _fib(self, a: wire.Attributes, state: PacketState) -> bytes:
        if word(a[2]) != 3:  # NFT_FIB_RESULT_ADDRTYPE
            raise UnknownRuleError("fib without type")
        address = state.source if word(a[3]) & 1 else state.destination
        local = address in self._local or contains("127.0.0.0/8", address)
        return (_LOCAL if local else _UNICAST).to_bytes(4, sys.byteorder)


def _merged(
    found: Iterable[tuple[Fate | None, PacketState]],
) -> list[tuple[Fate | None, PacketState]]:
    """Equal packets of equal fates as one: a random number has as many ways as values."""
    likely: dict[tuple[Fate | None, PacketState], float] = {}
    for fate, state in found:
        key = fate, structs.replace(state, probability=0.0)
        likely[key] = likely.get(key, 0.0) + state.probability
    return [
        (fate, structs.replace(state, probability=probability))
        for (fate, state), probability in likely.items()
    ]


def _payload(a: wire.Attributes, state: PacketState) -> bytes:
    """Bytes of a header: of both addresses, which are adjacent, or the destination port."""
    base, offset, size = word(a[2]), word(a[3]), word(a[4])
    addresses = pack(state.source) + pack(state.destination)
    start = 12 if len(addresses) == 8 else 8
    if base == x.NETWORK_HEADER and start <= offset and offset + size <= start + len(addresses):
        return addresses[offset - start : offset - start + size]
    if (base, offset, size) == (x.TRANSPORT_HEADER, 0, 2):
        return bytes(2)  # any port
    if (base, offset, size) == (x.TRANSPORT_HEADER, 2, 2):
        return state.port.to_bytes(2)
    raise UnknownRuleError(f"payload of {size} bytes at {offset} of header {base}")


def _meta(key: int, state: PacketState) -> bytes:
    if key == x.META_MARK:
        return state.mark.to_bytes(4, sys.byteorder)
    if key == x.META_INPUT_NAME:
        return state.incoming.encode().ljust(16, b"\0")
    if key == x.META_L4PROTO:
        return bytes([_PROTOCOLS[state.protocol]])
    raise UnknownRuleError(f"meta key {key}")


def _connection(key: int, state: PacketState) -> bytes:
    if key == x.CT_STATE:
        return x.CT_NEW.to_bytes(4, sys.byteorder)
    if key == x.CT_STATUS:
        return (x.CT_DNAT if state.translated else 0).to_bytes(4, sys.byteorder)
    raise UnknownRuleError(f"ct key {key}")


def _verdict(data: wire.Attributes) -> object:
    """A verdict: the fate of the packet, or the chain it is sent to and how."""
    (code,) = struct.unpack(">i", data[1])
    if code in {messages.JUMP, messages.GOTO}:
        return code, wire.string(data[2])
    if code == messages.RETURN:
        return code, ""
    return "drop" if code == messages.DROP else "pass"
