"""Reads how a Service wants new connections to be divided among its endpoints.

    kube-proxy/balancing: maglev
    kube-proxy/weights: zone:eu-1a=3, pods:web-canary=1, *=2

See docs/balancing.md for the meaning of each annotation.
"""

import re
from collections.abc import Mapping
from typing import Final, get_args

from kubeproxy.api import annotations, types
from kubeproxy.api.addresses import parse_address
from kubeproxy.api.annotations import AnnotationReader
from kubeproxy.api.rows import BalancingRow, Method, Near, WeightKind, WeightRow

MOST_WEIGHT: Final = 1000
"""The largest weight."""

MOST_RULES: Final = 1000
"""The maximum number of rules that an annotation may have."""

TABLE_SIZES: Final = (251, 1021, 4093, 16381, 65521)
"""The sizes of tables of Maglev hashing: primes, as the method needs them."""

MOST_CONNECTIONS: Final = 1_000_000
"""The largest limit of open connections."""

_METHODS: Final[Mapping[str, Method]] = {method: method for method in get_args(Method)}
_KINDS: Final[Mapping[str, WeightKind]] = {kind: kind for kind in get_args(WeightKind) if kind != "any"}
_NEAR: Final[Mapping[str, Near]] = {near: near for near in get_args(Near) if near}
_NONE: Final = (None,) * 6
_SEPARATOR: Final = re.compile(r"[,\s]+")
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[-._A-Za-z0-9]*[A-Za-z0-9])?", re.ASCII)


def balancing(given: types.Annotations, reader: AnnotationReader, *, affinity: bool) -> BalancingRow | None:
    """What the annotations of a Service say; None if it is what counts without annotations.

    Args:
        given: the annotations.
        reader: collects what is ignored.
        affinity: the Service has session affinity.
    """
    texts = given.balancing, given.maglev_hash, given.maglev_table_size, given.weights
    if (*texts, given.prefer, given.spill_over) == _NONE:
        return None
    method = reader.choice(annotations.BALANCING, given.balancing, _METHODS, "random")
    if method == "maglev" and affinity:
        reader.ignore(
            annotations.BALANCING, "maglev and sessionAffinity ClientIP exclude each other, affinity is used"
        )
        method = "random"
    by_port = reader.choice(
        annotations.MAGLEV_HASH, given.maglev_hash, {"source": False, "source-and-port": True}, default=False
    )
    sizes = {str(size): size for size in TABLE_SIZES}
    size = reader.choice(annotations.MAGLEV_TABLE_SIZE, given.maglev_table_size, sizes, 0)
    near: Near = reader.choice(annotations.PREFER, given.prefer, _NEAR, "")
    bound = reader.number(annotations.SPILL_OVER, given.spill_over, 1, MOST_CONNECTIONS, 0)
    if near and not bound:
        reader.ignore(annotations.PREFER, f"it needs {annotations.SPILL_OVER}")
    elif bound and not near:
        reader.ignore(annotations.SPILL_OVER, f"it needs {annotations.PREFER}")
    elif near and method == "maglev":
        reader.ignore(annotations.PREFER, "maglev does not depend on connections")
    preferred = bool(near and bound) and method != "maglev"
    row = BalancingRow(
        method=method,
        by_port=by_port and method == "maglev",
        table_size=size if method == "maglev" else 0,
        weights=_weights(given.weights, reader),
        near=near if preferred else "",
        bound=bound if preferred else 0,
    )
    return None if row == BalancingRow() else row


def _weights(text: str | None, reader: AnnotationReader) -> tuple[WeightRow, ...]:
    """The rules of weights that can be used, in their order."""
    rules: dict[tuple[WeightKind, str], int] = {}
    parts = [part for part in _SEPARATOR.split(text or "") if part]
    if text is not None and not parts:
        reader.ignore(annotations.WEIGHTS, "it has no rule")
    if len(parts) > MOST_RULES:
        reader.ignore(annotations.WEIGHTS, f"it has {len(parts)} rules, the first {MOST_RULES} are used")
    for part in parts[:MOST_RULES]:
        what, _, number = part.rpartition("=")
        weight = annotations.whole(number)
        found = _which(what)
        if found is None:
            kinds = ", ".join(_KINDS)
            reader.ignore(
                annotations.WEIGHTS, f"{part!r:.80} is not KIND:NAME=WEIGHT or *=WEIGHT (kinds: {kinds})"
            )
        elif weight is None or weight > MOST_WEIGHT:
            reader.ignore(
                annotations.WEIGHTS,
                f"{part!r:.80} has no weight that is a whole number from 0 to {MOST_WEIGHT}",
            )
        elif found in rules:
            reader.ignore(annotations.WEIGHTS, f"{part!r:.80} is for what an earlier rule is for")
        else:
            rules[found] = weight
    return tuple([WeightRow(kind, name, weight) for (kind, name), weight in rules.items()])


def _which(text: str) -> tuple[WeightKind, str] | None:
    """The endpoints that a rule is for; None if the text says nothing that can be used."""
    if text == "*":
        return "any", ""
    kind, _, name = text.partition(":")
    if kind not in _KINDS:
        return None
    if kind == "address":
        try:
            return "address", parse_address(name)
        except ValueError:
            return None
    return (_KINDS[kind], name) if len(name) <= 253 and _NAME.fullmatch(name) else None
