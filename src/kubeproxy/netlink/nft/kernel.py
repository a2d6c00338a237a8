"""Transactions: messages that the kernel applies together or not at all.

A transaction is one datagram: a begin message, the messages, an end message. When `send` returns, the kernel
has applied or refused it. Each message has its own number, so that an error names the message that was
refused. The kernel needs time for a long transaction, but holds no lock of this process, so it can be sent
from a thread.
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
_MOST_DUMPS = 20


def header(family: int, resource: int = 0) -> bytes:
    """Struct nfgenmsg."""
    return struct.pack(">BBH", family, 0, resource)


class TransactionRefusedError(OSError):
    """The kernel refused a transaction, and has applied nothing of it.

    Attributes:
        errno: the reason.
        message: the message that was refused; None if the transaction as a whole was.
        index: its index in the transaction; -1 for the whole.
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
            TransactionRefusedError: one of them was refused, so none was applied.
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
        # The acknowledgement of the last message, or any error, means that the transaction is complete. The
        # end message cannot be used for this, because kernels before 6.10 do not acknowledge it.
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
        """Reads the kernel's answers to a transaction, and raises the first error."""
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
        """The number of the kernel's current rule set, which every transaction of any process changes.

        Raises:
            OSError: the kernel has no nf_tables.
        """
        for reply in self._socket.request(_SUBSYSTEM | GETGEN, header(0)):
            return int.from_bytes(wire.attributes(reply.body[4:])[_GENERATION])
        raise OSError(errno.ENOTSUP, "no generation number")

    def others(self) -> int:
        """A number that transactions of other processes change, and our own do not.

        Raises:
            OSError: the kernel has no nf_tables.
        """
        return self.generation() - int(self._ours)

    def ask(self, kind: int, family: int, body: bytes) -> list[memoryview]:
        """Requests one object; returns its attributes.

        Raises:
            NetlinkError: it does not exist, or the kernel refused.
        """
        return [reply.body[4:] for reply in self._socket.request(_SUBSYSTEM | kind, header(family) + body)]

    def dump(self, kind: int, family: int, body: bytes) -> Iterable[memoryview]:
        """Lists objects of one table: the attributes of each.

        Any transaction interrupts a dump, and on some hosts there are transactions all the time. This is
        ignored, because the list is correct if the transaction did not change this table.

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
        """Lists the objects of all tables: the attributes of each. A dump that was interrupted is repeated.

        Raises:
            NetlinkError: the kernel refused; EINTR if it was interrupted too often.
        """
        for _ in range(_MOST_DUMPS):
            try:
                return [reply.body[4:] for reply in self._socket.dump(_SUBSYSTEM | kind, header(family))]
            except wire.NetlinkError as e:
                if e.errno != errno.EINTR:
                    raise
        raise wire.NetlinkError(errno.EINTR)


def generation(namespace: Namespace) -> int:
    """The number of the kernel's current rule set.

    Raises:
        OSError: the kernel has no nf_tables.
    """
    with NftKernel(namespace) as kernel:
        return kernel.generation()


def drop_table(namespace: Namespace, table: TableName) -> bool:
    """Deletes a table with its contents; returns whether it existed.

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
