"""YAML as Kubernetes reads it: one reader for the configuration, kubeconfig files and manifests.

Kubernetes turns YAML into JSON, so the keys of a mapping are text: a number or a boolean becomes text, and
null, a list or a mapping as key is an error. `{{ .NodeName }}`, a template that was not rendered, is a
mapping with a mapping as key. What scalars mean is in `yamlscalars`. A mapping that is merged by `<<` is used
where it stands: of equal keys, the last one is used.

PyYAML's parser gives the events, and the values are made here without recursion. So the depth is checked
before anything is made of it, and the values that aliases repeat are counted: ten lines of aliases to aliases
would otherwise mean a billion values to everything that walks through the result. An alias gives the same
value, not a copy.

Every error is one line with line, column and field. Source: https://yaml.org/spec/1.1/, sigs.k8s.io/yaml.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

from kubeproxy.api import yamlscalars
from kubeproxy.api.limits import (
    DEEPEST,
    MOST_REPEATED,
    REPEATED_RATIO,
    TOO_DEEP,
    TextError,
    as_utf8,
    check_utf8,
    joined,
    place,
)

Repeated = Callable[[str, int], None]
"""Called for each key that is in a mapping twice, with its path and line (0: unknown)."""


def ignore(path: str, line: int) -> None:
    """Ignores keys that are given twice."""


_NO_KEY: Final = object()
_MERGE: Final = object()


def first(data: bytes, repeated: Repeated = ignore) -> Any:
    """Reads the first document of a text; None if there is none.

    Args:
        data: the text.
        repeated: is given each key that is twice in a mapping; the last one counts.

    Raises:
        TextError: the text is not YAML, or something other than a document follows the first one.
    """
    reader = _Reader(data, repeated)
    try:
        for document in reader.documents():
            reader.begins_document()
            return document
        return None
    finally:
        reader.close()


def documents(data: bytes, repeated: Repeated = ignore) -> Iterator[Any]:
    """Reads all documents of a text, one after the other.

    Args:
        data: the text.
        repeated: is given each key that is twice in a mapping; the last one counts.

    Raises:
        TextError: the text is not YAML; the documents before the error have been returned.
    """
    reader = _Reader(data, repeated)
    try:
        yield from reader.documents()
    finally:
        reader.close()


class _Value:
    """A value with an anchor; `size` is 0 until it is complete."""

    __slots__ = ("depth", "size", "value")

    def __init__(self, value: Any, size: int = 0) -> None:
        self.value = value
        self.size = size
        self.depth = 0


class _Open:
    """A list or mapping whose end has not come yet.

    Attributes:
        value: the list or dict.
        key: the key that waits for its value, `_NO_KEY` while one is due, `_MERGE` for `<<`.
        before: how many values there were before it.
        anchor: what its anchor names.
        depth: how many lists and mappings are inside each other within it.
        merged: the keys that were only merged into it so far.
    """

    __slots__ = ("anchor", "before", "depth", "key", "merged", "value")

    def __init__(self, value: Any, before: int, anchor: _Value | None) -> None:
        self.value = value
        self.key: Any = _NO_KEY
        self.before = before
        self.anchor = anchor
        self.depth = 1
        self.merged: set[str] | None = None


class _Reader:
    """Makes the values of one text."""

    def __init__(self, data: bytes, repeated: Repeated) -> None:
        import yaml

        self._yaml = yaml
        self._data = as_utf8(data)
        self._repeated = repeated
        self._open: list[_Open] = []
        self._values = 0
        self._aliased = 0
        check_utf8(self._data)
        self._parser: Any = None
        try:
            self._parser = getattr(yaml, "CBaseLoader", yaml.BaseLoader)(self._data)
        except yaml.YAMLError as e:
            raise self._error(e) from None

    def close(self) -> None:
        """Frees the parser."""
        self._parser.dispose()

    def begins_document(self) -> None:
        """Parses up to the next document or the end, to find errors."""
        try:
            self._parser.peek_event()
        except self._yaml.YAMLError as e:
            raise self._error(e) from None

    def documents(self) -> Iterator[Any]:
        """Makes one document after the other."""
        yaml = self._yaml
        try:
            while self._parser.check_event():
                event = self._parser.get_event()
                if type(event) is yaml.DocumentStartEvent:
                    yield self._document()
        except yaml.YAMLError as e:
            raise self._error(e) from None

    def _document(self) -> Any:  # noqa: PLR0915 scalars are handled in place: a call for each costs time
        yaml = self._yaml
        scalar, alias, mapping, sequence = (
            yaml.ScalarEvent,
            yaml.AliasEvent,
            yaml.MappingStartEvent,
            yaml.SequenceStartEvent,
        )
        mapping_end, sequence_end = yaml.MappingEndEvent, yaml.SequenceEndEvent
        get, plain, stack = self._parser.get_event, yamlscalars.plain, self._open
        anchors: dict[str, _Value] = {}
        top: _Open | None = None
        root: Any = None
        value: Any
        while True:
            event = get()
            kind = type(event)
            depth = 0
            if kind is scalar:
                self._values += 1
                value = event.value
                if event.tag is not None:
                    value = self._tagged(event)
                elif event.implicit[0]:
                    if value == "<<" and top is not None and top.key is _NO_KEY and type(top.value) is dict:
                        top.key = _MERGE
                        continue
                    try:
                        value = plain(value)
                    except ValueError as e:
                        raise self._fault(event, str(e)) from None
                if event.anchor is not None:
                    anchors[event.anchor] = _Value(value, 1)
            elif kind is mapping or kind is sequence:
                top = self._begin(event, {} if kind is mapping else [], anchors)
                continue
            elif kind is mapping_end or kind is sequence_end:
                value, depth = self._end()
                top = stack[-1] if stack else None
            elif kind is alias:
                value, depth = self._alias(event, anchors.get(event.anchor))
            else:  # the end of the document
                return root

            if top is None:
                root = value
                continue
            if depth >= top.depth:
                top.depth = depth + 1
            if type(top.value) is list:
                top.value.append(value)
            elif top.key is _NO_KEY:
                top.key = value if type(value) is str else self._key(event, value)
                if top.key in top.value:
                    self._again(top, event)
            elif top.key is _MERGE:
                self._merge(top, event, value)
                top.key = _NO_KEY
            else:
                top.value[top.key] = value
                top.key = _NO_KEY

    def _begin(self, event: Any, made: Any, anchors: dict[str, _Value]) -> _Open:
        """A list or mapping starts."""
        self._values += 1
        anchor = None
        if event.anchor is not None:
            anchors[event.anchor] = anchor = _Value(made)
        if len(self._open) >= DEEPEST:
            raise self._fault(event, TOO_DEEP, "")
        outer = self._open[-1] if self._open else None
        if outer is not None and outer.key is _NO_KEY and type(outer.value) is dict:
            self._key(event, made)
        self._open.append(_Open(made, self._values, anchor))
        return self._open[-1]

    def _end(self) -> tuple[Any, int]:
        """The innermost list or mapping is complete; returns it and its depth."""
        done = self._open.pop()
        if done.anchor is not None:
            done.anchor.size = self._values - done.before + 1
            done.anchor.depth = done.depth
        return done.value, done.depth

    def _tagged(self, event: Any) -> Any:
        try:
            return yamlscalars.tagged(event.tag, event.value)
        except ValueError as e:
            raise self._fault(event, str(e)) from None

    def _key(self, event: Any, value: Any) -> str:
        try:
            return yamlscalars.key(value)
        except ValueError as e:
            raise self._fault(event, str(e)) from None

    def _alias(self, event: Any, found: _Value | None) -> tuple[Any, int]:
        """The value an alias repeats, and its depth."""
        if found is None:
            raise self._fault(event, f"unknown anchor {event.anchor[:80]!r}")
        if not found.size:
            raise self._fault(event, f"anchor {event.anchor[:80]!r} contains itself")
        own = self._values - self._aliased
        self._values += found.size
        self._aliased += found.size
        if self._aliased > max(MOST_REPEATED, own * REPEATED_RATIO):
            raise self._fault(event, f"aliases repeat more than {MOST_REPEATED} values")
        if len(self._open) + found.depth > DEEPEST:
            raise self._fault(event, TOO_DEEP, "")
        return found.value, found.depth

    def _merge(self, top: _Open, event: Any, value: Any) -> None:
        """Puts mappings into another; of several, the first one counts."""
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, dict) for part in parts):
            raise self._fault(event, "<< must have a mapping or a list of mappings")
        if top.merged is None:
            top.merged = set()
        for part in reversed(parts):
            top.merged.update(key for key in part if key not in top.value)
            top.value.update(part)

    def _again(self, top: _Open, event: Any) -> None:
        """A key is there already: by itself, or because it was merged."""
        if top.merged is not None and top.key in top.merged:
            top.merged.discard(top.key)
        else:
            self._repeated(self._path(), event.start_mark.line + 1)

    def _path(self) -> str:
        """The path of the next value."""
        parts: list[str | int] = []
        for part in self._open:
            if isinstance(part.value, list):
                parts.append(len(part.value))
            elif isinstance(part.key, str):
                parts.append(part.key)
        return joined(parts)

    def _fault(self, event: Any, words: str, path: str | None = None) -> TextError:
        path = self._path() if path is None else path
        mark = event.start_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: "
        return TextError(f"{where}{path}: {words}" if path else f"{where}{words}")

    def _error(self, error: Any) -> TextError:
        """What the parser found wrong, with line and column."""
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        if mark is not None:
            parts = (self._path(), getattr(error, "context", None), getattr(error, "problem", None))
            words = ": ".join(part for part in parts if part)
            return TextError(f"line {mark.line + 1}, column {mark.column + 1}: {words}")
        position = getattr(error, "position", None)
        if isinstance(position, int):
            return TextError(place(self._data, position, getattr(error, "reason", "")))
        return TextError(" ".join(str(error).split()) or type(error).__name__)
