"""One source for each kind that rules or plans distinguish.

Ranges of addresses divide all addresses into regions that are inside the same ranges. Each region begins at
the first address of a range or behind the last one of a range, so one address of each is found by looking at
these.
"""

from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network
from typing import Final

from kubeproxy.api.addresses import IPV4, Family

_DEFAULTS: Final = {IPV4: ("198.18.0.1", "192.88.99.1"), "IPv6": ("2001:2::1", "3fff::1")}
"""Addresses that are outside of the ranges in use: those for benchmarks and documentation."""


def representatives(ranges: Iterable[str], family: Family) -> Iterator[str]:
    """One address of each region, of no special kind where there is a choice.

    Args:
        ranges: canonical ranges of the family.
        family: the family.
    """
    networks = {ip_network(cidr) for cidr in ranges}
    seen: set[frozenset[object]] = set()
    for candidate in _candidates(networks, family):
        address = ip_address(candidate)
        region = frozenset(network for network in networks if address in network)
        if region not in seen and _usable(address):
            seen.add(region)
            yield candidate


def _candidates(networks: Iterable[object], family: Family) -> Iterator[str]:
    yield from _DEFAULTS[family]
    bits = 32 if family == IPV4 else 128
    for network in sorted(networks, key=str):
        first, last = int(network.network_address), int(network.broadcast_address)  # type: ignore[attr-defined]
        for number in (first + 1, first, last, last + 1):
            if 0 <= number < 1 << bits and (first <= number <= last or number == last + 1):
                yield str(ip_address(number) if family == IPV4 else ip_address(number.to_bytes(16)))


def _usable(address: object) -> bool:
    return not (address.is_multicast or address.is_unspecified or address.is_loopback)  # type: ignore[attr-defined]
