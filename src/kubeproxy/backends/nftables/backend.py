"""Keeps the kernel's nftables table equal to the plans of one IP family.

A change is compiled twice, as it was and as it is to be; the elements that differ go to the kernel in one transaction, so a
packet meets the one or the other. Nothing is listed on the way.

A full sync reads the table once and compares. A table that is not laid out as ours, the reference's say, is replaced in
one transaction; one that is ours is mended.
"""

import asyncio
import logging
from collections.abc import Sequence

from kubeproxy.api.addresses import IPV4
from kubeproxy.backends.base import Change, Failures, StaleError, SyncError
from kubeproxy.backends.nftables import frame, layout
from kubeproxy.backends.nftables.content import NOTHING, Content, own_objects
from kubeproxy.backends.nftables.held import Held
from kubeproxy.backends.nftables.mending import Mending
from kubeproxy.backends.nftables.transaction import Transaction
from kubeproxy.model.node import NodeConfig
from kubeproxy.netlink.nft import messages, objects
from kubeproxy.netlink.nft.kernel import Kernel, RefusedError
from kubeproxy.netlink.nft.messages import IP, IP6, Message, Table

log = logging.getLogger(__name__)


class NFTables:
    """The nftables backend of one IP family. See `backends.base.Backend`."""

    def __init__(self, kernel: Kernel, node: NodeConfig) -> None:
        self._kernel = kernel
        self._table = Table(IP if node.family == IPV4 else IP6, layout.TABLE)
        self._content = Content(self._table, node)

    async def sync(self, node: NodeConfig, changes: Sequence[Change], *, full: bool) -> Failures:
        """See `Backend`."""
        try:
            if full:
                return await asyncio.to_thread(self._full, node, changes)
            # Microseconds: done at once, in the event loop.
            self._commit(self._content.difference(changes))
        except OSError as e:
            raise (SyncError if full else StaleError)(str(e)) from e
        return {}

    async def intact(self) -> bool:
        """See `Backend`."""
        return True

    def _commit(self, transaction: Transaction) -> None:
        self._kernel.commit(transaction.messages())
        self._kernel.commit(transaction.afterwards())

    def _full(self, node: NodeConfig, changes: Sequence[Change]) -> Failures:
        self._content = Content(self._table, node)
        self._content.fill(changes)
        comment = objects.table_comment(self._kernel, self._table)
        held = Held(self._kernel, self._table) if comment == layout.COMMENT else None
        if held is None or not held.sound:
            if comment is not None:
                log.info("Table %s is laid out differently, it is replaced", self._table)
                if self._replace():
                    return {}
            self._kernel.commit(self._anew(there=comment is not None))
            held = Held(self._kernel, self._table)
        return Mending(self._content, held, self._commit).run()

    def _replace(self) -> bool:
        """Puts our table in the place of another one, in one transaction; returns whether that was accepted."""
        compiler, ledger = self._content.compiler, self._content.ledger
        transaction = Transaction(self._table)
        for key in self._content.plans:
            compiled = self._content.compile(key)
            own_objects(transaction, NOTHING, compiled)
            for chain in ledger.acquire(compiled.chains):
                transaction.shared_chain(chain, compiler.steps)
            transaction.add(ledger.difference(NOTHING, compiled)[1])
        try:
            self._kernel.commit([*self._anew(there=True), *transaction.messages()])
        except RefusedError as e:
            log.warning("Table %s cannot be replaced in one go, packets may be lost: %s", self._table, e)
            self._content.ledger.clear()
            return False
        return True

    def _anew(self, *, there: bool) -> list[Message]:
        """The table with all that does not depend on Services, instead of the one that is there."""
        table, node = self._table, self._content.compiler.node
        out = [messages.delete_table(table)] if there else []
        out.append(messages.add_table(table, layout.COMMENT))
        out += [
            messages.add_set(table, s.name, s.key, s.data, flags=s.flags, comment=s.comment)
            for s in layout.sets(table.family)
        ]
        out += [messages.add_chain(table, name) for name in layout.FIXED_CHAINS]
        out += [messages.add_chain(table, name, hook) for name, hook in layout.BASE_CHAINS.items()]
        rest = Transaction(table)
        for name, rules in frame.rules(node).items():
            rest.chain(name, rules)
        for name, elements in frame.elements(node).items():
            rest.add((name, element) for element in elements)
        return [*out, *rest.messages()]
