"""YAML as Kubernetes reads it: one reader for the configuration, kubeconfig files and manifests.

Kubernetes turns YAML into JSON, so the keys of a mapping are text: a number or a boolean becomes text, and null, a list
or a mapping as key is an error. `{{ .NodeName }}`, a template nobody rendered, is a mapping with a mapping as key.
Dates and numbers to the base of 60 exist in YAML 1.1 only and are text here (an IPv6 address of decimal digits looks
like one), and `1e5` is a number, as it is to Go's YAML library. Nesting is limited: the parser, written in C, knows no
limit and would crash the program.

Every error is one line with line and column. Source: https://yaml.org/spec/1.1/, sigs.k8s.io/yaml.
"""

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final

DEEPEST: Final = 200
"""How many levels deep YAML may be nested."""

_TAG: Final = "tag:yaml.org,2002:"
_PATTERNS: Final = {
    "int": re.compile(r"[-+]?(?:0b[01_]+|0[0-7_]*|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
    "float": re.compile(
        r"[-+]?(?:\.[0-9][0-9_]*|[0-9][0-9_]*\.[0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?$"
        r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
    ),
    "timestamp": None,
}
"""What plain text is taken for; None: for nothing but text."""

_KEYS: Final = frozenset({"str", "int", "float", "bool", "timestamp", "merge", "value"})


class YAMLTextError(ValueError):
    """The text is no YAML that can be used; the message names the line and the column."""


def first(data: bytes | str, inspect: Callable[[Any], None] = lambda _: None) -> Any:
    """Reads the first document of a text; None if there is none.

    Args:
        data: the text.
        inspect: is given the document's node before it is turned into values.

    Raises:
        YAMLTextError: the text is no YAML, or something other than a document follows the first one.
    """

    def read(loader: Any) -> Iterator[Any]:
        if loader.check_node():
            node = loader.get_node()
            inspect(node)
            yield loader.construct_document(node)
            loader.check_node()

    found = list(_guarded(data, read))
    return found[0] if found else None


def documents(data: bytes | str, repeated: Callable[[str], None] | None = None) -> Iterator[Any]:
    """Reads all documents of a text, one after the other.

    Args:
        data: the text.
        repeated: is told each key that is given twice in a mapping, with its line; the last one counts.

    Raises:
        YAMLTextError: the text is no YAML; the documents before the mistake were given.
    """

    def read(loader: Any) -> Iterator[Any]:
        loader.repeated = repeated
        while loader.check_data():
            yield loader.get_data()

    return _guarded(data, read)


def as_text(key: Any) -> str:
    """Turns the node of a mapping's key into text, and returns that.

    Raises:
        yaml.MarkedYAMLError: it is no text and cannot become any.
    """
    kind = key.tag.removeprefix(_TAG)
    if key.id != "scalar" or kind not in _KEYS:
        import yaml

        what = {"mapping": "a mapping", "sequence": "a list"}.get(key.id, kind)
        hint = " (was a template not rendered?)" if key.id == "mapping" else ""
        raise yaml.MarkedYAMLError(
            problem=f"a key must be text, not {what}{hint}", problem_mark=key.start_mark
        )
    if kind == "bool":
        key.value = "true" if key.value.lower() in {"yes", "true", "on"} else "false"
    if kind in {"int", "float", "bool", "timestamp"}:
        key.tag = f"{_TAG}str"
    return str(key.value)


def _guarded(data: bytes | str, read: Callable[[Any], Iterator[Any]]) -> Iterator[Any]:
    """Runs a loader, and turns what it raises into one error."""
    loader = None
    try:
        loader = _loader()(data)
        yield from read(loader)
    except Exception as e:  # a wrong value for a tag, as in `!!int x`, fails in many ways
        raise YAMLTextError(_reason(data, e)) from None
    finally:
        if loader is not None:
            loader.dispose()


def place(data: bytes, position: int, words: str) -> str:
    """What is wrong at a byte of a text, with its line and column."""
    before = data[:position]
    return f"line {before.count(10) + 1}, column {position - before.rfind(10)}: {words}"


def _reason(data: bytes | str, error: Exception) -> str:
    """What is wrong, with line and column where the parser gives them."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        parts = (getattr(error, "context", None), getattr(error, "problem", None))
        words = ": ".join(part for part in parts if part)
        return f"line {mark.line + 1}, column {mark.column + 1}: {words}"
    position = getattr(error, "position", None)
    if isinstance(position, int):
        return place(data.encode() if isinstance(data, str) else data, position, getattr(error, "reason", ""))
    return " ".join(str(error).split()) or type(error).__name__


def _find_repeated(node: Any, repeated: Callable[[str], None]) -> None:
    """Tells the keys that a mapping has twice by itself, without what is merged into it."""
    keys: set[str] = set()
    for key, _ in node.value:
        if key.id == "scalar" and key.tag != f"{_TAG}merge":
            if key.value in keys:
                repeated(f"{key.value:.80} in line {key.start_mark.line + 1}")
            keys.add(key.value)


@cache
def _loader() -> Any:
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    resolvers = {
        initial: [
            (tag, pattern)
            for tag, given in known
            if (pattern := _PATTERNS.get(tag.removeprefix(_TAG), given)) is not None
        ]
        for initial, known in base.yaml_implicit_resolvers.items()
    }

    class Loader(base):  # type: ignore[misc]
        """Reads keys as text and limits the depth."""

        yaml_implicit_resolvers = resolvers
        depth = 0
        repeated: Callable[[str], None] | None = None

        def descend_resolver(self, *_: Any) -> None:
            self.depth += 1
            if self.depth > DEEPEST:
                raise yaml.YAMLError(f"nested more than {DEEPEST} levels deep")

        def ascend_resolver(self) -> None:
            self.depth -= 1

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:  # noqa: FBT001, FBT002 - PyYAML's
            if isinstance(node, yaml.MappingNode):
                if self.repeated is not None:
                    _find_repeated(node, self.repeated)
                self.flatten_mapping(node)
                for key, _ in node.value:
                    as_text(key)
            return super().construct_mapping(node, deep)

    return Loader
