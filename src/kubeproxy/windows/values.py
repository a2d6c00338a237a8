"""What HNS has, as values that can be compared: networks, endpoints and load balancers.

HNS returns the same thing in several forms, so the values have one: ids in lower case, addresses as Python's
`ipaddress` prints them, MAC addresses in lower case with dashes, endpoints and addresses in order.

Source: HNS_Schema of Microsoft's Virtualization-Documentation.
"""

import ipaddress
from typing import Final

from msgspec import Struct

REMOTE_ENDPOINT: Final = 1
"""Flag of an endpoint: it is not on this host."""

DSR: Final = 1
IPV6: Final = 2
"""Flags of a load balancer."""

ILB: Final = 1
LOCAL_ROUTED_VIP: Final = 2
USE_MUX: Final = 4
PRESERVE_DIP: Final = 8
VIP_EXTERNAL_IP: Final = 16
"""Flags of a port mapping. The last one is not in the published schema; Kubernetes uses it."""

SOURCE_IP_PROTOCOL: Final = 1
SOURCE_IP: Final = 2
"""How a port mapping distributes connections; 0 is by addresses, ports and protocol."""

OVERLAY: Final = "overlay"


class RemoteSubnet(Struct, frozen=True, gc=False):
    """A subnet that an overlay network reaches through another host.

    Attributes:
        prefix: the subnet.
        provider: the address of the host that has it, or "".
        isolation: the network's number on the wire (VSID).
        router_mac: the MAC address of the other host's router, or "".
    """

    prefix: str
    provider: str = ""
    isolation: int = 0
    router_mac: str = ""


class HcnNetwork(Struct, frozen=True, gc=False):
    """A network of HNS.

    Attributes:
        id: its id; another one after it was made again.
        name: its name.
        type: its type as HNS prints it, e.g. "L2Bridge", "Overlay".
        subnets: the subnets that are reached through other hosts.
    """

    id: str
    name: str
    type: str = ""
    subnets: tuple[RemoteSubnet, ...] = ()

    @property
    def overlay(self) -> bool:
        """Whether it encapsulates packets between hosts."""
        return self.type.lower() == OVERLAY


class HcnEndpoint(Struct, frozen=True, gc=False):
    """An endpoint of HNS: an address that load balancers can send to.

    Attributes:
        network: the id of its network.
        addresses: its IP addresses, one of each family at most.
        mac: its MAC address, or "".
        flags: REMOTE_ENDPOINT or 0.
        provider: on overlay networks the address of the host that has it, or "".
        name: its name, or "".
        id: its id; "" in a request: HNS chooses one.
    """

    network: str
    addresses: tuple[str, ...]
    mac: str = ""
    flags: int = 0
    provider: str = ""
    name: str = ""
    id: str = ""

    @property
    def remote(self) -> bool:
        """Whether it is not on this host."""
        return bool(self.flags & REMOTE_ENDPOINT)


class PortMapping(Struct, frozen=True, gc=False):
    """A port of a load balancer.

    Attributes:
        protocol: the protocol's number.
        internal_port: the port of the endpoints.
        external_port: the port of the load balancer.
        distribution: SOURCE_IP, SOURCE_IP_PROTOCOL or 0.
        flags: see the constants of this module.
    """

    protocol: int
    internal_port: int
    external_port: int
    distribution: int = 0
    flags: int = 0


class HcnLoadBalancer(Struct, frozen=True, gc=False):
    """A load balancer of HNS.

    Attributes:
        endpoints: the ids of its endpoints.
        vips: its addresses; none: all addresses of the host.
        mappings: its ports. The ones of this program have one; HNS returns others' without any, too.
        source_vip: the source address of packets to endpoints on other hosts, or "".
        flags: DSR, IPV6.
        id: its id; "" in a request: HNS chooses one.
    """

    endpoints: tuple[str, ...]
    vips: tuple[str, ...] = ()
    mappings: tuple[PortMapping, ...] = ()
    source_vip: str = ""
    flags: int = 0
    id: str = ""


class HnsVersion(Struct, frozen=True, gc=False, order=True):
    """The version of HNS, which decides what it can do. It is not the version of Windows."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


def same_id(text: str) -> str:
    """An id in the one form."""
    return text.strip("{}").lower()


def same_address(text: str) -> str:
    """An IP address in the one form; what is no address stays as it is."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text


def same_mac(text: str) -> str:
    """A MAC address in the one form: `00-15-5d-00-00-01`."""
    digits = "".join(c for c in text.lower() if c not in "-:.")
    return "-".join(digits[i : i + 2] for i in range(0, len(digits), 2))
