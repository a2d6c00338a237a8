"""The interface of a network namespace that the modules of netlink need.

`machine.base.Machine` implements it.
"""

import socket
from collections.abc import Callable
from typing import BinaryIO, Protocol, TypeVar

Shared = TypeVar("Shared")


class Sockets(Protocol):
    """Creates sockets in one network namespace.

    For the namespace of the process, the module `socket` can be used.
    """

    def socket(self, domain: int, kind: int, protocol: int = 0, /) -> socket.socket:
        """Creates a socket that belongs to the namespace, in whichever thread it is used later.

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
        """The index of an interface; 0 if no interface has this name."""

    def net(self, name: str) -> BinaryIO:
        """Opens a file of the namespace below /proc/net, e.g. "ip_vs", for reading.

        Raises:
            OSError: there is none, or it cannot be read.
        """

    def shared(self, kind: Callable[[], Shared]) -> Shared:
        """The object of a class that all users of this namespace share; it is created at the first call.

        Args:
            kind: a class whose constructor has no arguments, for example a counter or a lock.
        """
