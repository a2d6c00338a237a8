"""What every source of objects says, and to whom.

A source owns the question "what exists now": it remembers the names it reported, so that after a new list (a lost
watch, a rewritten file) it can say itself what is gone. The sink only ever hears of single objects.
"""

from typing import Protocol

from msgspec import Struct

from kubeproxy.api.types import Object


class Sink(Protocol):
    """Whoever wants to know. Calls come one at a time, in the event loop's thread, and must not block."""

    def set(self, obj: Object) -> None:
        """An object exists and looks like this. Called again when nothing changed, too."""

    def gone(self, kind: str, namespace: str, name: str) -> None:
        """An object that was set before exists no more."""

    def complete(self, kind: str) -> None:
        """The first list of a kind has been told whole. Said once for each kind."""

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
    """Where objects come from."""

    async def run(self) -> None:
        """Reports for ever; ends only by cancellation."""


class Status(Struct):
    """Facts about what is known of one kind, for health checks and metrics. Times are monotonic, in seconds.

    Attributes:
        kind: the Kubernetes kind.
        connected: a watch stands now.
        heard: when the server last said anything on a watch, bookmarks included; 0 for never.
        event: when the last object was set or deleted; 0 for never.
        lists: complete lists so far; all but the first are relists.
        errors: failed rounds so far.
        objects: how many the sink was told of.
        version: the last resourceVersion seen.
        trouble: why it does not work now, or empty.
    """

    kind: str
    connected: bool = False
    heard: float = 0.0
    event: float = 0.0
    lists: int = 0
    errors: int = 0
    objects: int = 0
    version: str = ""
    trouble: str = ""
