"""Unknown fields in a tree of decoded YAML or JSON, and the field that was probably meant.

Kubernetes' own decoders ignore an unknown field, so a misspelt name silently has no effect. `unknown` finds
such fields by a schema: the names of an object's fields, each with the schema of its value. A list has the
schema of its items.
"""

from collections.abc import Iterator, Mapping
from types import GenericAlias
from typing import Any, Final, Union

import msgspec
from msgspec import Struct

Schema = Mapping[str, Union["Schema", None]]
"""The fields of an object. None as the value of a field: anything may be in it."""

_LONGEST: Final = 80
"""How much of a name is shown, in characters."""

_NEARLY: Final = 0.8
_SIMILAR: Final = 0.65
"""The least similarity, from 0 to 1, of two names of which one may be a misspelling of the other.

`port` and `ports` are that similar, `syncPeriod` and `configSyncPeriod` are not.
"""

_MOST_PLACES: Final = 2
"""A name that exists in more places than that is not suggested: it does not show where the field belongs."""


class Unknown(Struct, frozen=True, gc=False):
    """A field that the schema does not have.

    Attributes:
        path: where it is, e.g. "spec.ports[0].targetport".
        meant: the paths of the fields that were probably meant; none if no name is similar.
    """

    path: str
    meant: tuple[str, ...] = ()

    @property
    def hint(self) -> str:
        """What to add to a message about it."""
        return f"; did you mean {' or '.join(map(_quoted, self.meant))}?" if self.meant else ""


def unknown(tree: Any, schema: Schema) -> Iterator[Unknown]:
    """Yields the fields of a tree that a schema does not have, in the order of the tree.

    A node that YAML aliases put in several places is visited once: expanded, a few lines could fill the
    memory.
    """
    yield from _walk(tree, schema, schema, "", set())


def strict_decoder(schema: Schema) -> msgspec.json.Decoder[Any]:
    """A JSON decoder that raises `msgspec.ValidationError` for an unknown field, much faster than `unknown`.

    The decoded value is not useful, and it may also raise for a value of another type than expected.
    """
    return msgspec.json.Decoder(_strict(schema))


def _strict(schema: Schema) -> Any:
    """A Struct with these fields, which skips what is in them."""
    fields: list[tuple[str, Any, Any]] = []
    for name, inner in schema.items():
        type_: Any = msgspec.Raw
        if inner is not None:
            one = _strict(inner)
            type_ = one | GenericAlias(list, (one,)) | None
        fields.append((name, type_, None))
    return msgspec.defstruct("Strict", fields, forbid_unknown_fields=True, gc=False)


def _walk(
    tree: Any, schema: Schema | None, root: Schema, path: str, seen: set[tuple[int, int]]
) -> Iterator[Unknown]:
    if schema is None or not isinstance(tree, dict | list) or (id(tree), id(schema)) in seen:
        return
    seen.add((id(tree), id(schema)))
    if isinstance(tree, list):
        for i, item in enumerate(tree):
            if isinstance(item, dict):  # a list in a list is of the wrong type, and might be endlessly deep
                yield from _walk(item, schema, root, f"{path}[{i}]", seen)
        return
    for key, value in tree.items():
        here = f"{path}.{key!s:.{_LONGEST}}" if path else f"{key!s:.{_LONGEST}}"
        if key in schema:
            yield from _walk(value, schema[key], root, here, seen)
        else:
            yield Unknown(here, _meant(str(key), schema, root, path))


def _meant(key: str, schema: Schema, root: Schema, path: str) -> tuple[str, ...]:
    """A field of the same object with a similar name, else the places of this name, else a similar name."""
    if nearly := _similar(key, schema, path, _NEARLY):
        return nearly
    if places := tuple(_places(key.lower(), root, "")):
        return places if len(places) <= _MOST_PLACES else ()
    return _similar(key, schema, path, _SIMILAR)


def _similar(key: str, schema: Schema, path: str, cutoff: float) -> tuple[str, ...]:
    from difflib import get_close_matches

    by_lower = {name.lower(): name for name in schema}
    close = get_close_matches(key[:_LONGEST].lower(), by_lower, 1, cutoff)
    return tuple(f"{path}.{by_lower[name]}" if path else by_lower[name] for name in close)


def _places(lower: str, schema: Schema, path: str) -> Iterator[str]:
    for name, inner in schema.items():
        here = f"{path}.{name}" if path else name
        if name.lower() == lower:
            yield here
        if inner is not None:
            yield from _places(lower, inner, here)


def _quoted(path: str) -> str:
    return f'"{path}"'
