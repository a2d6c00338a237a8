"""How commands write: results to standard output, everything about them to standard error.

Results are JSON for programs, or text for users: with colors and the width of the window on a terminal, plain
lines elsewhere. NO_COLOR is honoured (no-color.org).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from rich.console import Console


class Output:
    """Standard output and standard error."""

    def __init__(self) -> None:
        """Writes nothing yet."""
        self._wrote_json = False

    @cached_property
    def console(self) -> "Console":
        """Standard output for text, which is written as it is, without markup."""
        from rich.console import Console

        return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)

    def json(self, value: Any) -> None:
        """Writes a value as indented JSON."""
        self._wrote_json = True
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")

    def line(self, text: str = "", style: str = "") -> None:
        """Writes a line.

        Args:
            text: the line.
            style: a style of rich, e.g. "bold" or "red"; it is not written where colors are not.
        """
        self.console.print(text, style=style or None)

    def error(self, *messages: str, as_json: bool = False) -> None:
        """Reports errors.

        Args:
            messages: one line each.
            as_json: a program reads JSON: it gets an object with the errors, unless it has got a result.
        """
        for message in messages:
            sys.stderr.write(f"Error: {message}\n")
        if as_json and not self._wrote_json:
            self.json({"error": "; ".join(messages)})

    def note(self, message: str) -> None:
        """Reports what the reader should know about the result, without being part of it."""
        sys.stderr.write(f"Note: {message}\n")

    @contextmanager
    def progress(self, what: str) -> Iterator[None]:
        """Shows what is being done, on a terminal, until the block ends."""
        if not sys.stderr.isatty():
            yield
            return
        from rich.console import Console

        with Console(stderr=True).status(what):
            yield
