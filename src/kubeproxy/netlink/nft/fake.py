"""nf_tables in memory: a `NftKernel` that also refuses messages in a wrong order and with wrong references.

It stores the attributes of objects and lists them again, so that everything that was written can be read and
converted to text. It does not check whether intervals overlap or whether expressions exist, and no packets
pass through it.
"""

import copy
import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from kubeproxy.netlink import wire
from kubeproxy.netlink.nft import messages as m
from kubeproxy.netlink.nft import objects, references, types
from kubeproxy.netlink.nft.kernel import NftKernel, TransactionRefusedError
from kubeproxy.netlink.nft.messages import NftMessage

_LISTED: Final = {
    m.GETTABLE: m.NEWTABLE,
    m.GETSET: m.NEWSET,
    m.GETCHAIN: m.NEWCHAIN,
    m.GETRULE: m.NEWRULE,
    m.GETSETELEM: m.NEWSETELEM,
}


class _FakeTable:
    def __init__(self, body: bytes) -> None:
        self.body = body
        self.chains: dict[str, bytes] = {}
        self.rules: dict[str, dict[int, bytes]] = {}
        self.sets: dict[str, bytes] = {}
        self.elements: dict[str, dict[bytes, bytes]] = {}

    def listing(self, kind: int, family: int, name: str, only: str | None = None) -> Iterator[NftMessage]:
        """Messages of a kind that create the objects of the table; elements may be limited to one set."""
        if kind == m.NEWSETELEM:
            names = self.elements if only is None else [only] if only in self.elements else []
            for each in names:
                yield from m.add_elements(m.TableName(family, name), each, self.elements[each].values())
            return
        if kind == m.NEWRULE:
            found = self.rules.values() if only is None else [self.rules.get(only, {})]
            numbered = ((handle, rule) for rules in found for handle, rule in rules.items())
            bodies = [rule + wire.be64(3, handle) for handle, rule in numbered]
        else:
            bodies = {
                m.NEWTABLE: [self.body],
                m.NEWSET: list(self.sets.values()),
                m.NEWCHAIN: list(self.chains.values()),
            }[kind]
        for body in bodies:
            yield NftMessage(kind, 0, family, body, "")

    def __deepcopy__(self, memo: object) -> "_FakeTable":
        other = _FakeTable(self.body)
        other.chains, other.sets = dict(self.chains), dict(self.sets)
        other.rules = {name: dict(rules) for name, rules in self.rules.items()}
        other.elements = {name: dict(elements) for name, elements in self.elements.items()}
        return other


class FakeNftKernel(NftKernel):
    """See `NftKernel`.

    Attributes:
        commits: the transactions that were applied.
        refuse: returns whether a message is refused; for tests.
    """

    def __init__(self) -> None:
        self.commits: list[Sequence[NftMessage]] = []
        self.refuse: Callable[[NftMessage], object] = lambda _: None
        self._tables: dict[tuple[int, str], _FakeTable] = {}
        self._generation = 1
        self._handle = 0

    def close(self) -> None:
        """See `NftKernel`."""

    def commit(self, messages: Sequence[NftMessage]) -> None:
        """See `NftKernel`."""
        if not messages:
            return
        before = copy.deepcopy(self._tables)
        for index, message in enumerate(messages):
            try:
                _refuse_if(self.refuse(message), errno.EINVAL)
                self._do(message)
            except wire.NetlinkError as e:
                self._tables = before
                raise TransactionRefusedError(e, message, index) from None
        self.commits.append(messages)
        self._generation += 1

    def generation(self) -> int:
        """See `NftKernel`."""
        return self._generation

    def others(self) -> int:
        """See `NftKernel`. There are none."""
        return 0

    def ask(self, kind: int, family: int, body: bytes) -> list[memoryview]:
        """See `NftKernel`: a chain, a set, or an element of a set by its key."""
        a = wire.attributes(body)
        table = self._tables.get((family, wire.string(a[1])))
        _found(table)
        assert table is not None
        if kind == m.GETSETELEM:
            (key,) = objects.split(bytes(a[3]))
            element = table.elements.get(wire.string(a[2]), {}).get(objects.key_of(key))
            found = None if element is None else wire.nested(3, element)
        else:
            bodies, attribute = {m.GETCHAIN: (table.chains, 3), m.GETSET: (table.sets, 2)}[kind]
            found = bodies.get(wire.string(a[attribute]))
        _found(found)
        assert found is not None
        return [memoryview(found)]

    def dump(self, kind: int, family: int, body: bytes = b"") -> Iterable[memoryview]:
        """See `NftKernel`."""
        asked = wire.attributes(body)
        for (of, name), table in self._tables.items():
            if of == family and wire.string(asked.get(1, memoryview(name.encode()))) == name:
                only = wire.string(asked[2]) if 2 in asked else None
                yield from (
                    memoryview(listed.body) for listed in table.listing(_LISTED[kind], of, name, only)
                )

    def dump_all(self, kind: int, family: int) -> list[memoryview]:
        """See `NftKernel`."""
        return list(self.dump(kind, family))

    def listing(self) -> Iterator[NftMessage]:
        """All objects, as messages that would create them."""
        for (family, name), table in self._tables.items():
            for kind in _LISTED.values():
                yield from table.listing(kind, family, name)

    def _do(self, message: NftMessage) -> None:
        a = wire.attributes(message.body)
        name = message.family, wire.string(a[1])
        if message.kind == m.NEWTABLE:
            self._tables.setdefault(name, _FakeTable(message.body))
            return
        table = self._tables.get(name)
        _found(table)
        assert table is not None
        match message.kind:
            case m.DELTABLE:
                del self._tables[name]
            case m.NEWCHAIN:
                table.chains.setdefault(wire.string(a[3]), message.body)
                table.rules.setdefault(wire.string(a[3]), {})
            case m.DELCHAIN:
                _delete_chain(table, wire.string(a[3]))
            case m.NEWRULE:
                self._handle += 1
                _found(
                    references.chains(a[4]) <= table.chains.keys()
                    and references.sets(a[4]) <= table.sets.keys()
                )
                _found(table.chains.get(wire.string(a[2])))
                table.rules[wire.string(a[2])][self._handle] = message.body
            case m.DELRULE:
                _found(table.chains.get(wire.string(a[2])))
                table.rules[wire.string(a[2])].clear()
            case m.NEWSET:
                _new_set(table, wire.string(a[2]), message.body)
            case m.DELSET:
                _delete_set(table, wire.string(a[2]))
            case m.NEWSETELEM | m.DELSETELEM:
                _found(table.sets.get(wire.string(a[2])))
                _elements(table, wire.string(a[2]), a, add=message.kind == m.NEWSETELEM)


def _refuse_if(refused: object, code: int) -> None:
    if refused:
        raise wire.NetlinkError(code)


def _found(thing: object) -> None:
    _refuse_if(not thing, errno.ENOENT)


def _delete_chain(table: _FakeTable, name: str) -> None:
    _found(table.chains.get(name))
    named = name.encode() + b"\0"  # there may be 100,000 elements: only those that have the name are parsed
    used = any(
        named in r and name in references.chains(wire.attributes(r)[4])
        for rules in table.rules.values()
        for r in rules.values()
    )
    led_to = any(
        named in e and name == references.target(e)
        for elements in table.elements.values()
        for e in elements.values()
    )
    _refuse_if(used or led_to or table.rules[name], errno.EBUSY)
    del table.chains[name], table.rules[name]


def _new_set(table: _FakeTable, name: str, body: bytes) -> None:
    """Creates a set. One that exists must be the same (`nft_set_is_same`).

    Since Linux 6.2 it gets a new timeout.
    """
    there = table.sets.get(name, body)
    _refuse_if(_what_it_is(there) != _what_it_is(body), errno.EEXIST)
    table.sets[name] = body
    table.elements.setdefault(name, {})


def _what_it_is(body: bytes) -> list[bytes]:
    """Flags, types and lengths. A set that was read has other attributes besides."""
    found = wire.attributes(body)
    return [bytes(found[kind]) if kind in found else b"" for kind in (3, 4, 5, 6, 7)]


def _delete_set(table: _FakeTable, name: str) -> None:
    _found(table.sets.get(name))
    used = any(
        name in references.sets(wire.attributes(r)[4])
        for rules in table.rules.values()
        for r in rules.values()
    )
    _refuse_if(used, errno.EBUSY)
    del table.sets[name], table.elements[name]


def _elements(table: _FakeTable, name: str, a: wire.Attributes, *, add: bool) -> None:
    held = table.elements[name]
    if 3 not in a:
        held.clear()
        return
    verdicts = int.from_bytes(wire.attributes(table.sets[name]).get(6, b"")) == types.VERDICT
    for element in objects.split(bytes(a[3])):
        key = objects.key_of(element)
        if add:
            target = references.target(element) if verdicts else ""
            _found(not target or target in table.chains)
            _refuse_if(held.setdefault(key, element) != element, errno.EEXIST)
        else:
            _found(key in held)
            del held[key]
