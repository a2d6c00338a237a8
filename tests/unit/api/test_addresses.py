"""Addresses and ranges, with the standard library's ipaddress module as the yardstick."""

import ipaddress
import struct
from socket import AF_INET6, inet_pton

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kubeproxy.api.addresses import (
    FAMILIES,
    contains,
    family_of,
    is_everything,
    is_link_local,
    is_loopback,
    join,
    pack,
    parse_address,
    parse_range,
    unpack,
)


def meant(address):
    """What Kubernetes takes an address for: an IPv4-mapped IPv6 address is IPv4."""
    return getattr(address, "ipv4_mapped", None) or address


def is_mapped(address):
    return meant(address) != address


mapped = st.ip_addresses(v=4).map(lambda a: ipaddress.IPv6Address(f"::ffff:{a}"))
addresses = st.ip_addresses() | mapped
networks = (
    st.ip_addresses()
    .flatmap(
        lambda a: st.integers(0, a.max_prefixlen).map(lambda n: ipaddress.ip_network((a, n), strict=False))
    )
    .filter(lambda network: not is_mapped(network.network_address))
)


class TestAddresses:
    @given(addresses)
    def test_means_what_the_text_says(self, address):
        canonical = parse_address(str(address))
        assert ipaddress.ip_address(canonical) == meant(address)
        assert family_of(canonical) == f"IPv{meant(address).version}"

    @given(st.ip_addresses(v=6))
    def test_all_spellings_of_an_address_become_one(self, address):
        groups = struct.unpack("!8H", address.packed)
        spellings = {
            str(address),
            str(address).upper(),
            ":".join(f"{group:04x}" for group in groups),
            ":".join(f"{group:x}" for group in groups),
        }
        assert len({parse_address(text) for text in spellings}) == 1

    @given(addresses)
    def test_canonical_is_a_fixed_point(self, address):
        canonical = parse_address(str(address))
        assert parse_address(canonical) == canonical
        assert unpack(pack(canonical)) == canonical
        assert pack(canonical) == meant(address).packed

    @given(st.lists(st.integers(0, 255), min_size=4, max_size=4), st.data())
    def test_leading_zeros_are_decimal(self, parts, data):
        widths = data.draw(st.lists(st.integers(1, 3), min_size=4, max_size=4))
        sloppy = ".".join(f"{part:0{width}}" for part, width in zip(parts, widths, strict=True))
        assert parse_address(sloppy) == ".".join(map(str, parts))

    @pytest.mark.parametrize(
        ("text", "canonical"),
        [
            ("172.30.0.041", "172.30.0.41"),
            ("192.168.099.022", "192.168.99.22"),
            ("10.180.00.001", "10.180.0.1"),
            ("008.009.010.011", "8.9.10.11"),
            ("FD00:0:0:0:0:0:0:00AB", "fd00::ab"),
            ("::FFFF:10.1.2.3", "10.1.2.3"),
            ("0:0:0:0:0:ffff:0a01:0203", "10.1.2.3"),
            ("2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"),
            ("2001:0:1:2:3:4:5:6", "2001:0:1:2:3:4:5:6"),
            ("::", "::"),
        ],
    )
    def test_sloppy_spellings(self, text, canonical):
        assert parse_address(text) == canonical

    @pytest.mark.parametrize(
        "text",
        [
            "", "1", "1.2.3", "1.2.3.4.5", "1.2.3.256", "1.2.3.0004", "-1.2.3.4", "1.2.3.4 ", " 1.2.3.4", "1.2.3.4\n",
            "1.2.3.4\0", "0x7f.1.1.1", "1.2.3.4/32", "a.b.c.d", "localhost", "٣.2.3.4", "\ud800", "::g", ":::", "1:2",
            "fe80::1%eth0", "[::1]", "::1 ", "::1\n", "12345::", "1:2:3:4:5:6:7:8:9", "::ffff:1.2.3.256",
        ],
    )  # fmt: skip
    def test_refused(self, text):
        with pytest.raises(ValueError, match="is not an IP address"):
            parse_address(text)

    @given(st.text(max_size=40) | st.text("0123456789abcdef.:%/ \n", max_size=40))
    def test_whatever_is_taken_is_an_address(self, text):
        try:
            canonical = parse_address(text)
        except ValueError:
            return
        assert str(meant(ipaddress.ip_address(canonical))) == canonical or _compatible(canonical)

    def test_a_long_text_is_not_repeated_whole(self):
        with pytest.raises(ValueError, match="is not an IP address") as caught:
            parse_address("1" * 100_000)
        assert len(str(caught.value)) < 200


def _compatible(canonical):
    """The C library prints the last 32 bits of an IPv4-compatible address with dots; ipaddress does not."""
    return inet_pton(AF_INET6, canonical).startswith(bytes(12))


class TestRanges:
    @given(networks, st.data())
    def test_host_bits_are_cleared(self, network, data):
        inside = network[data.draw(st.integers(0, network.num_addresses - 1))]
        assume(not is_mapped(inside))
        assert ipaddress.ip_network(parse_range(f"{inside}/{network.prefixlen}")) == network

    @given(networks)
    def test_canonical_is_a_fixed_point(self, network):
        canonical = parse_range(str(network))
        assert parse_range(canonical) == canonical
        assert family_of(canonical) == f"IPv{network.version}"
        assert is_everything(canonical) == (network.prefixlen == 0)

    @given(networks, st.ip_addresses(), st.data())
    def test_contains(self, network, anywhere, data):
        inside = network[data.draw(st.integers(0, network.num_addresses - 1))]
        cidr = parse_range(str(network))
        for address in (inside, anywhere):
            if not is_mapped(address):
                assert contains(cidr, parse_address(str(address))) == (address in network)

    @given(st.ip_addresses(v=4), st.integers(96, 128))
    def test_a_mapped_range_is_ipv4(self, address, length):
        expected = ipaddress.ip_network((address, length - 96), strict=False)
        assert parse_range(f"::ffff:{address}/{length}") == str(expected)

    @pytest.mark.parametrize(
        ("text", "canonical"),
        [
            ("203.0.113.000/025", "203.0.113.0/25"),
            ("203.0.113.255/25", "203.0.113.128/25"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("255.255.255.255/0", "0.0.0.0/0"),
            ("FD00:10::7/32", "fd00:10::/32"),
            ("::/0", "::/0"),
            ("::1/128", "::1/128"),
        ],
    )
    def test_sloppy_spellings(self, text, canonical):
        assert parse_range(text) == canonical

    @pytest.mark.parametrize(
        "text",
        [
            "", "/", "/8", "10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/+8", "10.0.0.0/8/8",
            "10.0.0.0/8 ", "10.0.0.0/ 8", "10.0.0.0/255.0.0.0", "10.0.0.0/1_0", "10.0.0.0/٨", "10/8", "::/129", "fd00::",
            "::ffff:10.0.0.0/95", "10.0.0.0/" + "9" * 5000,
        ],
    )  # fmt: skip
    def test_refused(self, text):
        with pytest.raises(ValueError, match="is not a CIDR range") as caught:
            parse_range(text)
        assert len(str(caught.value)) < 200

    @pytest.mark.parametrize("cidr", ["10.0.0.0/10", "fd00::/20"])
    def test_a_length_that_ends_in_zero_is_not_everything(self, cidr):
        assert not is_everything(cidr)

    @pytest.mark.parametrize(
        ("cidr", "address"), [("0.0.0.0/0", "::1"), ("::/0", "1.2.3.4"), ("::/96", "0.0.0.1")]
    )
    def test_contains_nothing_of_the_other_family(self, cidr, address):
        assert not contains(cidr, address)


@given(addresses)
def test_loopback(address):
    assert is_loopback(parse_address(str(address))) == meant(address).is_loopback


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("fe80::1", True), ("febf:ffff::1", True), ("fec0::1", False), ("fe7f::1", False), ("fd00::fe80", False),
        ("169.254.0.1", True), ("169.253.0.1", False), ("10.254.169.1", False), ("::1", False),
    ],
)  # fmt: skip
def test_is_link_local(address, local):
    assert is_link_local(address) is local


def test_families_are_ipv4_first():
    assert FAMILIES == ("IPv4", "IPv6")


@pytest.mark.parametrize(
    ("address", "text"), [("10.0.0.1", "10.0.0.1:80"), ("fd00::1", "[fd00::1]:80"), ("::1", "[::1]:80")]
)
def test_join(address, text):
    assert join(address, 80) == text
