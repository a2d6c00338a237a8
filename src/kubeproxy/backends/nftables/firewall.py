"""Which clients may use a load balancer address: source ranges as elements of an interval set.

The kernel refuses overlapping intervals, so a range inside another one is left out. Two ranges either are
nested or have no address in common. So after sorting, one pass finds the nested ones.

All load balancer addresses and ports of a Service have the same ranges. They share one `Firewall`, and its
intervals are computed only when a difference needs them. A change of endpoints compares the old firewall with
the new one and computes nothing.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter

from kubeproxy.api.addresses import pack
from kubeproxy.backends.nftables import packing

_FEW = 16
"""Up to so many load balancer IPs of a Service may connect to each other."""


@dataclass(frozen=True)
class Firewall:
    """The clients of a Service's load balancer addresses.

    Attributes:
        ranges: the source ranges.
        load_balancer_ips: the addresses that they protect.
        node_address: the node's address.
    """

    ranges: tuple[str, ...]
    load_balancer_ips: tuple[str, ...]
    node_address: str

    @cached_property
    def ranges_only(self) -> list[tuple[bytes, bytes]]:
        """First and last address of each range that is not inside another one, sorted."""
        found: list[tuple[bytes, bytes]] = []
        ends = sorted(map(ends_of, self.ranges), key=lambda ends: (ends[0], -int.from_bytes(ends[1])))
        for first, last in ends:
            if not found or last > found[-1][1]:
                found.append((first, last))
        return found

    @cached_property
    def own(self) -> list[bytes]:
        """The load balancer IPs outside the ranges; admitted if the ranges contain the node's address."""
        if not self.load_balancer_ips:
            return []
        if not _holds(self.ranges_only, pack(self.node_address)):
            return []
        return [ip for ip in map(pack, self.load_balancer_ips) if not _holds(self.ranges_only, ip)]

    @cached_property
    def _own_set(self) -> frozenset[bytes]:
        return frozenset(self.own)

    def intervals(self, front: bytes) -> dict[tuple[bytes, bytes], None]:
        """First and last address of each interval of clients that a front admits; they are disjoint.

        A process of the node that connects to a load balancer IP of the node uses the same address as its
        source. With a few load balancer IPs each front admits all of them, as in the reference; with many
        only its own, because the elements would be as many as their square.
        """
        own = (
            self.own
            if len(self.own) <= _FEW
            else [ip for ip in (front[: len(self.own[0])],) if ip in self._own_set]
        )
        return dict.fromkeys([*self.ranges_only, *((ip, ip) for ip in own)])

    def elements(self, front: bytes, without: "Firewall | None" = None) -> Iterator[bytes]:
        """The elements for a front.

        Args:
            front: the packed front.
            without: intervals of this other firewall are left out.
        """
        left_out = without.intervals(front) if without is not None else {}
        return packing.intervals(front, [ends for ends in self.intervals(front) if ends not in left_out])


def _holds(intervals: list[tuple[bytes, bytes]], address: bytes) -> bool:
    """Whether one of some sorted, disjoint intervals contains a packed address."""
    at = bisect_right(intervals, address, key=itemgetter(0))
    return at > 0 and address <= intervals[at - 1][1]


def ends_of(cidr: str) -> tuple[bytes, bytes]:
    """The first and the last address of a canonical range."""
    network, _, length = cidr.partition("/")
    first = pack(network)
    bits = 8 * len(first)
    last = int.from_bytes(first) | ((1 << (bits - int(length))) - 1)
    return first, last.to_bytes(len(first))
