"""A Service's plan becomes fronts and words.

What a socket of this node must get is simpler than what a packet must: it comes from this node, so the policy
Local does not apply to external fronts, and nothing needs to be masqueraded, because the source address is
chosen for the endpoint. What cannot be decided at connect time is left to nftables mode (PASS):

    packets are dropped                          a socket can only be refused
    fronts for some sources only                 the source address is not chosen yet
    Maglev hashing                               the same
    ports of file systems in old kernels         they would keep the address of an endpoint that is gone
    the Service's annotation says so

With the scope `host` only sockets of the node's own namespace are served (OWN). So it is with `all` if it is
not known which packets are those of local Pods, and at ClusterIPs if everything is masqueraded.
"""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from kubeproxy.api.addresses import is_loopback, pack
from kubeproxy.backends.ebpf import layout
from kubeproxy.backends.ebpf.layout import OWN, PASS, STICKY
from kubeproxy.model.distribution import Distribution
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import PortId, PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint

IN_KERNEL_CLIENTS: Final = frozenset({2049, 445})
"""NFS and SMB: clients in the kernel keep the address they were connected to, before Linux 6.6.

Source: commit 0bdf399342c5, "net: Avoid address overwrite in kernel_connect".
"""

INTERNAL, EXTERNAL, LEFT = 0, 1, 2
"""Which of the words of a port a front leads to; LEFT: to the one that always passes."""


class WordPlan(Struct, frozen=True, gc=False):
    """What a word must be: its flags, and the endpoints of its block, each as often as its weight says."""

    flags: int
    endpoints: tuple[Endpoint, ...] = ()


class PortFronts(Struct, frozen=True, gc=False):
    """What a Service port needs.

    Attributes:
        fronts: the keys of its fronts, and which word each leads to.
        words: the two words.
        timeout: nanoseconds after which a client's endpoint is forgotten; 0 without session affinity.
    """

    fronts: dict[bytes, int]
    words: tuple[WordPlan, WordPlan]
    timeout: int = 0


PASSED: Final = WordPlan(PASS)
BOTH_PASSED: Final = (PASSED, PASSED)


class FrontCompiler:
    """Compiles the plans of one family."""

    def __init__(self, node: NodeConfig, left: frozenset[int] = frozenset()) -> None:
        """Makes it.

        Args:
            node: the node.
            left: the ports that are left to nftables mode.
        """
        assert node.connects is not None
        self.node = node
        self._left = left
        everywhere = node.connects.everywhere and node.local_traffic is not None
        self._external = 0 if everywhere else OWN
        self._internal = 0 if everywhere and not node.masquerade_all else OWN

    def all(self, plans: Iterable[ServicePlan]) -> dict[PortId, PortFronts]:
        """What all ports of some Services need."""
        compile_ = self.compile
        return {
            (port.name, port.protocol): compile_(port)
            for plan in plans
            for port in plan.ports
            if port.protocol in layout.PROTOCOLS
        }

    def ports(self, plan: ServicePlan | None) -> Iterable[PortPlan]:
        """The ports whose sockets can be connected to endpoints."""
        return [p for p in plan.ports if p.protocol in layout.PROTOCOLS] if plan is not None else ()

    def compile(self, port: PortPlan) -> PortFronts:
        """What a port needs."""
        return PortFronts(self.fronts(port), self.words(port), timeout(port))

    def fronts(self, port: PortPlan) -> dict[bytes, int]:
        """The keys of a port's fronts."""
        family, protocol = self.node.family, port.protocol
        left = not port.at_connect or port.port in self._left
        found: dict[bytes, int] = {}
        for address in port.load_balancer_ips:
            kept = left or port.source_ranges
            found[layout.front(address, protocol, port.port, family)] = LEFT if kept else EXTERNAL
        outside = LEFT if left or port.external_ranges else EXTERNAL
        for address in port.external_ips:
            found.setdefault(layout.front(address, protocol, port.port, family), outside)
        if port.node_port:
            found[layout.front("", protocol, port.node_port, family)] = outside
        if port.cluster_ip:
            found[layout.front(port.cluster_ip, protocol, port.port, family)] = LEFT if left else INTERNAL
        return found

    def words(self, port: PortPlan) -> tuple[WordPlan, WordPlan]:
        """The words of a port."""
        if not port.at_connect or port.port in self._left:
            return BOTH_PASSED
        sticky = STICKY if port.affinity else 0
        internal = external = PASSED
        if port.cluster_ip:
            endpoints = port.internal_endpoints
            if endpoints or not port.any:
                internal = _word(self._internal | sticky, endpoints, port.internal_distribution)
        if port.node_port or port.external_ips or port.load_balancer_ips:
            endpoints = port.cluster if port.any else ()
            external = _word(self._external | sticky, endpoints, port.cluster_distribution)
        return internal, external

    def hosts(self) -> dict[bytes, int]:
        """The addresses of the node that serve node ports, and their flags."""
        return {
            pack(address): OWN if is_loopback(address) else self._external
            for address in self.node.node_port_addresses
            if self.node.serves_node_ports(address)
        }


def timeout(port: PortPlan) -> int:
    """Nanoseconds after which a client's endpoint is forgotten."""
    return 1_000_000_000 * port.affinity


def _word(flags: int, endpoints: tuple[Endpoint, ...], distribution: Distribution | None) -> WordPlan:
    if distribution is not None and distribution.weights:
        pairs = zip(endpoints, distribution.weights, strict=True)
        endpoints = tuple([each for each, weight in pairs for _ in range(weight)])
    if len(endpoints) > layout.MOST_ENDPOINTS:
        return PASSED
    # Without endpoints there is nothing to stick to.
    return WordPlan(flags, endpoints) if endpoints else WordPlan(flags & ~STICKY)
