"""What HNS refused, each piece with its message and the time of its next attempt.

A piece is a load balancer or an endpoint. Each is retried at its own pace, so that one that is refused for
ever does not delay another one that HNS refused a moment ago.
"""

import math
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from msgspec import Struct

from kubeproxy.backends.kernelspace.desired import DesiredBalancers
from kubeproxy.backends.kernelspace.names import BalancerKey
from kubeproxy.clock import Clock
from kubeproxy.model.plan import Key

FIRST_RETRY_SECONDS: Final = 1.0
LONGEST_RETRY_SECONDS: Final = 60.0

Piece = TypeVar("Piece", BalancerKey, str)


class RefusedPiece(Struct, frozen=True, gc=False):
    """A refused piece.

    Attributes:
        words: the message.
        delay: the seconds after its last attempt.
        due: the time of the next one.
    """

    words: str
    delay: float
    due: float


class RefusedPieces(Generic[Piece]):
    """Refused pieces of one kind."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._found: dict[Piece, RefusedPiece] = {}
        self._before: dict[Piece, RefusedPiece] = {}

    def __contains__(self, piece: Piece) -> bool:
        return piece in self._found

    def __len__(self) -> int:
        return len(self._found)

    def items(self) -> Iterator[tuple[Piece, str]]:
        """The pieces with their messages."""
        return ((piece, each.words) for piece, each in self._found.items())

    def add(self, piece: Piece, words: str) -> None:
        """A piece was refused. An attempt before its time does not change the time."""
        before = self._found.get(piece) or self._before.get(piece)
        now = self._clock.now()
        if before is None:
            self._found[piece] = RefusedPiece(words, FIRST_RETRY_SECONDS, now + FIRST_RETRY_SECONDS)
        elif now < before.due:
            self._found[piece] = RefusedPiece(words, before.delay, before.due)
        else:
            self._found[piece] = _later(before, words, now)

    def discard(self, piece: Piece) -> None:
        """A piece was done, or is not needed any more."""
        self._found.pop(piece, None)

    def begin(self) -> None:
        """Everything is tried: what is not added before `end` is not refused any more."""
        self._before |= self._found
        self._found.clear()

    def end(self) -> None:
        """Everything was tried."""
        self._before.clear()

    @property
    def next(self) -> float:
        """When the next piece is to be tried."""
        return min((each.due for each in self._found.values()), default=math.inf)

    def take_due(self) -> list[Piece]:
        """The pieces that are to be tried now; whatever comes of it, their next attempt is later."""
        now = self._clock.now()
        due = [piece for piece, each in self._found.items() if each.due <= now]
        for piece in due:
            self._found[piece] = _later(self._found[piece], self._found[piece].words, now)
        return due


def _later(before: RefusedPiece, words: str, now: float) -> RefusedPiece:
    delay = min(2 * before.delay, LONGEST_RETRY_SECONDS)
    return RefusedPiece(words, delay, now + delay)


class Refused:
    """What HNS refused of one IP family, until it is done.

    Attributes:
        balancers: load balancers.
        addresses: endpoints on other nodes, by their addresses.
        vips: endpoints of ClusterIPs.
        left: load balancers that cannot be deleted, by id.
        owners: the Services that had these, as far as that is known.
    """

    def __init__(self, clock: Clock) -> None:
        self.balancers = RefusedPieces[BalancerKey](clock)
        self.addresses = RefusedPieces[str](clock)
        self.vips = RefusedPieces[str](clock)
        self.left = RefusedPieces[str](clock)
        self.owners: dict[str, Key] = {}

    @property
    def next(self) -> float:
        """When the next piece is to be tried; never if it is infinite."""
        return min(self.balancers.next, self.addresses.next, self.vips.next, self.left.next)

    def begin(self) -> None:
        """Everything is tried now."""
        self.balancers.begin()
        self.addresses.begin()
        self.vips.begin()
        self.left.begin()

    def end(self) -> None:
        """Everything was tried."""
        self.balancers.end()
        self.addresses.end()
        self.vips.end()
        self.left.end()
        self.owners = {ident: owner for ident, owner in self.owners.items() if ident in self.left}

    def services(self, desired: DesiredBalancers) -> dict[Key, str]:
        """The Services concerned, each with the messages."""
        found: dict[Key, dict[str, None]] = {}
        for key, words in self.balancers.items():
            for service in desired.claimants(key):
                found.setdefault(service, {})[f"load balancer {key}: {words}"] = None
        for address, words in self.addresses.items():
            for key in desired.users.get(address, ()):
                for service in desired.claimants(key):
                    found.setdefault(service, {})[f"endpoint {address}: {words}"] = None
        for vip, words in self.vips.items():
            for service in desired.vips.get(vip, ()):
                found.setdefault(service, {})[f"endpoint of ClusterIP {vip}: {words}"] = None
        for ident, words in self.left.items():
            if ident in self.owners:
                found.setdefault(self.owners[ident], {})[words] = None
        return {service: "; ".join(words) for service, words in found.items()}
