"""The text of a configuration file becomes a KubeProxyConfiguration.

As in the reference, the file is decoded strictly first, which finds unknown fields and keys that are given
twice. Because old files must continue to work, these do not end the program, but each is reported; of equal
keys the last one is used. A value of the wrong type is an error. A null is the same as an absent field.

The file is read by `api.reader`; only the first document of YAML is used. An integer may be written `1e5` or
`1.0`.
"""

from functools import cache
from typing import Any, Final, get_args

import msgspec
from msgspec.structs import fields

from kubeproxy.api import reader
from kubeproxy.api.limits import TextError
from kubeproxy.config import ConfigError
from kubeproxy.config.durations import Duration, Quantity, parse_duration, parse_quantity
from kubeproxy.config.types import API_VERSION, KIND, KubeProxyConfiguration, NanosecondDuration
from kubeproxy.fields import Schema, unknown

UNKNOWN_FIELD: Final = "unknown field"
"""The beginning of a warning about an unknown field."""


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
    doubts: list[str] = []

    def repeated(path: str, line: int) -> None:
        again = f", again in line {line}" if line else ""
        doubts.append(f'key "{path}" is given twice{again}; the last counts')

    try:
        raw = reader.read(data, repeated)
    except TextError as e:
        raise ConfigError(f"{name}: {e}") from None
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
    """Converts msgspec's "Expected `int`, got `str` - at `$.a.b`" to "a.b: expected int, got str"."""
    what, _, where = str(error).partition(" - at `")
    what = what.replace("`", "").replace("Expected", "expected").replace("Object missing", "missing")
    path = where.rstrip("`").removeprefix("$").removeprefix(".")
    return f"{path}: {what}" if path else what
