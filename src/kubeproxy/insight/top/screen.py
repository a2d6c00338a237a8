"""The interactive view without a terminal: keys change it, and it is rendered as lines."""

from collections.abc import Callable, Sequence
from typing import Final, Protocol, get_args

from kubeproxy.insight.top import table
from kubeproxy.insight.top.table import Line
from kubeproxy.insight.top.values import Top
from kubeproxy.insight.top.watch import Order
from kubeproxy.model.plan import Key

ORDERS: Final[Sequence[Order]] = get_args(Order)
HELP: Final = "s sort  / filter  up down select  Enter open  Esc back  q quit"
_ENTER: Final = frozenset({"\r", "\n"})
_ESCAPE: Final = "\x1b"
_UP: Final = frozenset({"\x1b[A", "\x1bOA", "k"})
_DOWN: Final = frozenset({"\x1b[B", "\x1bOB", "j"})
_PAGE_UP, _PAGE_DOWN = "\x1b[5~", "\x1b[6~"
_ERASE: Final = frozenset({"\x7f", "\b"})
_FRAME_LINES: Final = 4
"""The lines above and below the table: where figures are from, observations, its heading, the help."""


class Figures(Protocol):
    """What the view shows, see `TopWatch`."""

    def ranking(self, order: Order, wanted: Callable[[Key], bool] | None = None) -> list[Key]:
        """The Services in an order."""

    def top(self, keys: Sequence[Key] | None = None) -> Top:
        """What is known of some Services."""


class Screen:
    """What is shown.

    Attributes:
        order: what Services are sorted by.
        filter: the names of shown Services contain this.
        opened: the Service that is shown with its endpoints; None for the table.
        shown: the Services on the screen.
        ended: the operator wants to quit.
    """

    def __init__(self, opened: Key | None = None) -> None:
        """Starts with the table, or with one Service.

        Args:
            opened: the only Service to be shown; None for all.
        """
        self.order: Order = "connections"
        self.filter = ""
        self.opened = opened
        self.shown: list[Key] = []
        self.ended = False
        self._only = opened
        self._typing = False
        self._selected = 0
        self._page = 1

    def press(self, key: str) -> None:
        """A key was pressed.

        Args:
            key: the character, or the sequence that a terminal sends for the key.
        """
        if key == "\x03":
            self.ended = True
        elif self._typing:
            self._type(key)
        elif key == "q":
            self.ended = True
        elif self.opened is not None:
            if key == _ESCAPE or key in _ENTER or key in _ERASE:
                self.opened = self._only
                self.ended = self._only is not None
        else:
            self._in_table(key)

    def render(self, figures: Figures, width: int, height: int) -> list[Line]:
        """The lines of the screen.

        Args:
            figures: what is known.
            width: characters in a line.
            height: lines.
        """
        if self.opened is not None:
            self.shown = [self.opened]
            found = figures.top(self.shown)
            lines = [
                (table.about(found), "dim"),
                *table.observations(found),
                *table.lines(found, details=True),
            ]
        else:
            found, lines = self._table(figures, height)
        lines += [(f"Note: {trouble}", "yellow") for trouble in found.troubles]
        lines = lines[: max(height - 1, 0)]
        lines += [("", "")] * (height - 1 - len(lines))
        foot = f"filter: {self.filter}_" if self._typing else HELP
        return [(text[:width], style) for text, style in [*lines, (foot, "reverse")]]

    def _wanted(self, key: Key) -> bool:
        return self.filter in "/".join(key)

    def _table(self, figures: Figures, height: int) -> tuple[Top, list[Line]]:
        ranked = figures.ranking(self.order, self._wanted if self.filter else None)
        self._page = max(height - _FRAME_LINES, 1)
        self._selected = max(min(self._selected, len(ranked) - 1), 0)
        first = self._selected - self._selected % self._page
        self.shown = ranked[first : first + self._page]
        found = figures.top(self.shown)
        about = f"{table.about(found)}; {len(ranked):,} Services by {self.order}"
        if self.filter:
            about += f", with {self.filter!r}"
        heading, *rows = table.lines(found)
        at = sum(len(service.ports) for service in found.services[: self._selected - first])
        if at < len(rows):
            rows[at] = rows[at][0], f"{rows[at][1]} reverse".strip()
        return found, [(about, "dim"), *table.observations(found), heading, *rows]

    def _in_table(self, key: str) -> None:
        if key == "s":
            self.order = ORDERS[(ORDERS.index(self.order) + 1) % len(ORDERS)]
            self._selected = 0
        elif key == "/":
            self._typing = True
        elif key == _ESCAPE:
            self.filter = ""
        elif key in _UP:
            self._selected -= 1
        elif key in _DOWN:
            self._selected += 1
        elif key == _PAGE_UP:
            self._selected -= self._page
        elif key == _PAGE_DOWN:
            self._selected += self._page
        elif key in _ENTER and self.shown:
            self.opened = self.shown[min(self._selected % self._page, len(self.shown) - 1)]
        self._selected = max(self._selected, 0)

    def _type(self, key: str) -> None:
        if key in _ENTER:
            self._typing = False
        elif key == _ESCAPE:
            self._typing, self.filter = False, ""
        elif key in _ERASE:
            self.filter = self.filter[:-1]
        elif key.isprintable():
            self.filter += key
        self._selected = 0


def keys(data: str) -> list[str]:
    """What was read from a terminal, divided into keys."""
    found: list[str] = []
    while data:
        size = 1
        if data[0] == _ESCAPE and data[1:2] in {"[", "O"}:
            size = 2
            while size < len(data) and not data[size].isalpha() and data[size] != "~":
                size += 1
            size += 1
        found.append(data[:size])
        data = data[size:]
    return found
