"""What the sink was told of one kind: names, and the list each was last seen in.

This is all a reflector remembers, and what lets it say after a new list which objects are gone. Until a list ends
nothing is reported gone but what the server says was deleted. An object that does not decode is reported once for
each of its versions; if it was known before, what was known stands.
"""

from msgspec import Raw

from kubeproxy.api.jsontext import BROKEN
from kubeproxy.api.types import UndecodableError, decode
from kubeproxy.sources.base import Sink
from kubeproxy.sources.events import Head, decode_head


class KnownObjects:
    """Tells a sink of objects of one kind, and remembers of which."""

    def __init__(self, kind: str, sink: Sink) -> None:
        self._kind = kind
        self._sink = sink
        self._list = 0
        self._known: dict[str, int] = {}
        self._refused: dict[str, tuple[str, int]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def begin_list(self) -> None:
        """A list begins, or begins again."""
        self._list += 1

    def end_list(self) -> None:
        """The list was told whole: what it did not mention is gone."""
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
        """Reports an object as gone, if it was ever set."""
        self._refused.pop(head.key, None)
        if head.key in self._known:
            self._gone(head.key)

    def clear(self) -> None:
        """Reports everything as gone."""
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
