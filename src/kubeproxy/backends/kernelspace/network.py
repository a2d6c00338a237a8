"""What the mode needs to know of HNS and of its network: a value that plans are compiled with."""

from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import force_setattr, replace

from kubeproxy.api.addresses import Family, parse_address
from kubeproxy.backends.kernelspace.subnets import SubnetTable
from kubeproxy.model.node import HNSSettings, NodeConfig
from kubeproxy.model.select import Endpoint
from kubeproxy.windows.features import Feature, supports
from kubeproxy.windows.values import HcnEndpoint, HcnNetwork, HnsVersion


class HnsFacts(Struct, frozen=True):
    """All that a Service's needs depend on besides its plan.

    Attributes:
        family: the IP family.
        address: the node's address.
        settings: the settings of the mode.
        version: the version of HNS.
        network: the network; None if it is not known.
        root: the id of the endpoint of the host, if health checks are forwarded; "" if there is none.
        host_mac: the MAC address of the host, which endpoints of ClusterIPs have; "" outside of overlay
            networks.
    """

    family: Family
    address: str
    settings: HNSSettings
    version: HnsVersion
    network: HcnNetwork | None = None
    root: str = ""
    host_mac: str = ""
    _subnets: SubnetTable = SubnetTable()

    def __post_init__(self) -> None:
        force_setattr(self, "_subnets", SubnetTable(self.network.subnets if self.network is not None else ()))

    @property
    def overlay(self) -> bool:
        """Whether the network encapsulates packets between hosts."""
        return self.network is not None and self.network.overlay

    @property
    def dsr(self) -> bool:
        """Whether traffic to ClusterIPs is answered directly."""
        return self.settings.dsr and self.has_dsr

    @property
    def has_dsr(self) -> bool:
        """Whether HNS can have answers sent to clients directly."""
        return supports(self.version, Feature.DSR)

    @property
    def has_affinity(self) -> bool:
        """Whether HNS has session affinity."""
        return supports(self.version, Feature.SESSION_AFFINITY)

    def is_root(self, endpoint: HcnEndpoint) -> bool:
        """Whether an endpoint is, or may be, the one of the host that health checks are forwarded to."""
        if not self.settings.health_vips:
            return False
        if self.root:
            return endpoint.id == self.root
        return endpoint.name.lower() == self.settings.root_endpoint.lower()

    @property
    def health_vips(self) -> bool:
        """Whether health checks of load balancer IPs are forwarded to the host."""
        return self.settings.health_vips and bool(self.root)

    @property
    def healthz_port(self) -> int:
        """The port of the health server; 0 if there is none."""
        return self.settings.healthz_port

    def provider(self, address: str) -> str:
        """The node that has an address, by its own address; "" if no subnet of the network has it.

        An address that is a node's own is its provider. Of several subnets the last one counts.
        """
        return self._subnets.provider(address)

    def is_foreign(self, address: str) -> bool:
        """Whether an address on another node is that of a node, or of no node of the network."""
        return self.provider(address) in {"", address}

    def source_vip(self, endpoints: Iterable[Endpoint]) -> str:
        """The source address of packets to endpoints on other nodes; "" outside of overlay networks.

        It is the node's address if one of them is no Pod of the network, because only Pods can answer to the
        source VIP. HNS has one for all endpoints of a load balancer.
        """
        if not self.overlay:
            return ""
        if any(not each.local and self.is_foreign(each.address) for each in endpoints):
            return self.address
        return self.settings.source_vip


def source_vip_trouble(settings: HNSSettings) -> str:
    """Why the source VIP cannot be used on an overlay network; "" if it can."""
    try:
        parse_address(settings.source_vip)
    except ValueError as e:
        given = f"{settings.source_vip!r} is no address" if settings.source_vip else "it is not set"
        return f"the overlay network {settings.network} needs --source-vip, and {given}{f': {e}' if settings.source_vip else ''}"
    return ""


def assumed(node: NodeConfig) -> HnsFacts:
    """What is assumed where no HNS can be asked: the newest version; with a source VIP, overlay."""
    facts = facts_of(node, HnsVersion(1 << 16, 0))
    kind = "Overlay" if facts.settings.source_vip else "L2Bridge"
    return replace(facts, network=HcnNetwork("", facts.settings.network, kind), root="host", host_mac="")


def facts_of(node: NodeConfig, version: HnsVersion) -> HnsFacts:
    """What is known before the network was looked up."""
    return HnsFacts(node.family, node.address, node.hns or HNSSettings(), version)
