"""Load balancers and endpoints as commands of the PowerShell module for HNS that would make them.

A load balancer is one line for itself and one for each of its endpoints, so that each can be compared.
"""

from collections.abc import Iterable, Iterator

from kubeproxy import protocols
from kubeproxy.api.addresses import IPV6, Family, join
from kubeproxy.backends.kernelspace.compile import FrontBalancer, compile_service
from kubeproxy.backends.kernelspace.names import BalancerKey, made_up_mac
from kubeproxy.backends.kernelspace.network import HnsFacts
from kubeproxy.model.plan import ServicePlan
from kubeproxy.windows import values
from kubeproxy.windows.values import HcnEndpoint, HcnLoadBalancer, PortMapping

_PORT_FLAGS = {
    values.ILB: " -ILB",
    values.LOCAL_ROUTED_VIP: " -LocalRoutedVip",
    values.USE_MUX: " -UseMux",
    values.PRESERVE_DIP: " -PreserveDip",
    values.VIP_EXTERNAL_IP: " -VipExternalIP",
}
_DISTRIBUTIONS = {
    0: "",
    values.SOURCE_IP_PROTOCOL: " -Distribution SourceIPProtocol",
    values.SOURCE_IP: " -Distribution SourceIP",
}


def front(vip: str, mapping: PortMapping, *, ipv6: bool) -> str:
    """What identifies a load balancer."""
    at = f" -Vip {vip}" if vip else " -IPv6" if ipv6 else ""
    protocol = protocols.NAMES.get(mapping.protocol, str(mapping.protocol)).lower()
    return f"New-HnsLoadBalancer{at} -Protocol {protocol} -ExternalPort {mapping.external_port}"


def balancer(given: HcnLoadBalancer, addresses: Iterable[str]) -> Iterator[str]:
    """A load balancer.

    Args:
        given: the load balancer.
        addresses: the addresses of its endpoints.
    """
    (mapping,) = given.mappings
    start = front(given.vips[0] if given.vips else "", mapping, ipv6=bool(given.flags & values.IPV6))
    flags = "".join(name for flag, name in _PORT_FLAGS.items() if mapping.flags & flag)
    yield (
        f"{start} -InternalPort {mapping.internal_port}"
        + (" -DSR" if given.flags & values.DSR else "")
        + flags
        + _DISTRIBUTIONS.get(mapping.distribution, f" -Distribution {mapping.distribution}")
        + (f" -SourceVip {given.source_vip}" if given.source_vip else "")
    )
    for address in sorted(addresses):
        yield f"{start} -Endpoint {join(address, mapping.internal_port)}"


def endpoint(address: str, mac: str, provider: str) -> Iterator[str]:
    """An endpoint on another node, or that of a ClusterIP."""
    where = f" -ProviderAddress {provider}" if provider else ""
    yield f"New-HnsEndpoint -RemoteEndpoint -IPAddress {address} -MacAddress {mac}{where}"


def address_of(given: HcnEndpoint, family: Family) -> str:
    """The address of an endpoint under a family; "" if it has none."""
    ipv6 = family == IPV6
    return next((address for address in given.addresses if (":" in address) == ipv6), "")


def service(plan: ServicePlan, facts: HnsFacts, host: str) -> list[str]:
    """What a Service needs.

    Args:
        plan: its plan.
        facts: what is known of HNS and its network.
        host: the address of the endpoint of the host.
    """
    needs = compile_service(plan, facts)
    found: dict[str, None] = {}
    for vip in needs.vips:
        found.update(dict.fromkeys(endpoint(vip, facts.host_mac, facts.address)))
    for each in needs.balancers.values():
        for target in each.targets:
            if target.address and not target.local:
                found.update(dict.fromkeys(_remote(target.address, facts)))
    for each in needs.balancers.values():
        wanted = planned(each)
        found.update(dict.fromkeys(balancer(wanted, [t.address or host for t in each.targets])))
    return list(found)


def planned(given: FrontBalancer) -> HcnLoadBalancer:
    """A load balancer without the ids of its endpoints."""
    key: BalancerKey = given.key
    mapping = PortMapping(key.protocol, given.internal_port, key.port, given.distribution, given.port_flags)
    return HcnLoadBalancer((), (key.vip,) if key.vip else (), (mapping,), given.source_vip, given.flags)


def _remote(address: str, facts: HnsFacts) -> Iterator[str]:
    provider = (facts.provider(address) or facts.address) if facts.overlay else ""
    return endpoint(address, made_up_mac(address), provider)
