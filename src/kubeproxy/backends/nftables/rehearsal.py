"""The table of nftables mode as a value, and what a `load` would do to it.

What is read is kept as the messages that would make it. The difference to some plans is found by a `load` into a kernel in memory
that holds these: so there is one way to compare, the daemon's own.
"""

from collections.abc import Iterator

from msgspec import Struct

from kubeproxy.backends.base import Change, HeldState
from kubeproxy.backends.nftables import layout
from kubeproxy.backends.nftables.content import Content
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import ServicePlan
from kubeproxy.netlink import wire
from kubeproxy.netlink.nft import messages, objects, text
from kubeproxy.netlink.nft.fake import FakeNftKernel
from kubeproxy.netlink.nft.kernel import NftKernel
from kubeproxy.netlink.nft.messages import NftMessage, TableName

_N = wire.NESTED
_SET = (1, 2, 3, 4, 5, 6, 7, 9 | _N, 11, 13)
"""Attributes of a set that say what it is: table, name, flags, types, sizes, description, timeout, comment."""

_RULE = (1, 2, 4 | _N, 7)
"""Those of a rule: table, chain, expressions, comment and digest."""

_CHAIN = (1, 3, 4 | _N, 5, 7, 12)
"""Those of a chain: table, name, hook, policy, type, comment."""


class HeldTable(Struct, frozen=True, gc=False):
    """The table of one family.

    Attributes:
        made: the messages that would make it: the table, its sets, chains, rules and elements; none if there is no table.
    """

    made: tuple[NftMessage, ...]

    def lines(self) -> list[str]:
        """See `HeldState`."""
        return text.render(self.made).splitlines()

    def in_memory(self) -> FakeNftKernel:
        """A kernel in memory that holds the same."""
        kernel = FakeNftKernel()
        kernel.commit(self.made)
        kernel.commits.clear()
        return kernel


class TableSteps(Struct, frozen=True, gc=False):
    """What is to be done to the table.

    Attributes:
        commits: the transactions in their order.
        sets: messages that made the sets that are there already.
    """

    commits: tuple[tuple[NftMessage, ...], ...]
    sets: tuple[NftMessage, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.commits)

    def lines(self) -> list[str]:
        """See `LoadSteps`."""
        return list(text.commands((each for commit in self.commits for each in commit), self.sets))

    def send(self, kernel: NftKernel) -> None:
        """Does it.

        Raises:
            RefusedError: a transaction was refused; those before it are done.
        """
        for commit in self.commits:
            kernel.commit(commit)


def read(kernel: NftKernel, table: TableName) -> HeldTable:
    """Reads the table.

    Raises:
        OSError: the kernel refused, or the table changed meanwhile.
    """
    return HeldTable(tuple(_listed(kernel, table)))


def steps(held: HeldTable, kernel: FakeNftKernel) -> TableSteps:
    """What was sent to a kernel in memory that held this."""
    known = tuple([message for message in held.made if message.kind == messages.NEWSET])
    return TableSteps(tuple(tuple(commit) for commit in kernel.commits), known)


def as_table(held: HeldState) -> HeldTable:
    """What `read` returned; anything else is a mistake of the caller."""
    assert isinstance(held, HeldTable)
    return held


def describe(plan: ServicePlan, node: NodeConfig, table: TableName) -> list[str]:
    """The commands of nft that add what a Service needs to a table that is laid out as ours."""
    transaction = Content(table, node).difference([Change(plan.key, None, plan)])
    known = [messages.add_set(table, s.name, s.key, s.data, flags=s.flags) for s in layout.sets(table.family)]
    sent = (each for each in (*transaction.beforehand(), *transaction.messages()))
    return [line for line in text.commands(sent, known) if line.startswith("add ")]


def _listed(kernel: NftKernel, table: TableName) -> Iterator[NftMessage]:
    family, only = table.family, wire.text(1, table.name)
    for body in kernel.dump_all(messages.GETTABLE, family):
        if wire.string(wire.attributes(body)[1]) == table.name:
            yield messages.add_table(table, objects.table_comment(kernel, table) or "")
            break
    else:
        return
    names = []
    for body in list(kernel.dump(messages.GETSET, family, only)):
        a = wire.attributes(body)
        names.append(wire.string(a[2]))
        made = _only(a, _SET) + wire.be32(10, 0)
        yield NftMessage(messages.NEWSET, 0, family, made, f"add set {table} {names[-1]}")
    for body in kernel.dump_all(messages.GETCHAIN, family):
        a = wire.attributes(body)
        if wire.string(a[1]) == table.name:
            name = wire.string(a[3])
            yield NftMessage(messages.NEWCHAIN, 0, family, _only(a, _CHAIN), f"add chain {table} {name}")
    for body in kernel.dump(messages.GETRULE, family, only):
        a = wire.attributes(body)
        if wire.string(a[1]) == table.name:
            yield NftMessage(
                messages.NEWRULE, 0, family, _only(a, _RULE), f"add rule {table} {wire.string(a[2])}"
            )
    for name in names:
        yield from messages.add_elements(table, name, sorted(objects.elements(kernel, table, name)))


def _only(a: wire.Attributes, kinds: tuple[int, ...]) -> bytes:
    """Some of an object's attributes, put together again."""
    return b"".join([wire.attribute(kind, bytes(a[kind & ~_N])) for kind in kinds if kind & ~_N in a])
