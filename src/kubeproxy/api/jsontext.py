"""JSON of files and responses, which may be broken or nested without a limit.

Typed values are decoded by msgspec, which stops at Python's limit of recursion: `BROKEN` is all that it
raises. `tree` makes a value of any shape, for files; its depth is checked, so that code that walks through it
may use recursion.
"""

import re
from typing import Any, Final

import msgspec

from kubeproxy.api.limits import DEEPEST, TOO_DEEP, TextError, joined, place
from kubeproxy.api.yamltext import Repeated, ignore

BROKEN: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec's decoders raise for a text that cannot be used."""

_BYTE: Final = re.compile(r"\(byte (\d+)\)")


class ExtraDataError(TextError):
    """The text is JSON, and something follows it."""


class NotJSONError(TextError):
    """The text is not JSON, and may be YAML that begins with a brace."""


def reason(error: Exception) -> str:
    """What is wrong, of one of `BROKEN`."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason} at byte {error.start}"
    return str(error)


def placed(data: bytes, error: Exception) -> str:
    """What is wrong with a text, of one of `BROKEN`, with line and column if msgspec has the position."""
    words = reason(error)
    found = _BYTE.search(words)
    return place(data, int(found[1]), words[: found.start()].strip()) if found else words


def tree(data: bytes, repeated: Repeated = ignore) -> Any:
    """Reads a text of JSON.

    Args:
        data: the text, in UTF-8.
        repeated: is given each key that is twice in an object; the last one counts.

    Raises:
        TextError: it cannot be read: `NotJSONError`, `ExtraDataError` or nested too deeply.
    """
    import json

    try:
        msgspec.json.decode(data)  # the json module takes lone surrogates and infinite numbers
    except RecursionError:
        raise TextError(TOO_DEEP) from None
    except BROKEN as e:
        if "trailing characters" in str(e):
            position = _BYTE.search(str(e))
            words = "something follows the JSON object"
            raise ExtraDataError(place(data, int(position[1]), words) if position else words) from None
        raise NotJSONError(placed(data, e)) from None

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) < len(found):
            seen: set[str] = set()
            for key, _ in found:
                if key in seen:
                    repeated(joined([key]), 0)
                seen.add(key)
        return made

    try:
        value = json.loads(data, object_pairs_hook=pairs)
    except RecursionError:
        raise TextError(TOO_DEEP) from None
    except ValueError as e:  # an integer of more than 4300 digits
        raise NotJSONError(" ".join(str(e).split())) from None
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Checks how deep a value is.

    Raises:
        TextError: it is nested more than `DEEPEST` levels deep.
    """
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise TextError(TOO_DEEP)
