"""The node's addresses that serve node ports."""

import pytest

from kubeproxy.model.node import IPVSSettings
from tests.unit.model.make import IPV6, node

LOCAL = ("127.0.0.1", "192.168.0.1", "10.9.0.1", "10.10.0.1", "172.17.0.1")


class TestNodePortAddresses:
    def test_without_ranges_they_are_not_listed(self):
        """So that plans and rules do not change with addresses that come and go."""
        on = node()
        assert on.with_addresses(LOCAL) is on
        assert on.with_addresses(()) == on.with_addresses(LOCAL)

    @pytest.mark.parametrize(
        ("ranges", "addresses"),
        [
            (("192.168.0.0/16",), ("192.168.0.1",)),
            (("10.0.0.0/8", "192.168.0.1/32"), ("10.10.0.1", "10.9.0.1", "192.168.0.1")),
            (("127.0.0.0/8",), ("127.0.0.1",)),
            (("203.0.113.0/24",), ()),
        ],
    )
    def test_those_in_the_ranges_sorted(self, ranges, addresses):
        on = node(node_port_ranges=ranges)
        for local in (LOCAL, LOCAL[::-1], LOCAL * 2):  # two interfaces may have the same address of a link
            assert on.with_addresses(local).node_port_addresses == addresses

    def test_they_follow_the_host(self):
        on = node(node_port_ranges=("10.0.0.0/8",)).with_addresses(LOCAL)
        assert on.with_addresses(["10.9.0.1"]).node_port_addresses == ("10.9.0.1",)
        assert on.with_addresses([]).node_port_addresses == ()

    def test_another_family_has_none(self):
        assert node(IPV6, node_port_ranges=("::/1",)).with_addresses(LOCAL).node_port_addresses == ()

    @pytest.mark.parametrize(
        ("fields", "served"),
        [
            ({}, {"192.168.0.1", "10.9.0.1"}),
            ({"localhost_node_ports": True}, {"127.0.0.1", "192.168.0.1", "10.9.0.1"}),
            ({"node_port_ranges": ("10.0.0.0/8",)}, {"10.9.0.1"}),
            ({"node_port_ranges": ("10.0.0.0/8",), "localhost_node_ports": True}, {"10.9.0.1"}),
            ({"node_port_ranges": ("127.0.0.0/8",)}, set()),
            ({"node_port_ranges": ("127.0.0.0/8",), "localhost_node_ports": True}, {"127.0.0.1"}),
        ],
    )
    def test_served(self, fields, served):
        on = node(**fields).with_addresses(LOCAL)
        assert {a for a in ("127.0.0.1", "192.168.0.1", "10.9.0.1") if on.serves_node_ports(a)} == served

    def test_ipv6_loopback_never(self):
        assert not node(IPV6).serves_node_ports("::1")


def test_in_ipvs_mode_all_addresses_are_of_interest() -> None:
    local = ["192.0.2.1", "10.0.0.1", "127.0.0.1"]
    some = node(ipvs=IPVSSettings(), node_port_ranges=("192.0.2.0/24",)).with_addresses(local)
    assert some.node_port_addresses == ("192.0.2.1",)
    every = node(ipvs=IPVSSettings()).with_addresses(local)
    assert every.node_port_addresses == every.local_addresses == some.local_addresses
    assert every.local_addresses == ("10.0.0.1", "127.0.0.1", "192.0.2.1")
    assert node().with_addresses(local) == node()
