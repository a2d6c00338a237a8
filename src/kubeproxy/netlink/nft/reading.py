"""Converts the expressions of a rule to the syntax of nft.

Expressions are the instructions of a small machine with registers. Here they are executed with text as
values: a payload expression loads "ip daddr", for example, and the result is the text of the rule. nft does
the same. There is one short function for each expression that module `expressions` makes; others are not
supported.
"""

import struct
import sys
from collections.abc import Callable, Mapping
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Final, NamedTuple

from kubeproxy import protocols
from kubeproxy.netlink import wire
from kubeproxy.netlink.nft import expressions as x
from kubeproxy.netlink.nft.messages import ACCEPT, DROP, FAMILY_NAMES, GOTO, JUMP, RETURN

PROTOCOLS: Final = {number: name.lower() for number, name in protocols.NAMES.items()}
_VERDICTS = {DROP: "drop", ACCEPT: "accept", RETURN: "return", JUMP: "jump", GOTO: "goto"}
_FIRST_REGISTER = 8
_LARGE_REGISTER = 4


class Value(NamedTuple):
    """The value of a register, or of several registers if it is long.

    Attributes:
        words: the text of the expression that loads it.
        registers: how many registers it occupies.
        show: converts a constant that is compared with it to text.
        mask: the mask of a bitwise expression that was applied to it; b"" for none.
        constant: the value itself, if the rule contains it.
    """

    words: str
    registers: int = 1
    show: Callable[[bytes], str] = bytes.hex
    mask: bytes = b""
    constant: bytes = b""


class SetShape(NamedTuple):
    """How many registers the keys of a set occupy, and the data to which they map."""

    key: int
    data: int


def address(value: bytes) -> str:
    """An address in the form in which nft prints it."""
    return inet_ntop(AF_INET if len(value) == 4 else AF_INET6, value)


def prefix_length(mask: bytes) -> int | None:
    """The number of leading ones of a mask; None if there are ones after the first zero."""
    number = int.from_bytes(mask)
    ones = number.bit_count()
    bits = 8 * len(mask)
    return ones if number == (1 << bits) - (1 << bits - ones) else None


def protocol(value: bytes) -> str:
    """A transport protocol."""
    return PROTOCOLS.get(value[0], str(value[0]))


def port(value: bytes) -> str:
    """A port, or another number in network byte order."""
    return str(int.from_bytes(value))


def integer(value: bytes) -> str:
    """A number in the host's byte order."""
    return str(int.from_bytes(value, sys.byteorder))


def verdict(data: Mapping[int, memoryview]) -> str:
    """A verdict, with the chain of a jump or goto."""
    (code,) = struct.unpack(">i", data[1])
    return f"{_VERDICTS[code]} {wire.string(data[2])}" if 2 in data else _VERDICTS[code]


def _mark(value: bytes) -> str:
    return f"0x{int.from_bytes(value, sys.byteorder):08x}"


def _interface(value: bytes) -> str:
    """An interface name. A full name has a terminating NUL, a prefix has none."""
    name, zero, _ = value.partition(b"\0")
    return f'"{name.decode()}{"" if zero else "*"}"'


def _flags(names: dict[int, str]) -> Callable[[bytes], str]:
    return lambda value: names[int.from_bytes(value, sys.byteorder)]


_SOURCE_PORT: Final = "th sport"
_PROTOCOL_IS: Final = "meta l4proto "
_PAYLOADS: Final = {
    (x.NETWORK_HEADER, 12, 4): Value("ip saddr", 1, address),
    (x.NETWORK_HEADER, 16, 4): Value("ip daddr", 1, address),
    (x.NETWORK_HEADER, 8, 16): Value("ip6 saddr", 4, address),
    (x.NETWORK_HEADER, 24, 16): Value("ip6 daddr", 4, address),
    (x.TRANSPORT_HEADER, 0, 2): Value(_SOURCE_PORT),
    (x.TRANSPORT_HEADER, 2, 2): Value("th dport"),
}
_METAS: Final = {
    x.META_MARK: Value("meta mark", 1, _mark),
    x.META_INPUT_NAME: Value("iifname", 4, _interface),
    x.META_L4PROTO: Value("meta l4proto", 1, protocol),
}
_CONNECTION: Final = {
    x.CT_STATE: Value("ct state", 1, _flags({x.CT_NEW: "new"})),
    x.CT_STATUS: Value("ct status", 1, _flags({x.CT_DNAT: "dnat", x.CT_CONFIRMED: "confirmed"})),
}
_FIB: Final = {
    1: Value("fib saddr type", 1, _flags({x.LOCAL: "local"})),
    2: Value("fib daddr type", 1, _flags({x.LOCAL: "local"})),
}


class Reader:
    """Reads one rule."""

    def __init__(self, family: int, sets: Mapping[str, SetShape]) -> None:
        self._family = family
        self._sets = sets
        self._registers: dict[int, Value] = {}
        self._text: list[str] = []

    def read(self, expressions: memoryview | bytes) -> str:
        """The text of the expressions of a rule.

        Raises:
            ValueError: module `expressions` does not make one of them.
        """
        for _, expression in wire.attribute_list(expressions):
            parts = wire.attributes(expression)
            name = wire.string(parts[1])
            step = _STEPS.get(name)
            if step is None:
                raise ValueError(f"expression {name!r} is not supported")
            try:
                step(self, wire.attributes(parts[2]))
            except KeyError as e:
                raise ValueError(f"attributes of expression {name!r} are not supported") from e
        return " ".join(self._text)

    def _payload(self, a: wire.Attributes) -> None:
        value = _PAYLOADS[_int(a[2]), _int(a[3]), _int(a[4])]
        if value.words == _SOURCE_PORT and self._text and self._text[-1].startswith(_PROTOCOL_IS):
            # nft prints both as one.
            value = value._replace(words=f"{self._text.pop().removeprefix(_PROTOCOL_IS)} sport")
        self._load(a[1], value)

    def _meta(self, a: wire.Attributes) -> None:
        value = _METAS[_int(a[2])]
        if 3 in a:
            self._write(f"{value.words} set {self._at(a[3]).words}")
        else:
            self._load(a[1], value)

    def _ct(self, a: wire.Attributes) -> None:
        self._load(a[1], _CONNECTION[_int(a[2])])

    def _immediate(self, a: wire.Attributes) -> None:
        data = wire.attributes(a[2])
        if 2 in data:
            self._write(verdict(wire.attributes(data[2])))
        else:
            constant = bytes(data[1])
            self._load(a[1], Value(constant.hex(), _registers(len(constant)), constant=constant))

    def _cmp(self, a: wire.Attributes) -> None:
        value, constant = self._at(a[1]), bytes(wire.attributes(a[3])[1])
        unequal = _int(a[2]) == x.NOT_EQUAL
        operator = {x.NOT_EQUAL: " != ", x.BELOW: " < "}.get(_int(a[2]), " ")
        if not value.mask:
            self._write(f"{value.words}{operator}{value.show(constant)}")
        elif value.show is address:
            self._write(f"{value.words}{operator}{address(constant)}/{prefix_length(value.mask)}")
        elif value.show is _mark:
            self._write(f"{value.words}{operator if unequal else ' == '}{_mark(constant)}")
        else:
            self._write(f"{value.words} {value.show(value.mask)}")  # the flag is set

    def _bitwise(self, a: wire.Attributes) -> None:
        value = self._at(a[1])
        mask, xor = (bytes(wire.attributes(a[i])[1]) for i in (4, 5))
        words = value.words
        if value.show is _mark:
            kept = int.from_bytes(mask, sys.byteorder)
            changed = int.from_bytes(xor, sys.byteorder)
            if not changed:
                words += f" & {_mark(mask)}"
            elif kept == 0xFFFFFFFF ^ changed:
                words += f" | {_mark(xor)}"
            else:
                words += f" ^ {_mark(xor)}"
        self._load(a[2], value._replace(words=words, mask=mask))

    def _numgen(self, a: wire.Attributes) -> None:
        self._load(a[1], Value(f"numgen random mod {_int(a[2])}", 1, integer))

    def _byteorder(self, a: wire.Attributes) -> None:
        self._load(a[2], self._at(a[1])._replace(show=port))

    def _hash(self, a: wire.Attributes) -> None:
        key = self._key(_register(a[1]), SetShape(_registers(_int(a[3])), 0))
        words = f"jhash {key} mod {_int(a[4])} seed 0x{_int(a[5]):x}"
        self._load(a[2], Value(words, 1, integer))

    def _lookup(self, a: wire.Attributes) -> None:
        name = wire.string(a[1])
        shape = self._sets[name]
        key = self._key(_register(a[2]), shape)
        if 3 not in a:
            self._write(f"{key} {'!= ' if 5 in a and _int(a[5]) else ''}@{name}")
        elif _int(a[3]) == 0:
            self._write(f"{key} vmap @{name}")
        else:
            found = Value(f"{key} map @{name}", shape.data)
            self._load(a[3], found)

    def _dynset(self, a: wire.Attributes) -> None:
        name = wire.string(a[1])
        self._write(f"update @{name} {{ {self._key(_register(a[4]), self._sets[name])} }}")

    def _fib(self, a: wire.Attributes) -> None:
        self._load(a[1], _FIB[_int(a[3])])

    def _nat(self, a: wire.Attributes) -> None:
        to = self._at(a[3])
        if to.constant:
            host = address(to.constant)
            port = int.from_bytes(self._at(a[5]).constant)
            self._write(f"dnat to {f'[{host}]' if ':' in host else host}:{port}")
        else:
            self._write(f"dnat {FAMILY_NAMES[self._family]} to {to.words}")

    def _masq(self, _: wire.Attributes) -> None:
        self._write("masquerade fully-random")

    def _counter(self, _: wire.Attributes) -> None:
        self._write("counter")  # without its values, which change all the time

    def _reject(self, _: wire.Attributes) -> None:
        self._write("reject")

    def _write(self, words: str) -> None:
        self._text.append(words)

    def _load(self, register: memoryview, value: Value) -> None:
        self._registers[_register(register)] = value

    def _at(self, register: memoryview) -> Value:
        return self._registers[_register(register)]

    def _key(self, register: int, shape: SetShape) -> str:
        """The values of a set's key, starting at a register."""
        parts = []
        end = register + shape.key
        while register < end:
            value = self._registers[register]
            parts.append(value.words)
            register += value.registers
        return " . ".join(parts)


_STEPS: Final[dict[str, Callable[[Reader, wire.Attributes], None]]] = {
    name: getattr(Reader, f"_{name}")
    for name in (
        "payload", "meta", "ct", "immediate", "cmp", "bitwise", "numgen", "byteorder", "hash", "lookup", "dynset", "fib", "nat", "masq", "reject", "counter",
    )
}  # fmt: skip


def _int(value: memoryview) -> int:
    return int.from_bytes(value)


def _registers(length: int) -> int:
    return length + 3 >> 2


def _register(value: memoryview) -> int:
    """The number of a register.

    The kernel lists the first register of each group of four by another number (1 to 4).
    """
    number = _int(value)
    return number - _FIRST_REGISTER if number >= _FIRST_REGISTER else _LARGE_REGISTER * (number - 1)
