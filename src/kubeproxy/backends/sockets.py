"""What ends sockets of this host beside, or in place of, flows of connection tracking."""

import errno
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from kubeproxy.model.flows import Place, TrackedFlow

HINTS: Final[Mapping[int | None, str]] = {
    errno.EPERM: "CAP_SYS_ADMIN is needed to enter the network namespaces of Pods",
    errno.EACCES: "CAP_SYS_PTRACE is needed to find the network namespaces of Pods",
    errno.EOPNOTSUPP: "the kernel needs CONFIG_INET_DIAG_DESTROY",
}
"""What is missing when sockets in all network namespaces cannot be found or destroyed."""


def why(error: OSError, hints: Mapping[int | None, str]) -> str:
    """An error's message, with what is missing."""
    hint = hints.get(error.errno)
    return f"{error.strerror or error}{f'; {hint}' if hint else ''}"


class Destroyer(Protocol):
    """Destroys sockets of TCP clients on this host, see `destroy.SocketDestroyer`."""

    @property
    def destroyed(self) -> int:
        """How many were destroyed so far."""

    def destroy(self, connections: Sequence[tuple[Place, Place]]) -> None:
        """Destroys the sockets of some connections.

        Args:
            connections: the place that each client sends from, and the place that it sends to.
        """


class TranslatedSockets(Protocol):
    """Sockets that a mode connected to endpoints: connection tracking knows nothing of their fronts."""

    @property
    def destroyed(self) -> int:
        """How many were destroyed so far."""

    def flows(self, protocol: int, *, destination: Place = b"", source: Place = b"") -> Iterator[TrackedFlow]:
        """The sockets of a protocol as flows.

        Args:
            protocol: its number.
            destination: only those for this front.
            source: only those to this endpoint.
        """

    def end(self, flows: Sequence[Any]) -> None:
        """Destroys the sockets of some of these flows."""
