"""Packets and those who send them, for the tests of verdicts."""

import pytest

from kubeproxy.api.rows import PortRow, Protocol, ServiceRow
from kubeproxy.model.node import LocalTraffic
from kubeproxy.model.plan import ServicePlan
from kubeproxy.model.verdict import Book, Packet
from tests.fakes.manners import IPTABLES, NFTABLES
from tests.unit.model.make import node, service

NODE = "192.168.0.1"
LOCAL = ("127.0.0.1", NODE, "10.1.2.254")
POD = ("10.1.2.100", "cni0")
REMOTE_POD = ("10.1.9.9", "eth0")
CLIENT = ("203.0.113.5", "eth0")
PODS = LocalTraffic("range", "10.1.2.0/24")
BOTH = pytest.mark.parametrize("manners", [IPTABLES, NFTABLES], ids=["iptables", "nftables"])


def book(*plans: ServicePlan, manners=IPTABLES, on=None, local=LOCAL, **fields) -> Book:
    """The book of a node."""
    return Book(plans, on or node(local_traffic=PODS), local, manners=manners, **fields)


def send(source, destination, port=80, protocol: Protocol = "TCP") -> Packet:
    """A packet of a client (address and interface), or of this node from an address."""
    address, interface = source if isinstance(source, tuple) else (source, "")
    return Packet(address, destination, port, protocol, interface)


def reachable(**fields) -> ServiceRow:
    """A Service with every kind of front."""
    return service(
        **{
            "ports": (PortRow("", "TCP", 80, 30080),),
            "external_ips": ("192.0.2.10",),
            "load_balancer_ips": ("198.51.100.1", "198.51.100.2"),
            **fields,
        }
    )
