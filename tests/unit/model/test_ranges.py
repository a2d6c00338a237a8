"""Ranges without others: the standard library says the same."""

from ipaddress import IPv4Network, collapse_addresses, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubeproxy.api.addresses import IPV4, IPV6
from kubeproxy.model.ranges import NO_CLIENT, without

CIDRS = st.builds(
    lambda number, length: str(ip_network((number, length), strict=False)),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 8, 15, 16, 24, 31, 32]),
)


@pytest.mark.parametrize(
    ("allowed", "denied", "expected"),
    [
        ((), (), ()),
        (("10.0.0.0/8",), (), ("10.0.0.0/8",)),
        ((), ("128.0.0.0/1",), ("0.0.0.0/1",)),
        (("10.0.0.0/8",), ("10.128.0.0/9", "10.64.0.0/10"), ("10.0.0.0/10",)),
        (("10.0.0.0/8",), ("192.0.2.0/24",), ("10.0.0.0/8",)),
        (("10.0.0.0/31",), ("10.0.0.1/32",), ("10.0.0.0/32",)),
        ((), ("0.0.0.0/0",), ("0.0.0.0/32",)),
    ],
)
def test_ranges(allowed: tuple[str, ...], denied: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert without(allowed, denied, IPV4) == expected


def test_ipv6() -> None:
    assert without((), ("8000::/1",), IPV6) == ("::/1",)
    assert without(("2001:db8::/32",), ("::/0",), IPV6) == (NO_CLIENT[IPV6],)


@given(
    st.lists(CIDRS, max_size=4), st.lists(CIDRS, min_size=1, max_size=4), st.lists(st.integers(0, 2**32 - 1))
)
def test_who_is_left(allowed: list[str], denied: list[str], more: list[int]) -> None:
    found = [IPv4Network(cidr) for cidr in without(tuple(allowed), denied, IPV4)]
    assert list(collapse_addresses(found)) == sorted(found)
    networks = [ip_network(cidr) for cidr in (*allowed, *denied)]
    edges = [int(end) + step for net in networks for end in (net[0], net[-1]) for step in (-1, 0, 1)]
    for number in {number for number in (*more, *edges) if 0 < number < 2**32}:
        address = ip_address(number)
        wanted = (not allowed or any(address in ip_network(cidr) for cidr in allowed)) and not any(
            address in ip_network(cidr) for cidr in denied
        )
        assert any(address in net for net in found) == wanted
