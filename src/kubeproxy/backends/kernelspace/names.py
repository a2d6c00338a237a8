"""What identifies load balancers and endpoints of HNS, which have no names that this program could choose."""

from typing import Final, NamedTuple

from kubeproxy import protocols
from kubeproxy.api.addresses import IPV4, IPV6, Family, join, pack
from kubeproxy.windows import values
from kubeproxy.windows.values import HcnLoadBalancer

PRESERVE: Final = values.USE_MUX | values.PRESERVE_DIP
"""Flags of port mappings whose packets keep their destination."""

MAC_PREFIX: Final = "02-11-"
"""How MAC addresses begin that are made of the IP address of an endpoint on another node."""


class BalancerKey(NamedTuple):
    """What distinguishes load balancers: HNS has one for each.

    Attributes:
        vip: its address; "" for all addresses of the host.
        protocol: the protocol's number.
        port: its port.
        ipv6: it is for IPv6; node ports of both families have no address.
    """

    vip: str
    protocol: int
    port: int
    ipv6: bool

    @property
    def family(self) -> Family:
        """Its IP family."""
        return IPV6 if self.ipv6 else IPV4

    def __str__(self) -> str:
        at = join(self.vip, self.port) if self.vip else f"node port {self.port}"
        family = " over IPv6" if self.ipv6 and not self.vip else ""
        return f"{at}/{protocols.NAMES.get(self.protocol, str(self.protocol)).lower()}{family}"


def key_of(balancer: HcnLoadBalancer) -> BalancerKey | None:
    """The key of a load balancer; None if it is none that this program makes."""
    if len(balancer.mappings) != 1 or len(balancer.vips) > 1:
        return None
    (mapping,) = balancer.mappings
    vip = balancer.vips[0] if balancer.vips else ""
    ipv6 = ":" in vip if vip else bool(balancer.flags & values.IPV6)
    return BalancerKey(vip, mapping.protocol, mapping.external_port, ipv6)


def made_up_mac(address: str) -> str:
    """The MAC address of the endpoint of an address on another node; it is never on a wire.

    The reference has the same: of IPv6 addresses the last four bytes in reverse order.
    """
    packed = pack(address)
    if len(packed) == 16:
        packed = packed[:-5:-1]
    return MAC_PREFIX + packed.hex("-")
