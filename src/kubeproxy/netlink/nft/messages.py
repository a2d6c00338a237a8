"""The messages of a transaction, which change a rule set.

Each function makes one message about one object, of the family and table that its `TableName` names. Elements
are packed by the hundred thousand, so callers pack keys and data themselves, and `elements` only wraps them.
An attribute's length has 16 bits, so a long list becomes several messages.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from kubeproxy.netlink.nft import types
from kubeproxy.netlink.nft.types import COMMENT, SET_COMMENT, Type, tlv
from kubeproxy.netlink.wire import APPEND, CREATE, attribute, be32, be64, nested, text

INET: Final = 1
IP: Final = 2
IP6: Final = 10
FAMILY_NAMES: Final = {INET: "inet", IP: "ip", IP6: "ip6"}

NEWTABLE, GETTABLE, DELTABLE = 0, 1, 2
NEWCHAIN, GETCHAIN, DELCHAIN = 3, 4, 5
NEWRULE, GETRULE, DELRULE = 6, 7, 8
NEWSET, GETSET, DELSET = 9, 10, 11
NEWSETELEM, GETSETELEM, DELSETELEM = 12, 13, 14
NEWGEN, GETGEN = 15, 16

# enum nft_hook_priorities and inet hooks
PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = 0, 1, 2, 3, 4
JUMP, GOTO, RETURN = -3, -4, -5
DROP, ACCEPT = 0, 1

ANONYMOUS, CONSTANT, INTERVAL, MAP, TIMEOUT, EVAL, CONCAT = 0x1, 0x2, 0x4, 0x8, 0x10, 0x20, 0x80

OWNER: Final = 0x2
"""Of a table."""

RULE_DIGEST: Final = 0x70
"""The type of the userdata by which we recognise a rule; nft ignores it."""

_LONGEST_COMMENT = 127


class NftMessage(NamedTuple):
    """A message of a transaction.

    Attributes:
        kind: NEWTABLE and so on.
        flags: netlink flags besides REQUEST.
        family: IP or IP6.
        body: its attributes.
        about: a description of the change, for log messages and errors.
    """

    kind: int
    flags: int
    family: int
    body: bytes
    about: str


class TableName(NamedTuple):
    """A table's name."""

    family: int
    name: str

    def __str__(self) -> str:
        return f"{FAMILY_NAMES[self.family]} {self.name}"


class Hook(NamedTuple):
    """Where a base chain is registered: "filter" or "nat", one of the hooks, its priority."""

    type: str
    hook: int
    priority: int


def add_table(table: TableName, comment: str = "", *, flags: int = 0) -> NftMessage:
    """Creates a table if it does not exist.

    Args:
        table: its name.
        comment: printed by nft.
        flags: OWNER: only this socket can change it, and it is deleted when the socket is closed (since Linux
            5.12).
    """
    body = text(1, table.name) + be32(2, flags) + _userdata(6, COMMENT, comment)
    return NftMessage(NEWTABLE, CREATE, table.family, body, f"add table {table}")


def delete_table(table: TableName) -> NftMessage:
    """Deletes a table with its contents."""
    return NftMessage(DELTABLE, 0, table.family, text(1, table.name), f"delete table {table}")


def add_chain(table: TableName, name: str, hook: Hook | None = None, comment: str = "") -> NftMessage:
    """Creates a chain if it does not exist."""
    body = text(1, table.name) + text(3, name)
    if hook is not None:
        body += nested(4, be32(1, hook.hook), be32(2, hook.priority)) + be32(5, ACCEPT) + text(7, hook.type)
    body += _userdata(12, COMMENT, comment)
    return NftMessage(NEWCHAIN, CREATE, table.family, body, f"add chain {table} {name}")


def delete_chain(table: TableName, name: str) -> NftMessage:
    """Deletes a chain, which must have no rules, and to which no rule may refer."""
    body = text(1, table.name) + text(3, name)
    return NftMessage(DELCHAIN, 0, table.family, body, f"delete chain {table} {name}")


def flush_chain(table: TableName, name: str) -> NftMessage:
    """Deletes all rules of a chain."""
    body = text(1, table.name) + text(2, name)
    return NftMessage(DELRULE, 0, table.family, body, f"flush chain {table} {name}")


def add_rule(
    table: TableName, chain: str, *expressions: bytes, comment: str = "", digest: bytes = b""
) -> NftMessage:
    """Appends a rule to a chain.

    Args:
        table: the table.
        chain: the chain.
        expressions: made by the functions of module `expressions`.
        comment: printed by nft.
        digest: stored with the rule and not printed; we recognise the rule by it.
    """
    data = b""
    if comment:
        data += tlv(COMMENT, _clip(comment))
    if digest:
        data += tlv(RULE_DIGEST, digest)
    body = text(1, table.name) + text(2, chain) + nested(4, *expressions)
    if data:
        body += attribute(7, data)
    return NftMessage(NEWRULE, CREATE | APPEND, table.family, body, f"add rule {table} {chain}")


def add_set(
    table: TableName,
    name: str,
    key: Sequence[Type],
    data: Sequence[Type] | None = None,
    *,
    flags: int = 0,
    timeout: int = 0,
    size: int = 0,
    comment: str = "",
) -> NftMessage:
    """Creates a set, or with `data` a map, if it does not exist.

    Since Linux 6.2 an existing one gets a new timeout.

    Args:
        table: the table.
        name: its name.
        key: the types of the parts of a key.
        data: the types of the data to which an element maps; empty for a verdict; None for a set.
        flags: INTERVAL, TIMEOUT, EVAL.
        timeout: with TIMEOUT, milliseconds after which elements are removed.
        size: the maximum number of elements; 0 for no limit.
        comment: printed by nft.
    """
    body = text(1, table.name) + text(2, name)
    if data is not None:
        flags |= MAP
    if flags & INTERVAL and len(key) > 1:
        flags |= CONCAT
    body += be32(3, flags) + be32(4, types.number(key)) + be32(5, types.size(key))
    if data is not None:
        body += be32(6, types.number(data)) + be32(7, types.size(data))
    description = b""
    if size:
        description += be32(1, size)
    if flags & CONCAT:
        description += nested(2, *(nested(1, be32(1, part.size)) for part in key))
    if description:
        body += nested(9, description)
    body += be32(
        10, 0
    )  # an ID by which rules of the same transaction could refer to it instead of by its name
    if timeout:
        body += be64(11, timeout)
    userdata = types.typeof(key, data or ())
    if comment:
        userdata += tlv(SET_COMMENT, _clip(comment))
    if userdata:
        body += attribute(13, userdata)
    kind = "set" if data is None else "map"
    return NftMessage(NEWSET, CREATE, table.family, body, f"add {kind} {table} {name}")


def delete_set(table: TableName, name: str) -> NftMessage:
    """Deletes a set or map, to which no rule may refer."""
    body = text(1, table.name) + text(2, name)
    return NftMessage(DELSET, 0, table.family, body, f"delete set {table} {name}")


def add_elements(table: TableName, name: str, elements: Iterable[bytes]) -> list[NftMessage]:
    """Adds elements, each given as its attribute.

    An element that exists already is ignored if it is equal, and refused if it maps to something else.
    """
    return _elements(NEWSETELEM, CREATE, table, name, elements, "add elements to")


def delete_elements(table: TableName, name: str, elements: Iterable[bytes]) -> list[NftMessage]:
    """Deletes elements, each given at least by its key. One that does not exist is refused."""
    return _elements(DELSETELEM, 0, table, name, elements, "delete elements of")


def _elements(
    kind: int, flags: int, table: TableName, name: str, elements: Iterable[bytes], verb: str
) -> list[NftMessage]:
    head = text(1, table.name) + text(2, name)
    about = f"{verb} {table} {name}"
    messages: list[NftMessage] = []
    batch: list[bytes] = []
    size = 0
    for each in elements:
        if size + len(each) > 65000:
            messages.append(NftMessage(kind, flags, table.family, head + nested(3, *batch), about))
            batch, size = [], 0
        batch.append(each)
        size += len(each)
    if batch:
        messages.append(NftMessage(kind, flags, table.family, head + nested(3, *batch), about))
    return messages


def verdict(code: int, chain: str = "") -> bytes:
    """A verdict: DROP, ACCEPT, RETURN, or JUMP or GOTO to a chain."""
    return nested(2, be32(1, code), *([text(2, chain)] if chain else []))


def _clip(comment: str) -> bytes:
    """A comment as nft expects it: shortened, not within a character, and terminated by NUL."""
    return comment.encode()[:_LONGEST_COMMENT].decode(errors="ignore").encode() + b"\0"


def _userdata(attribute_kind: int, kind: int, comment: str) -> bytes:
    return attribute(attribute_kind, tlv(kind, _clip(comment))) if comment else b""
