"""What netlink needs of the network namespace it works in. A `machine.base.Machine` has it."""

import socket
from collections.abc import Callable
from typing import BinaryIO, Protocol, TypeVar

Shared = TypeVar("Shared")


class Sockets(Protocol):
    """Makes sockets in one network namespace: for a process that knows its own alone, the module `socket`."""

    def socket(self, domain: int, kind: int, protocol: int = 0, /) -> socket.socket:
        """Makes a socket that belongs to the namespace, whichever thread uses it later.

        Args:
            domain: socket.AF_INET, AF_INET6, AF_UNIX or AF_NETLINK.
            kind: socket.SOCK_STREAM, SOCK_DGRAM or SOCK_RAW, with flags.
            protocol: as with socket(2).

        Raises:
            OSError: the kernel refuses.
        """


class Namespace(Sockets, Protocol):
    """A network namespace."""

    def interface(self, name: str) -> int:
        """The index of an interface; 0 if there is none of that name."""

    def net(self, name: str) -> BinaryIO:
        """Opens a file of the namespace below /proc/net, e.g. "ip_vs", for reading.

        Raises:
            OSError: there is none, or it cannot be read.
        """

    def shared(self, kind: Callable[[], Shared]) -> Shared:
        """The one value of a kind that all users of this namespace have in common; it is made when it is first asked for.

        Args:
            kind: a class that is made without arguments: a counter, a lock.
        """
