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

    @cached_property
    def console(self) -> "Console":
        """Standard output for text, which is written as it is, without markup."""
        from rich.console import Console

        return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)

    def json(self, value: Any) -> None:
        """Writes a value as indented JSON."""
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")

    def line(self, text: str = "", style: str = "") -> None:
        """Writes a line.

        Args:
            text: the line.
            style: a style of rich, e.g. "bold" or "red"; it is not written where colors are not.
        """
        self.console.print(text, style=style or None)

    def error(self, message: str) -> None:
        """Reports an error."""
        sys.stderr.write(f"Error: {message}\n")

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
