"""What the scalars of YAML mean to Kubernetes: text, number, boolean or null.

Kubernetes reads YAML 1.1 by the rules of Go's YAML library and turns it into JSON, so those rules apply here,
not PyYAML's. `on`, `y` and `no` are booleans. `0o17`, `017` and `1e3` are numbers, `08` too. Dates, and
numbers to the base of 60 such as `1:20`, are text. An unknown tag is ignored. JSON has no infinite number, so
that is an error.

Source: https://yaml.org/type/, sigs.k8s.io/yaml (resolution of scalars, conversion of keys).
"""

import binascii
import re
import struct
from typing import Final

Scalar = str | int | float | bool | None

_TAG: Final = "tag:yaml.org,2002:"
_NOT_TEXT: Final = frozenset("0123456789+-.~yYnNtTfFoO")
"""The first characters of every scalar that may be something other than text."""

_WORDS: Final[dict[str, bool | None]] = {
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}
_INFINITE: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_INTEGER: Final = re.compile(
    r"([-+]?)(?:0[xX]([0-9a-fA-F]+)|0[bB]([01]+)|0[oO]?([0-7]+)|(0|[1-9][0-9]*))", re.ASCII
)
_BASES: Final = (16, 2, 8, 10)
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", re.ASCII)
_DATE: Final = re.compile(
    r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}"
    r"(?:[tT ][0-9]{1,2}:[0-9]{1,2}:[0-9]{1,2}(?:\.[0-9]+)?(?:Z|[-+][0-9]{2}:[0-9]{2})?)?",
    re.ASCII,
)
_MOST_DIGITS: Final = 4000
"""Python refuses to convert more digits than 4300."""

_KINDS: Final = {"bool": bool, "int": int, "float": float, "null": type(None)}


def plain(text: str) -> Scalar:
    """Returns what text without quotes means.

    Raises:
        ValueError: it is a number that JSON cannot express.
    """
    if text[:1] not in _NOT_TEXT:  # "" is in no set of letters
        return text or None
    if text in _WORDS:
        return _WORDS[text]
    return _number(text) if text[0] in "0123456789+-." else text


def tagged(tag: str, text: str) -> Scalar:
    """Returns what text with a tag means, with or without quotes.

    Raises:
        ValueError: the text is not of the type that the tag names.
    """
    kind = tag.removeprefix(_TAG)
    if kind == "binary":
        try:
            data = binascii.a2b_base64(text.replace("\n", "").replace("\r", ""), strict_mode=True)
        except binascii.Error:
            raise ValueError("!!binary value is not base64") from None
        return data.decode(errors="replace")
    if kind == "timestamp" and _DATE.fullmatch(text):
        return text
    if kind not in _KINDS:
        if kind == "timestamp":
            raise ValueError(f"{text[:80]!r} is not a !!{kind}")
        return text
    value = plain(text)
    if type(value) is not _KINDS[kind]:
        if kind == "float" and type(value) is int:
            return float(value)
        raise ValueError(f"{text[:80]!r} is not a !!{kind}")
    return value


def key(value: object) -> str:
    """Returns the text that a value becomes as the key of a mapping.

    Raises:
        ValueError: it cannot be a key; the message names its type.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return str(value)
    if isinstance(value, float):
        return _short(value)
    if value is None:
        raise ValueError("a key must be text, not null")
    if isinstance(value, dict):
        raise ValueError("a key must be text, not a mapping (was a template not rendered?)")  # noqa: TRY004 of a file
    raise ValueError(
        f"a key must be text, not {'a list' if isinstance(value, list) else 'so large a number'}"
    )


def _number(text: str) -> str | int | float:
    if _INFINITE.fullmatch(text):
        raise ValueError(f"{text} is not a number that JSON can express")
    digits = text.replace("_", "") if text[0] != "." else text
    found = _INTEGER.fullmatch(digits)
    value = _integer(found) if found else None
    if value is not None and -(2**63) <= value < 2**64:
        return value
    if _FLOAT.fullmatch(digits):
        number = float(digits)
        if abs(number) != float("inf"):
            return number
    return text if value is None else value


def _integer(found: re.Match[str]) -> int:
    digits = next(group for group in found.groups()[1:] if group is not None)
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits is too large")
    base = next(base for base, group in zip(_BASES, found.groups()[1:], strict=True) if group is not None)
    return int(found[1] + digits, base)


def _short(value: float) -> str:
    """The shortest text of a single-precision number, like Go's `g`: an exponent from 1e+06, below 1e-04."""
    try:
        (single,) = struct.unpack("<f", struct.pack("<f", value))
    except OverflowError:
        return "-.inf" if value < 0 else ".inf"
    text = next(
        text
        for digits in range(9)
        if struct.unpack("<f", struct.pack("<f", float(text := f"{single:.{digits}e}")))[0] == single
    )
    if -4 <= int(text.partition("e")[2]) < 6:
        return f"{float(text):.15f}".rstrip("0").rstrip(".")
    return text
