"""The annotations of a Service that this proxy has beside those of Kubernetes. All have one prefix.

They are an API, documented in docs/balancing.md. A value that cannot be used is ignored: the Service is
programmed as if it had no such annotation, its other annotations have their effect, and a finding
(`model.findings`) reports it, with an Event of the Service. `AnnotationReader` has a method for each type of
value; what several annotations together mean is in the module of that subject (`api.balancing`).
"""

import re
from collections.abc import Mapping
from typing import Final, TypeVar

from kubeproxy.api.addresses import parse_range
from kubeproxy.api.rows import IgnoredAnnotation

PREFIX: Final = "kube-proxy/"
"""The prefix of all annotations, and of the labels of EndpointSlices, that are ours."""

PROXY_PROTOCOL: Final = f"{PREFIX}proxy-protocol"
BALANCING: Final = f"{PREFIX}balancing"
MAGLEV_HASH: Final = f"{PREFIX}maglev-hash"
MAGLEV_TABLE_SIZE: Final = f"{PREFIX}maglev-table-size"
WEIGHTS: Final = f"{PREFIX}weights"
PREFER: Final = f"{PREFIX}prefer"
SPILL_OVER: Final = f"{PREFIX}spill-over"
REMOVED_ENDPOINTS: Final = f"{PREFIX}removed-endpoints"
SILENT_ENDPOINTS: Final = f"{PREFIX}silent-endpoints"
ALLOWED_SOURCES: Final = f"{PREFIX}allowed-sources"
DENIED_SOURCES: Final = f"{PREFIX}denied-sources"
AT_CONNECT: Final = f"{PREFIX}at-connect"

MOST_RANGES: Final = 1000
"""The maximum number of ranges that an annotation may have."""

_SEPARATOR: Final = re.compile(r"[,\s]+")

GROUP: Final = f"{PREFIX}group"
"""Label of an EndpointSlice: the name of the group that its endpoints belong to."""

T = TypeVar("T")


class AnnotationReader:
    """Reads the values of annotations and collects those that are ignored.

    Attributes:
        ignored: the annotations that are ignored so far, each with the reason.
    """

    def __init__(self) -> None:
        self.ignored: list[IgnoredAnnotation] = []

    def ignore(self, name: str, reason: str) -> None:
        """An annotation is ignored, or a part of its value is."""
        self.ignored.append(IgnoredAnnotation(name, reason))

    def choice(self, name: str, text: str | None, values: Mapping[str, T], default: T) -> T:
        """The value that a text stands for; the default if there is no text or it stands for none.

        Args:
            name: the annotation.
            text: its text; None if the Service does not have it.
            values: the texts that are valid, and what each stands for.
            default: what counts without the annotation.
        """
        if text is None:
            return default
        if text not in values:
            self.ignore(name, f"{text!r:.80} is not {_any_of(list(values))}")
            return default
        return values[text]

    def ranges(self, name: str, text: str | None) -> tuple[str, ...]:
        """The ranges of a list, canonical, each once; those that are none are ignored."""
        found: dict[str, None] = {}
        parts = [part for part in _SEPARATOR.split(text or "") if part]
        if text is not None and not parts:
            self.ignore(name, "it has no range")
        if len(parts) > MOST_RANGES:
            self.ignore(name, f"it has {len(parts)} ranges, the first {MOST_RANGES} are used")
        for part in parts[:MOST_RANGES]:
            try:
                found[parse_range(part)] = None
            except ValueError:
                self.ignore(name, f"{part!r:.80} is not a range of addresses like 192.0.2.0/24")
        return tuple(found)

    def number(self, name: str, text: str | None, low: int, high: int, default: int) -> int:
        """A whole number from `low` to `high`; the default if there is no text or it is no such number."""
        if text is None:
            return default
        value = whole(text)
        if value is None or not low <= value <= high:
            self.ignore(name, f"{text!r:.80} is not a whole number from {low} to {high}")
            return default
        return value


def whole(text: str) -> int | None:
    """The number that a text of at most nine decimal digits stands for; None if it is something else."""
    return int(text) if len(text) < 10 and text.isascii() and text.isdigit() else None


def _any_of(values: list[str]) -> str:
    *others, last = values
    return f"{', '.join(others)} or {last}" if others else last
