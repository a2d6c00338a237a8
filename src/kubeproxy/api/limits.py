"""The limits of everything that is parsed, and what is common to reading YAML and JSON.

Files and responses may be broken, endless or malicious. What is larger, deeper or longer than these limits is
an error like any other. The limits are far above what Kubernetes itself allows for the same data.
"""

import os
from typing import Final

DEEPEST: Final = 200
"""How deep lists and mappings may be nested. The Kubernetes API has at most about 20 levels."""

TOO_DEEP: Final = f"nested more than {DEEPEST} levels deep"

MOST_REPEATED: Final = 100_000
"""How many values the aliases of a YAML file may repeat, or `REPEATED_RATIO` times the file's own."""

REPEATED_RATIO: Final = 10

LARGEST_SETTINGS: Final = 16 * 2**20
"""Bytes in a configuration file, kubeconfig, token, certificate, or the output of a credential plugin."""

LARGEST_MANIFEST: Final = 512 * 2**20
"""Bytes in a manifest: one file may hold the Services of a whole cluster."""

LARGEST_ANSWER: Final = 1024 * 2**20
"""Bytes in a response of the API server after decompression: a first list is one response."""

LONGEST_LINE: Final = 64 * 2**20
"""Bytes in one event of a watch. An API server holds no object of more than a few megabytes."""

_CHUNK: Final = 65536
_LONGEST_KEY: Final = 80
_LONGEST_PATH: Final = 300


class TextError(ValueError):
    """The text cannot be used; the message is one line, with line, column and field where they are known."""


def read_file(path: str, most: int = LARGEST_SETTINGS) -> bytes:
    """Reads a file.

    Args:
        path: its path.
        most: how many bytes it may have. Devices and pipes that never end are stopped by that, too.

    Raises:
        OSError: it cannot be read.
        TextError: it is larger.
    """
    parts: list[bytes] = []
    left = most + 1
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 Path has no bounded read
        # Reading `most` bytes at once would reserve as many. The size is 0 for what is no file.
        size = os.fstat(file.fileno()).st_size
        while part := file.read(min(left, max(size, _CHUNK))):
            parts.append(part)
            left -= len(part)
            size -= len(part)
            if left <= 0:
                raise TextError(f"larger than {most} bytes")
    return b"".join(parts)


def as_utf8(data: bytes) -> bytes:
    """Returns a text as UTF-8 without a byte order mark. UTF-16 is known by its mark, as to YAML.

    Raises:
        TextError: it begins as UTF-16 and is none.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return data.decode("utf-16").encode()
        except UnicodeDecodeError as e:
            raise TextError(f"not UTF-16: {e.reason} at byte {e.start}") from None
    return data.removeprefix(b"\xef\xbb\xbf")


def check_utf8(data: bytes) -> None:
    """Checks that a text is UTF-8.

    Raises:
        TextError: it is not; the message has the place of the first wrong byte.
    """
    try:
        data.decode()
    except UnicodeDecodeError as e:
        raise TextError(place(data, e.start, f"not UTF-8: {e.reason}")) from None


def place(data: bytes, position: int, words: str) -> str:
    """What is wrong at a byte of a text, with its line and column."""
    before = data[:position]
    return f"line {before.count(10) + 1}, column {position - before.rfind(10)}: {words}"


def joined(parts: list[str | int]) -> str:
    """The path of a field, of keys and indexes: `spec.ports[0].port`. It is one line of limited length."""
    path = ""
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
            continue
        key = part[:_LONGEST_KEY]
        key = key if key.isprintable() else ascii(key)
        path += f".{key}" if path else key
    return path[:_LONGEST_PATH]
