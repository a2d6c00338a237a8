"""The text of a configuration file becomes a KubeProxyConfiguration.

As in the reference, the file is judged strictly first: fields nobody knows and keys given twice are found. Because old
files must go on working, they do not end the program, but every one of them is named; the last of equal keys counts.
What has the wrong type is an error. A null is the same as not being there.

YAML is read by `api.yamltext`; only the first document of a file counts. A whole number may be written `1e5` or `1.0`.
"""

from functools import cache
from typing import Any, Final, get_args

import msgspec
from msgspec.structs import fields

from kubeproxy.api import yamltext
from kubeproxy.config import ConfigError
from kubeproxy.config.durations import Duration, Quantity, parse_duration, parse_quantity
from kubeproxy.config.types import API_VERSION, KIND, KubeProxyConfiguration, NanosecondDuration
from kubeproxy.fields import Schema, unknown

UNKNOWN_FIELD: Final = "unknown field"
"""How a doubt about a field that nobody knows begins."""


def decode(data: bytes, name: str) -> tuple[KubeProxyConfiguration, tuple[str, ...]]:
    """Reads a configuration from YAML or JSON, without the defaults that depend on other fields.

    Args:
        data: the file's bytes.
        name: the file's name, for messages.

    Returns:
        The configuration and what a strict reader would have refused.

    Raises:
        ConfigError: the text is broken, of another kind, or a field has the wrong type.
    """
    try:
        return _decode(data.decode(), name)
    except UnicodeDecodeError as e:
        raise ConfigError(f"{name}: not UTF-8: {e.reason} at byte {e.start}") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply") from None


def _decode(text: str, name: str) -> tuple[KubeProxyConfiguration, tuple[str, ...]]:
    raw, doubts = (_json(text, name) if text.lstrip().startswith("{") else None) or _yaml(text, name)
    if not isinstance(raw, dict):
        raise ConfigError(f"{name}: not a {KIND}: the file holds no mapping")
    kind, version = raw.pop("kind", None), raw.pop("apiVersion", None)
    for key, value in (("kind", kind), ("apiVersion", version)):
        if not value:
            raise ConfigError(f"{name}: {key}: Required value: expected {KIND} of {API_VERSION}")
    if (kind, version) != (KIND, API_VERSION):
        raise ConfigError(
            f'{name}: no kind "{kind}" in version "{version}": expected {KIND} of {API_VERSION}'
        )
    doubts += [f'{UNKNOWN_FIELD} "{field.path}"{field.hint}' for field in unknown(raw, schema())]
    try:
        config = msgspec.convert(_without_nulls(raw), KubeProxyConfiguration, dec_hook=_convert)
    except msgspec.ValidationError as e:
        raise ConfigError(f"{name}: {_reason(e)}") from None
    return config, tuple(doubts)


def _json(text: str, name: str) -> tuple[Any, list[str]] | None:
    """Reads JSON; None: it is none, and may be YAML that starts with a brace."""
    import json

    doubts = []

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                doubts.append(f'key "{key}" is given twice; the last counts')
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=mapping), doubts
    except json.JSONDecodeError as e:
        if e.msg == "Extra data":
            raise ConfigError(
                f"{name}: line {e.lineno}, column {e.colno}: something follows the JSON object"
            ) from None
        return None


def _yaml(text: str, name: str) -> tuple[Any, list[str]]:
    """Reads the first document of YAML."""
    doubts: list[str] = []
    try:
        return yamltext.first(text, lambda node: _find_repeated(node, "", doubts, set())), doubts
    except yamltext.YAMLTextError as e:
        raise ConfigError(f"{name}: {e}") from None


def _find_repeated(node: Any, path: str, doubts: list[str], seen: set[int]) -> None:
    """Finds keys given twice."""
    if node.id == "scalar" or id(node) in seen:
        return
    seen.add(id(node))
    if node.id == "sequence":
        for i, item in enumerate(node.value):
            _find_repeated(item, f"{path}[{i}]", doubts, seen)
        return
    keys: set[str] = set()
    for key, value in node.value:
        text = yamltext.as_text(key)
        here = f"{path}.{text}" if path else text
        if text in keys:
            doubts.append(f'key "{here}" is given twice; the last counts')
        keys.add(text)
        _find_repeated(value, here, doubts, seen)


@cache
def schema() -> Schema:
    """The fields of a configuration file, without `kind` and `apiVersion`."""
    return _schema(KubeProxyConfiguration) or {}


def _schema(type_: Any) -> Schema | None:
    """The fields of a Struct, or of the Structs in a tuple; None for any other type."""
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
        return {field.encode_name: _schema(field.type) for field in fields(type_)}
    return next((found for inner in get_args(type_) if (found := _schema(inner)) is not None), None)


def _without_nulls(raw: Any) -> Any:
    if isinstance(raw, dict):
        return {str(key): _without_nulls(value) for key, value in raw.items() if value is not None}
    if isinstance(raw, list):
        return [_without_nulls(item) for item in raw]
    return int(raw) if isinstance(raw, float) and raw.is_integer() else raw


def _convert(type_: type, value: Any) -> Any:
    """Makes the values that msgspec does not know."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if type_ is Quantity and (whole or isinstance(value, str)):
        return parse_quantity(str(value))
    if type_ is NanosecondDuration and (whole or isinstance(value, str)):
        return NanosecondDuration(value / 1e9 if isinstance(value, int) else parse_duration(value))
    if type_ is Duration and isinstance(value, str):
        return parse_duration(value)
    what = "size like 64Ki" if type_ is Quantity else "duration like 30s"
    raise ValueError(f"expected a {what} in quotes, got {value!r}")


def _reason(error: Exception) -> str:
    """Turns msgspec's "Expected `int`, got `str` - at `$.conntrack.min`" to "conntrack.min: expected int, got str"."""
    what, _, where = str(error).partition(" - at `")
    what = what.replace("`", "").replace("Expected", "expected").replace("Object missing", "missing")
    path = where.rstrip("`").removeprefix("$").removeprefix(".")
    return f"{path}: {what}" if path else what
