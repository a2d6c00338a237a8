"""The data of the node and the settings on which its plans depend; one value for each IP family."""

from collections.abc import Iterable, Mapping
from typing import Literal

from msgspec import Struct, structs

from kubeproxy.api.addresses import IPV4, IPV6, Family, contains, family_of, is_loopback
from kubeproxy.model.distribution import BalancingSupport

LOOPBACK: Mapping[Family, str] = {IPV4: "127.0.0.1", IPV6: "::1"}


class LocalTraffic(Struct, frozen=True, gc=False):
    """How packets of this node's own Pods are recognised.

    Attributes:
        by: their source is in a `range`, or they arrive on an `interface`, or on one whose name has a
            `prefix`.
        value: the canonical range, the interface's name, or the prefix.
    """

    by: Literal["range", "interface", "prefix"]
    value: str

    def matches(self, source: str, interface: str) -> bool:
        """Whether a packet with this source, received on this interface, was sent by a local Pod."""
        if self.by == "range":
            return contains(self.value, source)
        return interface == self.value if self.by == "interface" else interface.startswith(self.value)


class IPVSSettings(Struct, frozen=True, gc=False):
    """The settings of ipvs mode.

    Attributes:
        scheduler: the kernel's name of the scheduler; "" for round robin.
        exclude_cidrs: canonical ranges whose virtual servers belong to other programs.
        strict_arp: ARP requests are answered, and addresses announced, only on the interface of the address.
        timeouts: seconds after which idle TCP connections, those after a FIN, and UDP flows are removed; 0
            keeps the kernel's value.
    """

    scheduler: str = ""
    exclude_cidrs: tuple[str, ...] = ()
    strict_arp: bool = False
    timeouts: tuple[int, int, int] = (0, 0, 0)


class HNSSettings(Struct, frozen=True, gc=False):
    """The settings of kernelspace mode.

    Attributes:
        network: the name of the HNS network.
        source_vip: on overlay networks, the source address of packets to endpoints on other nodes.
        dsr: answers of endpoints go to the client directly, for traffic to ClusterIPs.
        root_endpoint: the name of the HNS endpoint of the host.
        health_vips: health checks of load balancer IPs are forwarded to the host.
        healthz_port: the port of the health server, which they reach if the Service has no health-check node
            port; 0 if there is none.
        healthz_everywhere: the health server listens at all addresses of the host.
    """

    network: str = ""
    source_vip: str = ""
    dsr: bool = False
    root_endpoint: str = ""
    health_vips: bool = False
    healthz_port: int = 0
    healthz_everywhere: bool = False


class ConnectSettings(Struct, frozen=True, gc=False):
    """The settings of ebpf mode.

    Attributes:
        everywhere: sockets of Pods are served, too; otherwise only those of the node's own namespace.
        peer_names: getpeername of a TCP socket returns the front, as with translated packets.
        strict: the mode does not start where the kernel cannot run its programs; otherwise nftables mode
            serves alone.
        cgroup: the folder of the cgroup whose processes are served; "" for the root of the host's.
        pins: the folder in which programs and maps are kept; "" for the usual one.
    """

    everywhere: bool = False
    peer_names: bool = True
    strict: bool = False
    cgroup: str = ""
    pins: str = ""


class NodeConfig(Struct, frozen=True, gc=False):
    """The node for one IP family.

    Attributes:
        family: the IP family.
        name: the Node's name; an endpoint with this nodeName is local.
        zone: the Node's zone, for topology hints.
        address: the Node's IP of this family; a loopback address if it is not known.
        local_traffic: how local Pods' packets are recognised; None if they cannot be.
        masquerade_all: masquerade all traffic to ClusterIPs.
        masquerade_mark: the bit in the packet mark with which a packet is masqueraded.
        node_port_ranges: the ranges whose local addresses accept node ports; empty for every local address.
        node_port_addresses: with ranges, the local addresses in them, sorted; in ipvs mode and with `listens`
            without ranges, too.
        local_addresses: in ipvs mode, all local addresses, sorted.
        localhost_node_ports: whether 127.0.0.1 accepts them too.
        localhost_relay: whether a relay serves node ports on loopback addresses, without rules.
        localhost_policy: whether externalTrafficPolicy applies to what that relay serves, as in v1.38.
        names_loopback: one of the configured ranges is of loopback addresses or, if it is not the range of
            all addresses, contains 127.0.0.1 or ::1.
        listens: sockets on the node's own addresses serve the fronts, without rules.
        relayed: a relay forwards connections; its own have `masquerade_mark` and are not matched by the rules
            of Services.
        relay_ports: the first and last port that a relay may use; (0, 0) for any.
        service_cidrs: the ranges of ClusterIPs of this family; empty if they are not known.
        external_ips: whether Services' externalIPs are used (gate AllowServiceExternalIPs, KEP-5707).
        ipvs: settings of ipvs mode; None in other modes.
        counters: in nftables mode, the kernel counts the connections of each endpoint.
        hns: settings of kernelspace mode; None in other modes.
        primary: whether the family is the node's primary one.
        connects: settings of ebpf mode; None in other modes.
        balancing: which ways to divide connections the mode has.
    """

    family: Family = IPV4
    name: str = ""
    zone: str = ""
    address: str = "127.0.0.1"
    local_traffic: LocalTraffic | None = None
    masquerade_all: bool = False
    masquerade_mark: int = 1 << 14
    node_port_ranges: tuple[str, ...] = ()
    node_port_addresses: tuple[str, ...] = ()
    local_addresses: tuple[str, ...] = ()
    localhost_node_ports: bool = False
    localhost_relay: bool = False
    localhost_policy: bool = False
    names_loopback: bool = False
    listens: bool = False
    relayed: bool = False
    relay_ports: tuple[int, int] = (0, 0)
    service_cidrs: tuple[str, ...] = ()
    external_ips: bool = True
    ipvs: IPVSSettings | None = None
    counters: bool = False
    hns: HNSSettings | None = None
    primary: bool = True
    connects: ConnectSettings | None = None
    balancing: BalancingSupport = BalancingSupport()

    @property
    def follows_addresses(self) -> bool:
        """Whether anything depends on the local addresses."""
        return (
            bool(self.node_port_ranges) or self.ipvs is not None or self.listens or self.connects is not None
        )

    def with_addresses(self, local: Iterable[str]) -> "NodeConfig":
        """A copy of the node with these local addresses."""
        if not self.follows_addresses:
            return self
        everything = tuple(sorted(set(local)))
        ranges = self.node_port_ranges
        mine = tuple([a for a in everything if not ranges or any(contains(cidr, a) for cidr in ranges)])
        kept = everything if self.ipvs else ()
        return structs.replace(self, node_port_addresses=mine, local_addresses=kept)

    def with_service_cidrs(self, cidrs: Iterable[str]) -> "NodeConfig":
        """A copy of the node with these ranges of ClusterIPs, of any family."""
        mine = tuple(sorted({cidr for cidr in cidrs if family_of(cidr) == self.family}))
        return structs.replace(self, service_cidrs=mine)

    def serves_node_ports(self, address: str) -> bool:
        """Whether a local address accepts node ports."""
        if is_loopback(address) and not self.localhost_node_ports:
            return False
        return not self.node_port_ranges or address in self.node_port_addresses
