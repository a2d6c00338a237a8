"""Near endpoints first, in modes whose rules cannot count: which endpoints are used while some are full.

An endpoint that has as many open connections as its limit is full, and is used again when it has a quarter
less: otherwise rules would be changed all the time. New connections go to the near endpoints that are not
full; if all are, to the others.
"""

from collections.abc import Collection
from math import gcd

from kubeproxy.model.distribution import Distribution
from kubeproxy.model.select import Endpoint
from kubeproxy.model.silence import Address


def is_full(connections: int, bound: int, *, before: bool) -> bool:
    """Whether an endpoint is full.

    Args:
        connections: its open connections.
        bound: its limit.
        before: whether it was full at the last look.
    """
    return 4 * connections > 3 * bound if before else connections >= bound


def used_now(
    endpoints: tuple[Endpoint, ...], by: Distribution, full: Collection[Address]
) -> tuple[tuple[Endpoint, ...], Distribution | None]:
    """The endpoints that get new connections, and how these are divided; None for equal shares at random.

    Args:
        endpoints: all endpoints of the group.
        by: how connections are divided among them; some are preferred.
        full: the endpoints that are full.
    """
    near = frozenset(by.preferred)
    free = frozenset(each for each in near if (each.address, each.port) not in full)
    weights = by.weights or (1,) * len(endpoints)
    found = [
        (each, weight)
        for each, weight in zip(endpoints, weights, strict=True)
        if (each in free if free else each not in near)
    ]
    common = gcd(*(weight for _, weight in found))
    left = tuple([weight // common for _, weight in found])
    distribution = Distribution(method=by.method, weights=() if len(set(left)) == 1 else left)
    return tuple([each for each, _ in found]), None if distribution == Distribution() else distribution
