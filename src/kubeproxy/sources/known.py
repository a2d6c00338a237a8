"""The names of the objects of one kind that were reported to the sink, and the list each was last in.

This is all that a reflector remembers; with it, it can report after a new list which objects were deleted.
Before a list is complete only deletions that the server sent are reported. An object that cannot be decoded
is reported once for each of its versions; if it was known before, its last good state stays.
"""

from msgspec import Raw

from kubeproxy.api.jsontext import BROKEN
from kubeproxy.api.types import UndecodableError, decode
from kubeproxy.sources.base import Sink
from kubeproxy.sources.events import Head, decode_head


class KnownObjects:
    """Reports objects of one kind to a sink, and remembers their names."""

    def __init__(self, kind: str, sink: Sink) -> None:
        self._kind = kind
        self._sink = sink
        self._list = 0
        self._known: dict[str, int] = {}
        self._refused: dict[str, tuple[str, int]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def begin_list(self) -> None:
        """A list starts, or starts again."""
        self._list += 1

    def end_list(self) -> None:
        """The list is complete: objects that were not in it are reported as deleted."""
        for key in [key for key, seen in self._known.items() if seen != self._list]:
            self._gone(key)
        self._refused = {key: entry for key, entry in self._refused.items() if entry[1] == self._list}

    def set(self, raw: Raw) -> str:
        """Reports an object and returns its resourceVersion."""
        try:
            obj = decode(self._kind, raw)
        except UndecodableError as e:
            return self._refuse(raw, e)
        key = f"{obj.metadata.namespace}/{obj.metadata.name}"
        self._known[key] = self._list
        self._sink.set(obj)
        return obj.metadata.resource_version

    def delete(self, head: Head) -> None:
        """Reports an object as deleted, if it was ever set."""
        self._refused.pop(head.key, None)
        if head.key in self._known:
            self._gone(head.key)

    def clear(self) -> None:
        """Reports all objects as deleted."""
        for key in list(self._known):
            self._gone(key)

    def _gone(self, key: str) -> None:
        del self._known[key]
        namespace, _, name = key.partition("/")
        self._sink.gone(self._kind, namespace, name)

    def _refuse(self, raw: Raw, error: UndecodableError) -> str:
        try:
            head = decode_head(raw)
        except BROKEN:
            head = Head()
        if head.key in self._known:
            self._known[head.key] = self._list
        version, _ = self._refused.get(head.key, (None, 0))
        self._refused[head.key] = head.version, self._list
        if version != head.version:
            self._sink.refused(error.kind, error.name, error.reason, kept=head.key in self._known)
        return head.version
