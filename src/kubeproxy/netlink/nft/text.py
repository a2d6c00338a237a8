"""Converts tables to the syntax of nft, for log messages, commands and tests.

The input are messages that create tables, or the objects that the kernel lists, in the form of such messages.
Each element is on a line of its own, in the order of the keys. The nft program can read the output.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from kubeproxy.netlink import wire
from kubeproxy.netlink.nft import messages, reading, types
from kubeproxy.netlink.nft.messages import (
    DELSETELEM,
    FAMILY_NAMES,
    NEWCHAIN,
    NEWRULE,
    NEWSET,
    NEWSETELEM,
    NEWTABLE,
    NftMessage,
)
from kubeproxy.netlink.nft.types import INTEGER, SET_COMMENT, Type

_HOOKS: Final = ("prerouting", "input", "forward", "output", "postrouting")
_FLAGS: Final = {
    messages.CONSTANT: "constant",
    messages.INTERVAL: "interval",
    messages.EVAL: "dynamic",
    messages.TIMEOUT: "timeout",
}
_UNITS: Final = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))
_SHOW: Final = {
    types.ADDRESS4.number: reading.address,
    types.ADDRESS6.number: reading.address,
    types.PROTOCOL.number: reading.protocol,
    types.SERVICE.number: reading.port,
    INTEGER: reading.integer,
}


class _Set(NamedTuple):
    """A set or map."""

    kind: str
    lines: list[str]
    key: tuple[Type, ...]
    intervals: bool
    data: tuple[Type, ...]
    elements: list[wire.Attributes]


class _TableText:
    """The parts of a table, in the order of the messages."""

    def __init__(self, message: NftMessage, a: wire.Attributes) -> None:
        self._title = f"table {FAMILY_NAMES[message.family]} {wire.string(a[1])}"
        self._family = message.family
        self._comment = _comment(a.get(6, b""))
        self._sets: dict[str, _Set] = {}
        self._shapes: dict[str, reading.SetShape] = {}
        self._chains: dict[str, list[str]] = {}

    def take(self, kind: int, a: wire.Attributes) -> None:
        """Adds the object that a message creates."""
        if kind == NEWCHAIN:
            self._chains.setdefault(wire.string(a[3]), _hook(a))
        elif kind == NEWRULE:
            rule = reading.Reader(self._family, self._shapes).read(a[4])
            self._chains[wire.string(a[2])].append(" ".join([rule, *_comment(a.get(7, b""))]))
        elif kind == NEWSET:
            name = wire.string(a[2])
            made = self._sets[name] = _set(a)
            self._shapes[name] = reading.SetShape(types.size(made.key) // 4, types.size(made.data) // 4)
        elif kind == NEWSETELEM:
            elements = (wire.attributes(each) for _, each in wire.attribute_list(a[3]))
            self._sets[wire.string(a[2])].elements.extend(elements)

    def lines(self) -> Iterator[str]:
        """The listing."""
        yield f"{self._title} {{"
        yield from _indented(self._comment)
        for name, made in self._sets.items():
            yield f"\t{made.kind} {name} {{"
            yield from _indented(_indented([*made.lines, *_elements(made)]))
            yield "\t}"
        for name, rules in self._chains.items():
            yield f"\tchain {name} {{"
            yield from _indented(_indented(rules))
            yield "\t}"
        yield "}"


def render(made: Iterable[NftMessage]) -> str:
    """The tables that messages create.

    Args:
        made: messages that add objects, as in a transaction.

    Raises:
        ValueError: a rule has an expression that module `expressions` does not make.
    """
    tables: dict[tuple[int, str], _TableText] = {}
    for message in made:
        a = wire.attributes(message.body)
        name = message.family, wire.string(a[1])
        if message.kind == NEWTABLE:
            tables[name] = _TableText(message, a)
        elif name in tables:
            tables[name].take(message.kind, a)
    return "".join(f"{line}\n" for table in tables.values() for line in table.lines())


def commands(sent: Iterable[NftMessage], known: Iterable[NftMessage] = ()) -> Iterator[str]:
    """Converts messages to commands of nft, one per line; each element is a command of its own.

    Args:
        sent: messages that add, delete or flush.
        known: messages that created the sets whose elements are in `sent`.

    Raises:
        ValueError: a rule has an expression that module `expressions` does not make.
    """
    sets: dict[str, _Set] = {}
    shapes: dict[str, reading.SetShape] = {}

    def add_set(message: NftMessage, a: wire.Attributes) -> None:
        if message.kind == NEWSET:
            name = wire.string(a[2])
            made = sets[name] = _set(a)
            shapes[name] = reading.SetShape(types.size(made.key) // 4, types.size(made.data) // 4)

    for message in known:
        add_set(message, wire.attributes(message.body))
    for message in sent:
        a = wire.attributes(message.body)
        add_set(message, a)
        where = f"{FAMILY_NAMES[message.family]} {wire.string(a[1])}"
        if message.kind == NEWRULE:
            rule = reading.Reader(message.family, shapes).read(a[4])
            yield " ".join([f"add rule {where} {wire.string(a[2])} {rule}", *_comment(a.get(7, b""))])
        elif message.kind == NEWCHAIN:
            yield " ".join([f"add chain {where} {wire.string(a[3])}", *_block(_hook(a))])
        elif message.kind == NEWSET:
            name = wire.string(a[2])
            yield f"add {sets[name].kind} {where} {name} {{ {'; '.join(sets[name].lines)}; }}"
        elif message.kind in {NEWSETELEM, DELSETELEM} and 3 in a:
            verb = "add" if message.kind == NEWSETELEM else "delete"
            name = wire.string(a[2])
            elements = [wire.attributes(each) for _, each in wire.attribute_list(a[3])]
            for element in _shown(sets[name], elements):
                yield f"{verb} element {where} {name} {{ {element} }}"
        else:
            yield message.about


def _block(words: list[str]) -> list[str]:
    return [f"{{ {' '.join(words)} }}"] if words else []


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"\t{line}" for line in lines)


def _comment(userdata: memoryview | bytes, kind: int = types.COMMENT) -> list[str]:
    found = types.comment(userdata, kind)
    return [f'comment "{found}"'] if found else []


def _hook(a: wire.Attributes) -> list[str]:
    """The first line of a base chain."""
    if 4 not in a:
        return []
    place = wire.attributes(a[4])
    priority = int.from_bytes(place[2], signed=True)
    return [f"type {wire.string(a[7])} hook {_HOOKS[place[1][3]]} priority {priority}; policy accept;"]


def _set(a: wire.Attributes) -> _Set:
    userdata = a.get(13, b"")
    flags = int.from_bytes(a.get(3, b""))
    key = types.read(int.from_bytes(a[4]), userdata)
    is_map = 6 in a
    data = types.read(int.from_bytes(a[6]), userdata, data=True) if is_map else ()
    by_source = any(part.number == INTEGER for part in key)
    words = [_words(key, by_source=by_source)]
    if is_map:
        words.append(_words(data, by_source=by_source) or "verdict")
    lines = [f"{'typeof' if by_source else 'type'} {' : '.join(words)}"]
    description = wire.attributes(a.get(9, b""))
    if 1 in description:
        lines.append(f"size {int.from_bytes(description[1])}")
    if named := [name for flag, name in _FLAGS.items() if flags & flag]:
        lines.append(f"flags {','.join(named)}")
    if 11 in a:
        lines.append(f"timeout {_duration(int.from_bytes(a[11]))}")
    lines += _comment(userdata, SET_COMMENT)
    return _Set("map" if is_map else "set", lines, key, bool(flags & messages.INTERVAL), data, [])


def _words(parts: Sequence[Type], *, by_source: bool) -> str:
    return " . ".join(part.source if by_source else part.name for part in parts)


def _duration(milliseconds: int) -> str:
    text = ""
    for unit, size in _UNITS:
        count, milliseconds = divmod(milliseconds, size)
        text += f"{count}{unit}" if count else ""
    return text


def _elements(made: _Set) -> Iterator[str]:
    """The elements of a set in the order of their keys."""
    if shown := _shown(made, sorted(made.elements, key=_key)):
        yield "elements = {"
        yield from _indented(f"{each}," for each in shown)
        yield "}"


def _shown(made: _Set, elements: list[wire.Attributes]) -> list[str]:
    """Elements of a set in the form in which nft lists them."""
    if made.intervals and len(made.key) == 1:
        return list(_spans(elements, made.key[0]))
    return [_element(each, made) for each in elements]


def _key(element: wire.Attributes) -> bytes:
    return bytes(wire.attributes(element[1])[1])


def _element(element: wire.Attributes, made: _Set) -> str:
    first = _parts(_key(element), made.key)
    last = _parts(bytes(wire.attributes(element[10])[1]), made.key) if 10 in element else first
    words = [" . ".join(_range(*ends) for ends in zip(made.key, first, last, strict=True))]
    if 7 in element:
        words.append("counter")  # without its values, which change all the time
    words += _comment(element.get(6, b""))
    if 2 in element:
        data = wire.attributes(element[2])
        words.append(":")
        if 2 in data:
            words.append(reading.verdict(wire.attributes(data[2])))
        else:
            values = zip(made.data, _parts(bytes(data[1]), made.data), strict=True)
            words.append(" . ".join(_SHOW[part.number](value) for part, value in values))
    return " ".join(words)


def _parts(key: bytes, types_: Sequence[Type]) -> list[bytes]:
    """A key's parts, without their padding."""
    found = []
    offset = 0
    for part in types_:
        found.append(key[offset : offset + part.size])
        offset += part.padded
    return found


def _range(part: Type, first: bytes, last: bytes) -> str:
    """A range of one part of a key, in its shortest form."""
    show = _SHOW[part.number]
    if first == last:
        return show(first)
    differing = int.from_bytes(first) ^ int.from_bytes(last)
    bits = differing.bit_length()
    if differing == (1 << bits) - 1 and not int.from_bytes(first) & differing and show is reading.address:
        return f"{show(first)}/{8 * part.size - bits}"
    return f"{show(first)}-{show(last)}"


def _spans(elements: list[wire.Attributes], part: Type) -> Iterator[str]:
    """Intervals of keys that have one part.

    An element starts each interval, and another element ends it, except the last one.
    """
    begun: int | None = None
    for element in [*elements, None]:
        end = element is None or bool(3 in element and element[3][3] & 1)
        at = int.from_bytes(_key(element)) if element is not None else 1 << 8 * part.size
        if begun is not None and end:
            yield _range(part, begun.to_bytes(part.size), (at - 1).to_bytes(part.size))
        begun = None if end else at
