"""The objects in a manifest: documents of YAML or JSON, and the items of their Lists.

YAML is read by `api.yamltext`, within the limits of `api.limits`. JSON is not converted to Python objects but
cut into pieces, each decoded directly to its Struct: a List of 10,000 objects costs little more than reading
the file.
"""

import logging
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec

from kubeproxy.api import jsontext, types, yamltext
from kubeproxy.api.limits import LARGEST_MANIFEST, as_utf8, read_file
from kubeproxy.api.schema import SCHEMAS
from kubeproxy.fields import Unknown, strict_decoder, unknown

log = logging.getLogger(__name__)

MOST_NAMED: Final = 10
"""How many mistakes of one sort are named for a file."""

_MOST_MISTAKES = 100
_LONGEST_KIND = 63
_NEARLY = 0.85

_VERSIONS = {
    "Service": ("v1",),
    "Endpoints": ("v1",),
    "Node": ("v1",),
    "EndpointSlice": ("discovery.k8s.io/v1",),
    "ServiceCIDR": ("networking.k8s.io/v1", "networking.k8s.io/v1beta1"),
}
"""The API versions of the kinds that are read: other groups have kinds with the same names."""


_GROUPS = {version.rpartition("/")[0] for versions in _VERSIONS.values() for version in versions}


class Decode(msgspec.Struct, frozen=True, gc=False):
    """An object of a known kind that is not decoded yet: a piece of JSON, or a tree of YAML."""

    kind: str
    data: bytes | msgspec.Raw | dict[str, Any]

    def __call__(self) -> types.Object:
        """Makes the object.

        Raises:
            UndecodableError: it does not have the shape of its kind.
        """
        if isinstance(self.data, dict):
            return types.convert(self.kind, self.data)
        return types.decode(self.kind, self.data)

    def unknown(self) -> Iterator[Unknown]:
        """The fields that its kind does not have, none if they cannot be read."""
        tree: Any = self.data
        if not isinstance(self.data, dict):
            try:
                _strict(self.kind).decode(self.data)
            except jsontext.BROKEN:
                try:
                    tree = msgspec.json.decode(
                        self.data
                    )  # of any depth: `unknown` goes no deeper than the schema
                except jsontext.BROKEN:
                    return
            else:
                return
        yield from unknown(tree, SCHEMAS[self.kind])


@cache
def _strict(kind: str) -> msgspec.json.Decoder[Any]:
    return strict_decoder(SCHEMAS[kind])


class _Piece(msgspec.Struct, gc=False, rename="camel"):
    kind: str = ""
    api_version: str = ""
    items: tuple[msgspec.Raw, ...] | None = None

    def of_items(self) -> "_Piece":
        """The kind and version of the items of this list that do not have their own."""
        kind = self.kind.removesuffix("List")
        return _Piece(kind, self.api_version if kind else "")


def documents(path: Path) -> Iterator[tuple[str, Decode]]:
    """The objects of a file that are of a known kind: their kind, and a function that decodes them.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not YAML or JSON, or a document is no Kubernetes object.
    """
    twice: list[str] = []
    passed: dict[str, None] = {}
    yield from _documents(path, lambda key, line: twice.append(f"{key} in line {line}"), passed)
    if twice:
        log.warning(
            "%(file)s: the last counts of keys that are given twice: %(fields)s",
            {"file": path, "fields": types.listed(twice, MOST_NAMED)},
        )
    if passed:
        log.warning(
            "%(file)s: ignored: %(fields)s", {"file": path, "fields": types.listed(passed, MOST_NAMED)}
        )


def _documents(
    path: Path, repeated: yamltext.Repeated, passed: dict[str, None]
) -> Iterator[tuple[str, Decode]]:
    data = as_utf8(read_file(str(path), LARGEST_MANIFEST))
    if data.lstrip()[:1] == b"{":
        try:
            yield from _json(data, _Piece(), passed)
        except jsontext.BROKEN as e:
            if path.suffix == ".json" or isinstance(e, RecursionError):
                raise ValueError(jsontext.placed(data, e)) from None
        else:
            return
    for number, document in enumerate(yamltext.documents(data, repeated), 1):
        if document is not None:
            yield from _tree(document, f"document {number}", _Piece(), passed)


def _json(
    data: bytes | msgspec.Raw, implied: _Piece, passed: dict[str, None]
) -> Iterator[tuple[str, Decode]]:
    piece = _decode_piece(data)
    piece.kind = piece.kind or implied.kind
    piece.api_version = piece.api_version or implied.api_version
    if piece.items is not None and piece.kind.endswith("List"):
        for item in piece.items:
            yield from _json(item, piece.of_items(), passed)
    elif not piece.kind:
        raise ValueError("an object has no kind")
    elif _is_ours(piece, passed):
        yield piece.kind, Decode(piece.kind, data)


_decode_piece = msgspec.json.Decoder(_Piece).decode


def _tree(
    document: Any, where: str, implied: _Piece, passed: dict[str, None]
) -> Iterator[tuple[str, Decode]]:
    """The objects in a tree."""
    if not isinstance(document, dict):
        raise ValueError(f"{where} is no Kubernetes object but {type(document).__name__}")  # noqa: TRY004 of a file
    kind = document.get("kind") or implied.kind
    version = document.get("apiVersion") or implied.api_version
    if not kind or not isinstance(kind, str):
        raise ValueError(f"{where} has no kind")
    if not isinstance(version, str):
        raise ValueError(f"{where} has an apiVersion that is no text")  # noqa: TRY004 of a file
    piece = _Piece(kind, version)
    items = document.get("items")
    if isinstance(items, list) and kind.endswith("List"):
        for i, item in enumerate(items):
            yield from _tree(item, f"{where}: items[{i}]", piece.of_items(), passed)
    elif _is_ours(piece, passed):
        yield kind, Decode(kind, document)


def _is_ours(piece: _Piece, passed: dict[str, None]) -> bool:
    """Whether an object is of a known kind; adds to `passed` what was probably meant to be one."""
    versions = _VERSIONS.get(piece.kind, ())
    ours = piece.api_version in versions or (not piece.api_version and bool(versions))
    if not ours and (reason := _mistake(piece.kind, piece.api_version)) and len(passed) < _MOST_MISTAKES:
        passed[reason] = None
    return ours


@lru_cache(1000)
def _mistake(kind: str, version: str) -> str:
    """What is wrong with a kind or version that is similar to a known one; "" if another kind is meant."""
    if version.rpartition("/")[0] not in _GROUPS:
        return ""
    if kind in _VERSIONS:
        return f"{kind} of apiVersion {version:.80}, which must be {' or '.join(_VERSIONS[kind])}"
    if len(kind) > _LONGEST_KIND:
        return ""
    by_lower = {known.lower(): known for known in _VERSIONS}
    close = get_close_matches(kind.lower(), by_lower, 1, _NEARLY)
    return f"kind {kind}, did you mean {by_lower[close[0]]}?" if close else ""
