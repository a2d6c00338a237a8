"""The objects in a manifest: documents of YAML or JSON, and the items of their Lists.

YAML is read as Kubernetes reads it: dates are text. JSON is not turned into Python
objects but cut into pieces, each decoded straight to its Struct: a List of 10,000 objects costs little more than
reading the file.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from kubeproxy.api import types

Decode = Callable[[], types.Object]
"""Makes the object; raises `types.UndecodableError`."""


_VERSIONS = {
    "Service": ("v1",),
    "Endpoints": ("v1",),
    "Node": ("v1",),
    "EndpointSlice": ("discovery.k8s.io/v1",),
    "ServiceCIDR": ("networking.k8s.io/v1", "networking.k8s.io/v1beta1"),
}
"""The API versions of our kinds: other groups have kinds of these names, too."""


class _Piece(msgspec.Struct, gc=False, rename="camel"):
    kind: str = ""
    api_version: str = ""
    items: tuple[msgspec.Raw, ...] | None = None


def documents(path: Path) -> Iterator[tuple[str, Decode]]:
    """The objects of a file that are of a kind we know: their kind, and how to get them.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not YAML or JSON, or a document is no Kubernetes object.
    """
    data = path.read_bytes()
    if data.lstrip()[:1] == b"{":
        try:
            yield from _json(data, "")
        except msgspec.DecodeError:
            if path.suffix == ".json":
                raise
        else:
            return
    for number, document in enumerate(_yaml(data), 1):
        if document is not None:
            yield from _tree(document, f"document {number}", "")


def _json(data: bytes | msgspec.Raw, implied: str) -> Iterator[tuple[str, Decode]]:
    piece = _decode_piece(data)
    kind = piece.kind or implied
    if piece.items is not None and kind.endswith("List"):
        for item in piece.items:
            yield from _json(item, kind.removesuffix("List"))
    elif not kind:
        raise ValueError("an object has no kind")
    elif _is_ours(kind, piece.api_version):
        yield kind, lambda: types.decode(kind, data)


_decode_piece = msgspec.json.Decoder(_Piece).decode


def _tree(document: Any, where: str, implied: str) -> Iterator[tuple[str, Decode]]:
    if not isinstance(document, dict):
        raise ValueError(f"{where} is no Kubernetes object but {type(document).__name__}")  # noqa: TRY004 of a file
    kind = document.get("kind", implied)
    if not isinstance(kind, str) or not kind:
        raise ValueError(f"{where} has no kind")
    items = document.get("items")
    if isinstance(items, list) and kind.endswith("List"):
        for i, item in enumerate(items):
            yield from _tree(item, f"{where}: items[{i}]", kind.removesuffix("List"))
    elif _is_ours(kind, document.get("apiVersion", "")):
        yield kind, lambda: types.convert(kind, document)


def _is_ours(kind: str, version: Any) -> bool:
    return kind in _VERSIONS and (not version or version in _VERSIONS[kind])


def _yaml(data: bytes) -> Iterator[Any]:
    import yaml

    base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    resolvers = {
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
        for first, known in base.yaml_implicit_resolvers.items()
    }
    loader = type("Loader", (base,), {"yaml_implicit_resolvers": resolvers})
    try:
        yield from yaml.load_all(data, loader)
    except yaml.YAMLError as e:
        raise ValueError(" ".join(str(e).split())) from None
