import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeproxy.config.netparse import (
    parse_cidr,
    parse_ip,
    split_host_port,
)


@settings(deadline=None)
@given(st.ip_addresses())
def test_every_address_is_read_and_made_canonical(address):
    text = parse_ip(str(address))
    assert text is not None
    assert ipaddress.ip_address(text) == (getattr(address, "ipv4_mapped", None) or address)


@pytest.mark.parametrize(
    "text", ["", "1.2.3", "1.2.3.4.5", "256.1.1.1", "::1%eth0", "fd00::g", "1.2.3.4/8", "a", "1\0"]
)
def test_what_is_no_address(text):
    assert parse_ip(text) is None


def test_leading_zeros_are_decimal():
    assert parse_ip("010.001.0.007") == "10.1.0.7"


@settings(deadline=None)
@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_a_cidr_is_made_canonical(address, length):
    assert parse_cidr(f"{address}/{length}") == str(ipaddress.ip_network((address, length), strict=False))


@pytest.mark.parametrize(
    ("text", "canonical"),
    [("fd00:1::5/64", "fd00:1::/64"), ("::/0", "::/0"), ("10.20.30.40/16", "10.20.0.0/16"), ("010.1.1.1/8", "10.0.0.0/8"),
     ("::ffff:1.2.3.4/120", "1.2.3.0/24")],
)  # fmt: skip
def test_a_cidr_loses_its_host_bits(text, canonical):
    assert parse_cidr(text) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.0",
        "10.0.0.0/",
        "10.0.0.0/33",
        "fd00::/129",
        "10.0.0/8",
        "10.0.0.0/-1",
        "10.0.0.0/٣",
        " 10.0.0.0/8",
    ],
)
def test_what_is_no_cidr(text):
    assert parse_cidr(text) is None


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1.2.3.4:80", ("1.2.3.4", "80")),
        ("[::1]:80", ("::1", "80")),
        (":80", ("", "80")),
        ("1.2.3.4", None),
        ("::1", None),
        ("::1:80", None),
        ("[::1]", None),
        ("[::1", None),
        ("[::1]x:80", None),
        ("", None),
    ],
)
def test_host_and_port_are_split(text, parts):
    assert split_host_port(text) == parts
