"""How new connections are divided among the endpoints of a group: those of a policy, Cluster or Local.

A `Distribution` is made here, from the annotations of a Service, and only placed by modes. A group without
one is divided at random with equal shares, as by the reference.

Weights are small numbers without a common divisor: a mode may give an endpoint as many slots as its weight.
Endpoints without weight are no part of the group. If all are, none is left out: a weight never makes a
Service unreachable.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from math import gcd
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from kubeproxy.api import annotations
from kubeproxy.api.addresses import pack
from kubeproxy.api.balancing import TABLE_SIZES
from kubeproxy.api.rows import (
    BalancingRow,
    EndpointRow,
    IgnoredAnnotation,
    Method,
    Near,
    ServiceRow,
    WeightKind,
    WeightRow,
)
from kubeproxy.model import maglev
from kubeproxy.model.jenkins import jhash, scaled
from kubeproxy.model.select import Endpoint

MOST_SLOTS: Final = 4096
"""The largest sum of the weights of a group, unless it has more than a quarter as many endpoints."""

DEFAULT_SIZE: Final = 1021
"""The number of slots of a table of Maglev hashing, unless the Service says another one."""


class BalancingSupport(Struct, frozen=True, gc=False):
    """Which ways to divide connections a mode has.

    Attributes:
        weights: endpoints may have different weights.
        maglev: an endpoint may be chosen by Maglev hashing.
        least_connections: the endpoint with the fewest connections may be chosen.
        spill_over: near endpoints may be preferred up to a limit of connections.
        steered: for that, plans follow the connections (`model.spill`); otherwise the mode counts them.
        own_tables: its Maglev tables are those of `model.maglev`; otherwise it has its own ones, of a fixed
            size.
    """

    weights: bool = False
    maglev: bool = False
    least_connections: bool = False
    spill_over: bool = False
    steered: bool = False
    own_tables: bool = True


EVERYTHING: Final = BalancingSupport(weights=True, maglev=True, least_connections=True, spill_over=True)


class Distribution(Struct, frozen=True, gc=False):
    """How new connections are divided among the endpoints of a group.

    Attributes:
        method: how one is chosen.
        weights: the weight of each endpoint, in their order, above 0, without a common divisor; none if all
            are equal.
        by_port: the hash of Maglev is of the client's address and port, otherwise of its address.
        table_size: the number of slots of Maglev's table; 0 for another method, or if the mode makes it.
        preferred: the endpoints that get all connections until each has `bound` of them open.
        bound: that number; 0 if none are preferred.
    """

    method: Method = "random"
    weights: tuple[int, ...] = ()
    by_port: bool = False
    table_size: int = 0
    preferred: tuple[Endpoint, ...] = ()
    bound: int = 0

    @property
    def by_weight(self) -> bool:
        """Whether weights alone decide: neither who connects matters, nor which connections are open."""
        return self.method == "random" and not self.preferred


def shares(endpoints: tuple[Endpoint, ...], distribution: Distribution | None) -> tuple[float, ...]:
    """The part of new clients that each endpoint gets, from 0 to 1.

    With preferred endpoints, as long as their limit is not reached. With least connections, on average, if
    connections last equally long.
    """
    weights = distribution.weights if distribution is not None else ()
    given = weights or (1,) * len(endpoints)
    if distribution is not None and distribution.table_size:
        slots = Counter(maglev.table(endpoints, weights, distribution.table_size))
        given = tuple([slots[number] for number in range(len(endpoints))])
    elif distribution is not None and distribution.preferred:
        near = frozenset(distribution.preferred)
        given = tuple([weight * (each in near) for each, weight in zip(endpoints, given, strict=True)])
    whole = sum(given)
    return tuple([weight / whole for weight in given])


def slot_of(distribution: Distribution, source: str) -> int | None:
    """The slot of Maglev's table that a client's address leads to; None if its port decides, too.

    Also None if the table is not known.
    """
    if not distribution.table_size or distribution.by_port:
        return None
    return scaled(jhash(pack(source)), distribution.table_size)


def chosen(
    endpoints: tuple[Endpoint, ...], distribution: Distribution | None, source: str
) -> Endpoint | None:
    """The endpoint that a client gets; None if that is not determined by its address."""
    slot = None if distribution is None else slot_of(distribution, source)
    if distribution is None or slot is None:
        return None
    return endpoints[maglev.table(endpoints, distribution.weights, distribution.table_size)[slot]]


class Divider:
    """Divides groups of endpoints of one Service port."""

    def __init__(
        self,
        row: BalancingRow,
        rows: Mapping[Endpoint, tuple[EndpointRow, str]],
        *,
        zone: str,
        own_tables: bool = True,
    ) -> None:
        """Prepares it.

        Args:
            row: what the Service asks for, as far as the mode can do it.
            rows: the row of each endpoint, and the group of its EndpointSlice.
            zone: the zone of the node, "" if it is not known.
            own_tables: see `BalancingSupport`.
        """
        self._row = row
        self._own_tables = own_tables
        self._near: frozenset[Endpoint] = frozenset(_near(row.near, rows, zone))
        rules = WeightRules(row.weights)
        self._weights = {each: rules.weight(*given) for each, given in rows.items()} if row.weights else {}

    def used(self, endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
        """The endpoints that have a weight; all if none has."""
        if not self._weights:
            return endpoints
        return tuple([each for each in endpoints if self._weights[each]]) or endpoints

    def divide(self, endpoints: tuple[Endpoint, ...]) -> tuple[tuple[Endpoint, ...], Distribution | None]:
        """The endpoints that get connections, and how these are divided; None for equal shares at random."""
        if not endpoints:
            return endpoints, None
        weights = reduced([self._weights.get(each, 1) or 1 for each in endpoints])
        if not all(weights):
            endpoints = tuple([each for each, weight in zip(endpoints, weights, strict=True) if weight])
            weights = tuple([weight for weight in weights if weight])
        preferred = tuple([each for each in endpoints if each in self._near])
        if len(preferred) == len(endpoints):
            preferred = ()
        is_maglev = self._row.method == "maglev"
        found = Distribution(
            method=self._row.method,
            weights=() if len(set(weights)) == 1 else weights,
            by_port=self._row.by_port,
            table_size=_size(self._row.table_size, len(endpoints)) if is_maglev and self._own_tables else 0,
            preferred=preferred,
            bound=self._row.bound if preferred else 0,
        )
        return endpoints, None if found == Distribution() else found


class WeightRules:
    """The rules of weights of a Service. The cost for an endpoint does not depend on their number."""

    def __init__(self, rules: tuple[WeightRow, ...]) -> None:
        self._rules: dict[tuple[WeightKind, str], tuple[int, int]] = {
            (rule.kind, rule.name): (number, rule.weight) for number, rule in enumerate(rules)
        }
        self._kinds = {rule.kind for rule in rules}

    def weight(self, row: EndpointRow, group: str) -> int:
        """The weight of an endpoint: that of the first rule that matches, 1 if none does.

        Args:
            row: the endpoint.
            group: the group of its EndpointSlice.
        """
        found = [rule for name in self._names(row, group) if (rule := self._rules.get(name)) is not None]
        return min(found)[1] if found else 1

    def _names(self, row: EndpointRow, group: str) -> Iterator[tuple[WeightKind, str]]:
        yield "zone", row.zone
        yield "node", row.node
        yield "group", group
        yield "address", row.address
        yield "any", ""
        if "pods" in self._kinds:
            parts = row.pods.split("-")
            for count in range(1, len(parts) + 1):
                yield "pods", "-".join(parts[:count])


def reduced(weights: list[int]) -> tuple[int, ...]:
    """Weights in nearly the same proportion, with a sum that a mode can place.

    The sum is at most `MOST_SLOTS`, or four times the number of weights. Each part of the sum differs by less
    than one from the exact one, so a very small weight may become 0.
    """
    whole, most = sum(weights), max(MOST_SLOTS, 4 * len(weights))
    common = gcd(*weights)
    if whole // common <= most:
        return tuple([weight // common for weight in weights])
    parts = [divmod(weight * most, whole) for weight in weights]
    lacking = most - sum(part for part, _ in parts)
    by_rest = sorted(range(len(weights)), key=lambda number: (-parts[number][1], number))
    more = frozenset(by_rest[:lacking])
    found = [part + (number in more) for number, (part, _) in enumerate(parts)]
    common = gcd(*found)
    return tuple([weight // common for weight in found])


def supported(row: BalancingRow, support: BalancingSupport) -> BalancingRow | None:
    """What a mode does of what a Service asks for; None if that is what all Services have."""
    method: Method = row.method
    if (method == "maglev" and not support.maglev) or (
        method == "least-connections" and not support.least_connections
    ):
        method = "random"
    near: Near = row.near if support.spill_over else ""
    found = replace(
        row,
        method=method,
        by_port=row.by_port and method == "maglev",
        table_size=row.table_size if method == "maglev" else 0,
        weights=row.weights if support.weights else (),
        near=near,
        bound=row.bound if near else 0,
    )
    return None if found == BalancingRow() else found


def without_effect(service: ServiceRow, support: BalancingSupport) -> tuple[IgnoredAnnotation, ...]:
    """The annotations of a Service that are ignored: those that are wrong, and those that a mode has not."""
    row = service.balancing
    if row is None:
        return service.ignored
    return (*service.ignored, *_unsupported(row, support))


def _unsupported(row: BalancingRow, support: BalancingSupport) -> Iterator[IgnoredAnnotation]:
    there = supported(row, support) or BalancingRow()
    if there.method != row.method:
        yield IgnoredAnnotation(
            annotations.BALANCING, f"this mode has no {row.method}, endpoints are chosen at random"
        )
    elif row.table_size and not support.own_tables:
        yield IgnoredAnnotation(
            annotations.MAGLEV_TABLE_SIZE, "the tables of this mode have the size that the kernel gives them"
        )
    if there.weights != row.weights:
        yield IgnoredAnnotation(annotations.WEIGHTS, "this mode has no weights, all shares are equal")
    if there.near != row.near:
        yield IgnoredAnnotation(
            annotations.PREFER, "this mode does not count open connections, no endpoint is preferred"
        )


def _near(near: Near, rows: Mapping[Endpoint, tuple[EndpointRow, str]], zone: str) -> Iterator[Endpoint]:
    """The endpoints that are preferred."""
    for endpoint, (row, _) in rows.items():
        if (near == "node" and endpoint.local) or (near == "zone" and zone and row.zone == zone):
            yield endpoint


def _size(wanted: int, endpoints: int) -> int:
    """The size of a table of Maglev hashing: if there is such a size, with two slots for each endpoint."""
    least = max(wanted or DEFAULT_SIZE, 2 * endpoints)
    return next((size for size in TABLE_SIZES if size >= least), TABLE_SIZES[-1])
