"""Which clients may use a load balancer address: source ranges as elements of an interval set.

The kernel refuses overlapping intervals, so a range inside another one is left out. Two ranges either are nested or have no
address in common. So after sorting, one pass finds the nested ones.

All load balancer addresses and ports of a Service have the same ranges. They share one `Firewall`, and its intervals are
computed only when a difference needs them. A change of endpoints compares the old firewall with the new one and computes nothing.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter

from kubeproxy.api.addresses import pack
from kubeproxy.backends.nftables import packing


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
    def intervals(self) -> dict[tuple[bytes, bytes], None]:
        """First and last address of each interval, sorted and disjoint.

        If the ranges contain the node's address, the node may also use its load balancer addresses as source addresses.
        """
        found: dict[tuple[bytes, bytes], None] = {}
        end = b""
        for first, last in sorted(
            map(_ends, self.ranges), key=lambda ends: (ends[0], -int.from_bytes(ends[1]))
        ):
            if last > end:
                found[first, last] = None
                end = last
        intervals = list(found)
        if _holds(intervals, pack(self.node_address)):
            own = [pack(ip) for ip in self.load_balancer_ips]
            found.update(dict.fromkeys((ip, ip) for ip in own if not _holds(intervals, ip)))
        return found

    def elements(self, front: bytes, without: "Firewall | None" = None) -> Iterator[bytes]:
        """The elements for a front.

        Args:
            front: the packed front.
            without: intervals of this other firewall are left out.
        """
        left_out = without.intervals if without is not None else {}
        for first, last in self.intervals:
            if (first, last) not in left_out:
                yield packing.between(front + first, front + last)


def _holds(intervals: list[tuple[bytes, bytes]], address: bytes) -> bool:
    """Whether one of some sorted, disjoint intervals contains a packed address."""
    at = bisect_right(intervals, address, key=itemgetter(0))
    return at > 0 and address <= intervals[at - 1][1]


def _ends(cidr: str) -> tuple[bytes, bytes]:
    """The first and the last address of a canonical range."""
    network, _, length = cidr.partition("/")
    first = pack(network)
    bits = 8 * len(first)
    last = int.from_bytes(first) | ((1 << (bits - int(length))) - 1)
    return first, last.to_bytes(len(first))
