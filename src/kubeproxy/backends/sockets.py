"""What ends sockets of this host beside, or in place of, flows of connection tracking."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from kubeproxy.model.flows import Place, TrackedFlow


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
