"""The interface between a source of objects and its sink.

A source knows which objects exist: it remembers the names it reported, so that after a new list (a lost
watch, a rewritten file) it reports which objects were deleted. The sink receives single objects only.
"""

from typing import Protocol

from msgspec import Struct

from kubeproxy.api.types import Object


class Sink(Protocol):
    """Receives the objects. Calls are made one at a time, in the event loop's thread, and must not block."""

    def set(self, obj: Object) -> None:
        """An object exists with this content. Also called again if it has not changed."""

    def gone(self, kind: str, namespace: str, name: str) -> None:
        """An object that was set before was deleted."""

    def complete(self, kind: str) -> None:
        """The first list of a kind is complete. Called once for each kind."""

    def refused(self, kind: str, name: str, reason: str, *, kept: bool, file: str = "") -> None:
        """An object was left out because it does not decode.

        Args:
            kind: its kind.
            name: its name, as far as it is known.
            reason: what is wrong, and at which field.
            kept: an earlier state of the object was set, and stays.
            file: the name of the file that holds the object, if it comes from one.
        """


class Source(Protocol):
    """A source of objects."""

    async def run(self) -> None:
        """Reports objects; ends only by cancellation."""


class Status(Struct):
    """The state of the watch of one kind, for health checks and metrics. Times are monotonic, in seconds.

    Attributes:
        kind: the Kubernetes kind.
        connected: whether a watch is open.
        received: when the server last sent anything on a watch, bookmarks included; 0 for never.
        event: when the last object was set or deleted; 0 for never.
        lists: complete lists so far; all but the first are relists.
        errors: failed rounds so far.
        objects: how many objects are known.
        version: the last resourceVersion seen.
        trouble: the present error, or empty.
    """

    kind: str
    connected: bool = False
    received: float = 0.0
    event: float = 0.0
    lists: int = 0
    errors: int = 0
    objects: int = 0
    version: str = ""
    trouble: str = ""
