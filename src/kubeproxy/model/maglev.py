"""Tables of Maglev hashing: a client's hash is a slot of the table, and the slot has its endpoint.

Each endpoint has an order of its own in which it would take the slots. The endpoints take one after another
in turn, so each gets its share, and without an endpoint most of the others keep theirs: with 1,021 slots
and up to 100 endpoints, about 3 % of the slots of the others change. The table depends on nothing but the
addresses, ports and weights of the endpoints, so it is the same on every node.

Source: Eisenbud et al., Maglev: A Fast and Reliable Software Network Load Balancer, NSDI 2016, section 3.4.
"""

from array import array
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from kubeproxy.api.addresses import join
from kubeproxy.model.select import Endpoint

_FREE: Final = 0xFFFF
_CACHED: Final = 32
"""The number of tables that are kept: a change of a Service needs the one before and the one after it."""


@lru_cache(_CACHED)
def table(endpoints: tuple[Endpoint, ...], weights: tuple[int, ...], size: int) -> memoryview:
    """The table: the index of an endpoint for each slot.

    Args:
        endpoints: the endpoints, in the order of their addresses; fewer than 65,536.
        weights: their weights, all above 0; none if they are equal.
        size: the number of slots: a prime, at most 65,521. If it is at least the number of endpoints, each
            has a slot.
    """
    starts = [_preference(endpoint, size) for endpoint in endpoints]
    places = [start for start, _ in starts]
    weights = weights or (1,) * len(endpoints)
    most = max(weights)
    # An endpoint takes a slot for each `most` of credit. All have enough in the first round.
    credit = [most - weight for weight in weights]
    found = array("H", [_FREE]) * size
    left = size
    while True:
        for number, (_, step) in enumerate(starts):
            credit[number] += weights[number]
            if credit[number] < most:
                continue
            credit[number] -= most
            place = places[number]
            while found[place] != _FREE:
                place += step
                if place >= size:
                    place -= size
            found[place] = number
            places[number] = place
            left -= 1
            if not left:
                return memoryview(found.tobytes()).cast("H")


def _preference(endpoint: Endpoint, size: int) -> tuple[int, int]:
    """The first slot that an endpoint would take, and the distance from each one to the next."""
    digest = blake2b(join(endpoint.address, endpoint.port).encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8]) % size, int.from_bytes(digest[8:]) % (size - 1) + 1
