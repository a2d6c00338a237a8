"""What every source of objects says, and to whom.

A source owns the question "what exists now": it remembers the names it reported, so that after a new list (a lost
watch, a rewritten file) it can say itself what is gone. The sink only ever hears of single objects.
"""

from typing import Protocol

from kubeproxy.api.types import Object


class Sink(Protocol):
    """Whoever wants to know. Calls come one at a time, in the event loop's thread, and must not block."""

    def set(self, obj: Object) -> None:
        """An object exists and looks like this. Called again when nothing changed, too."""

    def gone(self, kind: str, namespace: str, name: str) -> None:
        """An object that was set before exists no more."""

    def complete(self, kind: str) -> None:
        """The first list of a kind has been told whole. Said once for each kind."""

    def refused(self, kind: str, name: str, reason: str) -> None:
        """An object was left out because it does not decode; what was known of it stays."""


class Source(Protocol):
    """Where objects come from."""

    async def run(self) -> None:
        """Reports for ever; ends only by cancellation."""
