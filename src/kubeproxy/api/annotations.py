"""The annotations of a Service that this proxy has beside those of Kubernetes. All have one prefix.

They are an API, documented in docs/balancing.md. A value that cannot be used is ignored: the Service is
programmed as if it had no such annotation, its other annotations have their effect, and a finding
(`model.findings`) reports it, with an Event of the Service. `AnnotationReader` has a method for each type of
value; what several annotations together mean is in the module of that subject (`api.balancing`).
"""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Final, TypeVar

from msgspec import Raw, Struct, field, json, structs

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

_LONGEST: Final = 80
"""Names of annotations that are longer are shortened in messages."""

_NEARLY: Final = 0.75
"""How similar a misspelt name is to the one that is meant, from 0 to 1."""

_SEPARATOR: Final = re.compile(r"[,\s]+")

GROUP: Final = f"{PREFIX}group"
"""Label of an EndpointSlice: the name of the group that its endpoints belong to."""


class Annotations(Struct, gc=False, frozen=True):
    """The annotations that are used.

    Attributes:
        triggered: of an EndpointSlice: when the change behind it happened (RFC 3339).
        proxy_protocol: of a Service: the version of the PROXY protocol its endpoints expect. This one and
            the following are ours.
        balancing: of a Service: how an endpoint is chosen.
        maglev_hash: of a Service: what of a client's address Maglev's hash is of.
        maglev_table_size: of a Service: the number of slots of Maglev's table.
        weights: of a Service: the weights of its endpoints.
        prefer: of a Service: the endpoints that are preferred.
        spill_over: of a Service: up to how many open connections each they are.
        removed_endpoints: of a Service: what becomes of the connections of endpoints that were removed.
        silent_endpoints: of a Service: what becomes of endpoints that do not answer.
        allowed_sources: of a Service: who may use its node ports and external IPs.
        denied_sources: of a Service: who may not use these and its load balancer IPs.
        preserve_destination: of a Service: "true" if packets to its load balancer IPs keep their destination,
            in kernelspace mode. It is the reference's.
        at_connect: of a Service: "off" if ebpf mode must not connect sockets to its endpoints.
    """

    triggered: str | None = field(default=None, name="endpoints.kubernetes.io/last-change-trigger-time")
    proxy_protocol: str | None = field(default=None, name=PROXY_PROTOCOL)
    balancing: str | None = field(default=None, name=BALANCING)
    maglev_hash: str | None = field(default=None, name=MAGLEV_HASH)
    maglev_table_size: str | None = field(default=None, name=MAGLEV_TABLE_SIZE)
    weights: str | None = field(default=None, name=WEIGHTS)
    prefer: str | None = field(default=None, name=PREFER)
    spill_over: str | None = field(default=None, name=SPILL_OVER)
    removed_endpoints: str | None = field(default=None, name=REMOVED_ENDPOINTS)
    silent_endpoints: str | None = field(default=None, name=SILENT_ENDPOINTS)
    allowed_sources: str | None = field(default=None, name=ALLOWED_SOURCES)
    denied_sources: str | None = field(default=None, name=DENIED_SOURCES)
    preserve_destination: str | None = field(default=None, name="preserve-destination")
    at_connect: str | None = field(default=None, name=AT_CONNECT)


OURS: Final = frozenset(
    f.encode_name for f in structs.fields(Annotations) if f.encode_name.startswith(PREFIX)
)
"""The names of the annotations that are ours."""

MOST_UNKNOWN: Final = 10
"""The maximum number of unknown names that are reported of a Service."""


class _AnnotationNames(Struct, gc=False):
    annotations: dict[str, Raw] | None = None


class _Annotated(Struct, gc=False):
    """Just enough of an object to have the names of all its annotations."""

    metadata: _AnnotationNames


_decode = json.Decoder(_Annotated).decode
_PREFIX_IN_JSON: Final = f'"{PREFIX}'.encode()


def unknown(names: Iterable[object]) -> tuple[str, ...]:
    """The first of those names that have our prefix and are none of ours."""
    found = {name for name in names if isinstance(name, str) and name.startswith(PREFIX) and name not in OURS}
    return tuple(sorted(found)[:MOST_UNKNOWN])


def unknown_in(data: bytes | Raw) -> tuple[str, ...]:
    """The same of the annotations of an object in JSON. One without annotations of ours is not parsed."""
    return unknown(_decode(data).metadata.annotations or ()) if _PREFIX_IN_JSON in bytes(data) else ()


T = TypeVar("T")


class AnnotationReader:
    """Reads the values of annotations and collects those that are ignored.

    Attributes:
        ignored: the annotations that are ignored so far, each with the reason.
    """

    def __init__(self, unknown: Iterable[str] = ()) -> None:
        """Ignores annotations with our prefix whose names are none of ours."""
        self.ignored: list[IgnoredAnnotation] = []
        for name in unknown:
            self._unknown(name)

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

    def _unknown(self, name: str) -> None:
        near = get_close_matches(name[:_LONGEST].lower(), OURS, 1, _NEARLY)
        reason = (
            f"there is no such annotation, did you mean {near[0]}?" if near else "there is no such annotation"
        )
        if name == GROUP:
            reason = "it is a label of EndpointSlices"
        self.ignore(name if len(name) <= _LONGEST and name.isprintable() else f"{name!r:.80}", reason)

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
