"""Chooses the target of a client: see `dividing`, or with affinity the target that it had before."""

import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter

from kubeproxy.relay.dividing import chooser, packed
from kubeproxy.relay.tallies import Tallies
from kubeproxy.relay.values import Listener, Target

MOST_CLIENTS = 65536
"""The number of clients that a group stores.

If there are more, those that were not seen for the longest time are removed.
"""


class Clients:
    """The clients of a group: the target of each, and when it was last seen."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._seen: OrderedDict[str, tuple[Target, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def target(self, client: str, seconds: float) -> Target | None:
        """The target of a client; None if it has none, or was not seen for `seconds`."""
        found = self._seen.get(client)
        if found is None or self._now() - found[1] >= seconds:
            return None
        return found[0]

    def remember(self, client: str, target: Target) -> None:
        """Stores the target that a client got now."""
        self._seen[client] = target, self._now()
        self._seen.move_to_end(client)
        if len(self._seen) > MOST_CLIENTS:
            self._seen.popitem(last=False)

    def forget(self, client: str, target: Target) -> None:
        """Removes the target of a client that could not reach it."""
        if client in self._seen and self._seen[client][0] == target:
            del self._seen[client]

    def forget_old(self, seconds: float) -> None:
        """Removes the clients that were not seen for `seconds`."""
        limit = self._now() - seconds
        while self._seen and next(iter(self._seen.values()))[1] <= limit:
            self._seen.popitem(last=False)


class Balancer:
    """Chooses targets for the clients of one listener."""

    def __init__(self, listener: Listener, clients: Clients, tallies: Tallies) -> None:
        self._listener = listener
        self._clients = clients
        self._choices = [
            (
                _Ranges(choice.clients) if choice.clients else None,
                choice.targets,
                chooser(choice.targets, choice.division, tallies, listener.group),
            )
            for choice in listener.choices
        ]
        self._admitted = _Ranges(listener.admitted)
        self.targets = frozenset(listener.kept).union(*(choice.targets for choice in listener.choices))

    def candidates(self, client: str, port: int) -> Sequence[Target]:
        """The targets for a client in the order in which they are to be tried; empty if it is refused.

        With affinity, the target that the client had before is the first.

        Args:
            client: the address of the client.
            port: its port.
        """
        if self._listener.admitted and client not in self._admitted:
            return ()
        choice = next((c for c in self._choices if c[0] is None or client in c[0]), None)
        if choice is None:
            return ()
        _, targets, chosen = choice
        if chosen is None:
            return ()
        order = chosen.choose(client, port)
        if self._listener.affinity:
            kept = self._clients.target(client, self._listener.affinity)
            if kept is not None and kept in targets:
                order = (kept, *(target for target in order if target != kept))
            # Stored now, not when the target is connected, because the client may open another connection
            # meanwhile.
            self._clients.remember(client, order[0])
        return order

    def close(self) -> None:
        """It is not used any more."""
        for _, _, chosen in self._choices:
            if chosen is not None:
                chosen.close()

    def reached(self, client: str, target: Target) -> None:
        """A client is connected to a target."""
        if self._listener.affinity:
            self._clients.remember(client, target)

    def failed(self, client: str, target: Target) -> None:
        """A client could not be connected to a target."""
        self._clients.forget(client, target)


class _Ranges:
    """A set of CIDR ranges. There may be thousands, so an address is looked up in O(log n)."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._spans: dict[int, list[tuple[int, int]]] = {4: [], 16: []}
        for size, first, last in sorted(map(_span, texts), key=lambda span: (span[1], -span[2])):
            spans = self._spans[size]
            if not spans or last > spans[-1][1]:  # two ranges are nested, or have nothing in common
                spans.append((first, last))

    def __contains__(self, address: str) -> bool:
        raw = packed(address)
        spans, value = self._spans[len(raw)], int.from_bytes(raw)
        at = bisect_right(spans, value, key=itemgetter(0))
        return at > 0 and value <= spans[at - 1][1]


def _span(text: str) -> tuple[int, int, int]:
    """The size of a range's addresses in bytes, and the first and the last address."""
    network, _, length = text.partition("/")
    raw = packed(network)
    mask = (1 << (8 * len(raw) - int(length))) - 1
    first = int.from_bytes(raw) & ~mask
    return len(raw), first, first | mask
