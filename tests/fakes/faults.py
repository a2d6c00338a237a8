"""Kernels that refuse chosen pieces, and processes that die between two writes: around a fake kernel or around the real one.

What is refused does not reach the kernel behind, as with a refusal of its own: a transaction or an input is refused whole, a
virtual server alone.
"""

import copy
import errno
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from kubeproxy.api.addresses import join, pack
from kubeproxy.backends.base import SyncError
from kubeproxy.backends.ebpf.tables import ARRAYS, HASHES, FrontMaps
from kubeproxy.backends.ipvs.kernel import ServerChange
from kubeproxy.backends.programs import InputRefusedError
from kubeproxy.netlink import wire
from kubeproxy.netlink.ipset import Element
from kubeproxy.netlink.nft import kernel as nft
from kubeproxy.netlink.nft import messages as m
from kubeproxy.netlink.nft.messages import NftMessage
from kubeproxy.relay import sockets
from kubeproxy.relay.values import Listener
from tests.fakes.relay import FakeRelay

_NEW = {m.NEWCHAIN: "chain", m.NEWRULE: "rule", m.NEWSETELEM: "element", m.NEWSET: "set"}


class KilledError(BaseException):
    """The process is killed: it does nothing more, not even clean up."""


class Piece(NamedTuple):
    """Something that is to be added to a kernel.

    Attributes:
        kind: what it is.
        content: its text, or its bytes.
    """

    kind: str
    content: str | bytes

    def names(self, address: str) -> bool:
        """Whether an address is in it."""
        if isinstance(self.content, bytes):
            return pack(address) in self.content
        return address in self.content


class Faults:
    """What goes wrong.

    Attributes:
        refuse: asked of each piece that is to be added.
        left: how many writes are made before the process is killed, or the kernel fails; None: neither.
        kill: it is the process that is killed; else the kernel fails once.
        writes: how many were made.
    """

    def __init__(self) -> None:
        self.refuse: Callable[[Piece], object] = lambda _: False
        self.left: int | None = None
        self.kill = True
        self.writes = 0

    def write(self) -> None:
        """To be called before each write."""
        if self.left is not None:
            if self.left == 0 and self.kill:
                raise KilledError
            if self.left == 0:
                self.left = None
                raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
            self.left -= 1
        self.writes += 1


class _Around:
    """What is not overridden is done by the kernel behind."""

    def __init__(self, behind: Any, faults: Faults) -> None:
        self.behind = behind
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self.behind, name)


class FaultyNftables(_Around):
    """See `netlink.nft.kernel.Kernel`."""

    def commit(self, messages: Sequence[NftMessage]) -> None:
        if not messages:
            return
        self._faults.write()
        for index, message in enumerate(messages):
            if message.kind in _NEW and self._faults.refuse(Piece(_NEW[message.kind], bytes(message.body))):
                raise nft.TransactionRefusedError(
                    wire.NetlinkError(errno.EINVAL, "Invalid argument"), message, index
                )
        self.behind.commit(messages)


class FaultyTables(_Around):
    """See `backends.programs.Tables`."""

    def restore(self, table: str, lines: Iterable[str]) -> None:
        text = "".join(lines)
        try:
            self._faults.write()
        except OSError as e:
            raise SyncError(str(e)) from e
        for number, line in enumerate(text.splitlines(), 1):
            if line.startswith(("-A ", "-I ")) and self._faults.refuse(Piece(f"{table} rule", line)):
                raise InputRefusedError(f"iptables-restore: line {number} failed: {line}", number)
        self.behind.restore(table, [text])


class FaultyServers(_Around):
    """See `backends.ipvs.kernel.Kernel`. The process may be killed between any two changes."""

    def change_servers(self, changes: Sequence[ServerChange]) -> dict[int, OSError]:
        refused: dict[int, OSError] = {}
        for at, change in enumerate(changes):
            self._faults.write()
            kind = "virtual server" if change.real is None else "real server"
            content = change.virtual.address + (change.real.address if change.real else b"")
            if change.verb != "delete" and self._faults.refuse(Piece(kind, content)):
                refused[at] = _invalid()
            elif error := self.behind.change_servers([change]):
                refused[at] = error[0]
        return refused

    def create_set(self, name: str, kind: str, limit: int) -> None:
        self._faults.write()
        self.behind.create_set(name, kind, limit)

    def add_elements(self, name: str, elements: Collection[Element]) -> dict[Element, OSError]:
        refused: dict[Element, OSError] = {}
        for element in elements:
            self._faults.write()
            if self._faults.refuse(Piece("element", element.address + element.other)):
                refused[element] = _invalid()
            else:
                refused.update(self.behind.add_elements(name, [element]))
        return refused

    def delete_elements(self, name: str, elements: Collection[Element]) -> dict[Element, OSError]:
        if elements:
            self._faults.write()
        return dict(self.behind.delete_elements(name, elements))

    def bind(self, addresses: Collection[bytes]) -> dict[bytes, OSError]:
        refused: dict[bytes, OSError] = {}
        for address in addresses:
            self._faults.write()
            if self._faults.refuse(Piece("address", address)):
                refused[address] = _invalid()
            else:
                refused.update(self.behind.bind([address]))
        return refused

    def unbind(self, addresses: Collection[bytes]) -> dict[bytes, OSError]:
        if addresses:
            self._faults.write()
        return dict(self.behind.unbind(addresses))


class FaultyTable(_Around):
    """See `backends.ebpf.tables.HashTable`. The process may be killed between any two elements."""

    def put(self, elements: Iterable[tuple[bytes, bytes]]) -> None:
        for element in elements:
            self._faults.write()
            self.behind.put([element])

    def delete(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._faults.write()
            self.behind.delete([key])


class FaultyArray(_Around):
    """A mapped array, as far as it is used; each store is a write."""

    def __getitem__(self, at: Any) -> Any:
        return self.behind[at]

    def __setitem__(self, at: Any, value: Any) -> None:
        self._faults.write()
        self.behind[at] = value

    def __len__(self) -> int:
        return len(self.behind)


def make_faulty(maps: FrontMaps, faults: Faults) -> None:
    """Lets the maps of ebpf mode fail. A checksum of them needs the arrays themselves."""
    maps.digest = copy.copy(maps).digest  # type: ignore[method-assign]
    for name in (*HASHES, *ARRAYS, "cells"):
        around = FaultyTable if name in HASHES else FaultyArray
        setattr(maps, name, around(getattr(maps, name), faults))


class FaultyRelay(FakeRelay):
    """See `Relay`. Its sockets are real ones, or what `bind` returns."""

    def __init__(self, faults: Faults, bind: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self._faults = faults
        self._bind = bind

    def bind(self, address: str, ports: sockets.Span, *, udp: bool) -> Any:
        if self._bind is not None:
            return self._bind(self.machine, address, ports, udp=udp)
        return super().bind(address, ports, udp=udp)

    def open(self, sock: Any, listener: Listener) -> int:
        if self._faults.kill:
            try:
                self._faults.write()
            except KilledError:
                sock.close()
                raise
        at = sock.getsockname()
        if self._faults.refuse(Piece("socket", f"{listener.name} {join(*at[:2])}")):
            sock.close()
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        return super().open(sock, listener)


def _invalid() -> OSError:
    return OSError(errno.EINVAL, os.strerror(errno.EINVAL))
