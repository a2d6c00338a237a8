"""Transactions: many messages that the kernel applies together or not at all.

A transaction is one datagram: a begin, the messages, an end. The kernel has done it when `send` returns. Each message has a
number of its own, so a refusal names the one at fault. A long transaction takes time in the kernel, and no lock of ours: it
can be sent from a thread.
"""

import errno
import logging
import struct
import threading
from collections.abc import Iterable, Sequence
from typing import Final

from kubeproxy.log import V6
from kubeproxy.netlink import wire
from kubeproxy.netlink.namespace import Namespace
from kubeproxy.netlink.nft.messages import GETGEN, NftMessage, TableName, delete_table

log = logging.getLogger(__name__)

_SUBSYSTEM: Final = 10 << 8
_BEGIN, _END = 0x10, 0x11
_GENERATION = 1
_PATIENCE = 20


def header(family: int, resource: int = 0) -> bytes:
    """Struct nfgenmsg."""
    return struct.pack(">BBH", family, 0, resource)


class TransactionRefusedError(OSError):
    """The kernel refused a transaction, and has done nothing of it.

    Attributes:
        errno: why.
        message: the message at fault; None if it was the transaction as a whole.
        index: its place in the transaction, -1 for the whole.
    """

    def __init__(self, error: wire.NetlinkError, message: NftMessage | None, index: int) -> None:
        what = message.about if message else "transaction"
        super().__init__(error.errno, f"{what}: {error.strerror}")
        self.message = message
        self.index = index


class Transactions:
    """Counts the transactions that this process makes in a network namespace, through all its sockets."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def add(self) -> None:
        """Counts one more. May be called from any thread."""
        with self._lock:
            self._count += 1

    def __int__(self) -> int:
        return self._count


class NftKernel(wire.Closing):
    """The kernel's nf_tables.

    Attributes:
        namespace: the network namespace it belongs to.
    """

    def __init__(self, namespace: Namespace) -> None:
        """Opens a socket.

        Args:
            namespace: the network namespace.

        Raises:
            OSError: the kernel has no nfnetlink.
        """
        self.namespace = namespace
        self._ours = namespace.shared(Transactions)
        self._socket: wire.Socket = wire.Socket(
            namespace, wire.NETFILTER, receive_buffer=8 << 20, numbered=True
        )

    def commit(self, messages: Sequence[NftMessage]) -> None:
        """Applies messages together.

        Raises:
            RefusedError: one of them was refused, so none was applied.
        """
        if not messages:
            return
        sequences = [self._socket.next_sequence() for _ in range(len(messages) + 2)]
        if log.isEnabledFor(V6):
            for number, message in enumerate(messages, 1):
                log.log(
                    V6,
                    "nf_tables, %(number)d of %(count)d: %(message)s",
                    {"number": number, "count": len(messages), "message": message.about},
                )
        # The acknowledgement of the last message, or any error, says that all is done; of the end, kernels before 6.10
        # give none.
        first, last = sequences[0], sequences[-2]
        parts = [wire.message(_BEGIN, wire.REQUEST, header(0, 10), first)]
        for message, sequence in zip(messages, sequences[1:-1], strict=True):
            flags = wire.REQUEST | message.flags | (wire.ACK if sequence == last else 0)
            parts.append(
                wire.message(
                    _SUBSYSTEM | message.kind, flags, header(message.family) + message.body, sequence
                )
            )
        parts.append(wire.message(_END, wire.REQUEST, header(0, 10), sequences[-1]))
        self._socket.send(b"".join(parts))
        self._answer(messages, first, last)

    def _answer(self, messages: Sequence[NftMessage], first: int, last: int) -> None:
        """Reads what the kernel says of a transaction: the first complaint counts."""
        failed: TransactionRefusedError | None = None
        while True:
            seen = False
            for reply in self._socket.receive(wait=failed is None):
                seen = True
                if reply.type != wire.ERROR or not first <= reply.sequence <= last:
                    continue
                try:
                    wire.check(reply)
                except wire.NetlinkError as e:
                    index = reply.sequence - first - 1
                    message = messages[index] if 0 <= index < len(messages) else None
                    failed = failed or TransactionRefusedError(e, message, index if message else -1)
                    continue
                if reply.sequence == last and failed is None:
                    self._ours.add()
                    return
            if failed is not None and not seen:
                raise failed

    def generation(self) -> int:
        """The number of the kernel's present rule set: every transaction of anybody makes it another.

        Raises:
            OSError: the kernel has no nf_tables.
        """
        for reply in self._socket.request(_SUBSYSTEM | GETGEN, header(0)):
            return int.from_bytes(wire.attributes(reply.body[4:])[_GENERATION])
        raise OSError(errno.ENOTSUP, "no generation number")

    def others(self) -> int:
        """A number that another process's transaction changes, and ours do not.

        Raises:
            OSError: the kernel has no nf_tables.
        """
        return self.generation() - int(self._ours)

    def ask(self, kind: int, family: int, body: bytes) -> list[memoryview]:
        """Asks for one object: its attributes.

        Raises:
            NetlinkError: there is none, or the kernel refused.
        """
        return [reply.body[4:] for reply in self._socket.request(_SUBSYSTEM | kind, header(family) + body)]

    def dump(self, kind: int, family: int, body: bytes) -> Iterable[memoryview]:
        """Lists what is in one table: the attributes of each object.

        Any transaction interrupts a dump, on some hosts there is always one. But if it left this table alone, the list
        is right.

        Raises:
            NetlinkError: the kernel refused.
        """
        try:
            for reply in self._socket.dump(_SUBSYSTEM | kind, header(family) + body):
                yield reply.body[4:]
        except wire.NetlinkError as e:
            if e.errno != errno.EINTR:
                raise

    def dump_all(self, kind: int, family: int) -> list[memoryview]:
        """Lists the objects of all tables: the attributes of each. A dump that was interrupted is done again.

        Raises:
            NetlinkError: the kernel refused; EINTR when it was interrupted again and again.
        """
        for _ in range(_PATIENCE):
            try:
                return [reply.body[4:] for reply in self._socket.dump(_SUBSYSTEM | kind, header(family))]
            except wire.NetlinkError as e:
                if e.errno != errno.EINTR:
                    raise
        raise wire.NetlinkError(errno.EINTR)


def generation(namespace: Namespace) -> int:
    """The number of the kernel's present rule set.

    Raises:
        OSError: the kernel has no nf_tables.
    """
    with NftKernel(namespace) as kernel:
        return kernel.generation()


def drop_table(namespace: Namespace, table: TableName) -> bool:
    """Deletes a table with all it holds; returns whether there was one.

    Raises:
        OSError: the kernel refused.
    """
    with NftKernel(namespace) as kernel:
        try:
            kernel.commit([delete_table(table)])
        except TransactionRefusedError as e:
            if e.errno == errno.ENOENT:
                return False
            raise
    return True
