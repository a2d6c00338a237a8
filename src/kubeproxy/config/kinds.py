"""The types of flags: how the text of a value is read, and how a value is shown.

The accepted texts are Go's: booleans are 1, t, T, true, True, TRUE and their opposites, integers may be
hexadecimal or octal, and a number that does not fit its type is an error rather than something else.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec import Struct

from kubeproxy.config import KUBERNETES
from kubeproxy.config.durations import Duration, parse_duration, parse_quantity
from kubeproxy.config.netparse import parse_ip, split_host_port
from kubeproxy.config.types import VModule

_TRUE: Final = frozenset({"1", "t", "T", "true", "True", "TRUE"})
_INTEGER: Final = re.compile(r"[+-]?[0-9][0-9A-Za-z_]*")
_NUMBER: Final = re.compile(
    r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?i:inf(?:inity)?|nan)"
)
_FIELD: Final = re.compile(r'(?:"((?:[^"]|"")*)"|([^",\n]*))(,|\n|\Z)')
_VERSION: Final = re.compile(
    r"v((?:0|[1-9][0-9]*)\.(?:0|[1-9][0-9]*))\.(?:0|[1-9][0-9]*)"
    r"(?:-[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
)
_FALSE: Final = frozenset({"0", "f", "F", "false", "False", "FALSE"})


class FlagKind(Struct, gc=False, frozen=True):
    """One type of flag.

    Attributes:
        parse: turns text to a value or raises ValueError with the reason.
        label: the placeholder of the value in the help; empty for booleans.
        bare: the text meant when the flag stands alone; such a flag never takes the next argument.
        adds: whether a repeated flag adds to what it had.
    """

    parse: Callable[[str], Any]
    label: str = ""
    bare: str = ""
    adds: bool = False


def parse_bool(text: str) -> bool:
    """Reads a boolean as strconv.ParseBool does."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError("must be true or false")


def parse_int32(text: str) -> int:
    """Reads an integer of 32 bits as pflag does: decimal, 0x, 0o, 0b or with a leading 0 octal."""
    digits = text.lstrip("+-")
    octal = len(digits) > 1 and digits[0] == "0" and digits[1] in "0123456789_"
    if not _INTEGER.fullmatch(text):
        raise ValueError("must be an integer")
    try:
        number = int(text, 8 if octal else 0)
    except ValueError:
        raise ValueError("must be an integer") from None
    if not -(2**31) <= number < 2**31:
        raise ValueError("must fit 32 bits")
    return number


def parse_level(text: str) -> int:
    """Reads a klog verbosity."""
    if not (text.isascii() and text.isdigit()) or int(text) >= 2**31:
        raise ValueError("must be a number of 0 or more that fits 31 bits")
    return int(text)


def parse_float(text: str) -> float:
    """Reads a number with or without decimals."""
    if not _NUMBER.fullmatch(text):
        raise ValueError("must be a number")
    number = float(text)
    if not abs(number) < 3.5e38:  # also refuses NaN
        raise ValueError("must fit a 32 bit float")
    return number


def parse_list(text: str) -> tuple[str, ...]:
    """Reads a list as pflag does: a line of comma separated values (RFC 4180), or empty for no items.

    An item with commas or quotes is enclosed in double quotes, with the quotes in it doubled.
    """
    items: list[str] = []
    position, more = 0, bool(text)
    while more:
        field = _FIELD.match(text, position)
        if field is None:
            raise ValueError('a quote (") may only stand around an item, or doubled within such quotes')
        quoted, bare, end = field.groups()
        items.append(bare if quoted is None else quoted.replace('""', '"'))
        position, more = field.end(), end == ","
    return tuple(items)


def parse_gates(text: str) -> dict[str, bool]:
    """Reads `Name=true,Other=false`."""
    gates = {}
    for pair in filter(None, (item.strip() for item in text.split(","))):
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f'malformed pair "{pair}", expect string=bool')
        try:
            gates[name.strip()] = parse_bool(value.strip())
        except ValueError:
            raise ValueError(
                f'invalid value of {name.strip()}: "{value.strip()}" must be true or false'
            ) from None
    return gates


def parse_vmodule(text: str) -> tuple[VModule, ...]:
    """Reads `pattern=N,other=N`."""
    found = []
    for item in filter(None, text.split(",")):
        pattern, _, verbosity = item.partition("=")
        if not pattern or not verbosity or "=" in verbosity:
            raise ValueError(f'"{item}" does not have the pattern=N format')
        try:
            found.append(VModule(pattern, parse_level(verbosity)))
        except ValueError as e:
            raise ValueError(f'verbosity in "{item}" {e}') from None
    return tuple(found)


def parse_address(text: str) -> str:
    """Reads an IP address; empty text means the default."""
    if text and parse_ip(text) is None:
        raise ValueError(f'"{text}" is not a valid IP address')
    return text


def parse_listen(text: str) -> str:
    """Reads an address to listen on, `ip` or `ip:port`; empty text means none."""
    if not text or parse_ip(text) is not None:
        return text
    parts = split_host_port(text)
    if parts is None:
        raise ValueError(f'"{text}" is not in a valid format (ip or ip:port)')
    host, port = parts
    if parse_ip(host) is None:
        raise ValueError(f'"{host}" is not a valid IP address')
    if not (port.isascii() and port.isdigit()):
        raise ValueError(f'"{port}" is not a valid number')
    return text


def parse_version(text: str) -> str:
    """Reads the value of --version: how to print the version, or "" for not at all, or the version to report.

    `v1.36.2-name` prints nothing: it is the version that this program reports, and must have the same minor
    version.
    """
    if text == "raw":
        return text
    if text.startswith("v"):
        found = _VERSION.fullmatch(text)
        if found is None:
            raise ValueError(f'"{text}" is not a semantic version like v{KUBERNETES}.0-name')
        if found[1] != KUBERNETES:
            raise ValueError(f'"{text}" must be a version of {KUBERNETES}, which this program stands in for')
        return text
    return "true" if parse_bool(text) else ""


KINDS: Final[Mapping[str, FlagKind]] = {
    "bool": FlagKind(parse_bool, bare="true"),
    "int": FlagKind(parse_int32, "int"),
    "level": FlagKind(parse_level, "Level"),
    "float": FlagKind(parse_float, "float"),
    "duration": FlagKind(parse_duration, "duration"),
    "size": FlagKind(parse_quantity, "size"),
    "string": FlagKind(str, "string"),
    "list": FlagKind(parse_list, "strings", adds=True),
    "paths": FlagKind(lambda text: (text,), "path", adds=True),
    "gates": FlagKind(parse_gates, "Name=bool,...", adds=True),
    "vmodule": FlagKind(parse_vmodule, "pattern=N,...", adds=True),
    "address": FlagKind(parse_address, "ip"),
    "listen": FlagKind(parse_listen, "ip:port"),
    "version": FlagKind(parse_version, bare="true"),
}
"""Every type a flag can have."""


def show(value: Any) -> str:
    """Writes a value the way it could stand after a flag."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return ",".join(f"{name}={show(on)}" for name, on in value.items())
    if isinstance(value, tuple):
        return ",".join(
            f"{v.file_pattern}={v.verbosity}" if isinstance(v, VModule) else str(v) for v in value
        )
    if isinstance(value, float) and not isinstance(value, Duration) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)
