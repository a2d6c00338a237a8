"""The iptables rules of a node: what is around the virtual servers.

A packet for a Service is accepted in nat KUBE-SERVICES, marked for masquerading on the way where that is
needed, and meets its virtual server in the kernel's INPUT hook. A rule that looks up a set exists only while
the set has elements, as in the reference; so rules change with the first and the last Service of a kind, and
with Services that limit their load balancer's sources.

Text is spelled as `iptables-save` prints it.
"""

from collections.abc import Collection, Iterator

from kubeproxy.api.addresses import IPV4
from kubeproxy.backends.ipvs import names
from kubeproxy.backends.programs import FILTER, NAT
from kubeproxy.backends.shared import matches, static_chains
from kubeproxy.backends.shared.static_chains import Chain
from kubeproxy.model.node import NodeConfig

Chains = dict[Chain, list[str]]

OUT: Chain = (FILTER, names.FILTER_OUT)
"""The one chain with rules of Services."""

_PORTALS = '-m comment --comment "kubernetes service portals"'
_ACCESS = '-m comment --comment "kubernetes ipvs access filter"'
_FIREWALL = '-m comment --comment "kube-proxy firewall rules"'
HOOKS: tuple[tuple[Chain, str], ...] = (
    ((NAT, "OUTPUT"), f"{_PORTALS} -j {names.SERVICES}"),
    ((NAT, "PREROUTING"), f"{_PORTALS} -j {names.SERVICES}"),
    (
        (NAT, "POSTROUTING"),
        f'-m comment --comment "kubernetes postrouting rules" -j {names.POSTROUTING}',
    ),
    ((FILTER, "INPUT"), f"{_ACCESS} -j {names.FILTER_IN}"),
    ((FILTER, "INPUT"), f"{_FIREWALL} -j {names.PROXY_FIREWALL}"),
    ((FILTER, "INPUT"), f'-m comment --comment "kubernetes health check rules" -j {names.NODE_PORT}'),
    ((FILTER, "FORWARD"), f"{_FIREWALL} -j {names.PROXY_FIREWALL}"),
    ((FILTER, "FORWARD"), f'-m comment --comment "kubernetes forwarding rules" -j {names.FORWARD}'),
    ((FILTER, "OUTPUT"), f"{_ACCESS} -j {names.FILTER_OUT}"),
)
"""Rules on top of the kernel's chains, the topmost first."""


def frame(node: NodeConfig, used: Collection[str], drops: Collection[str]) -> Chains:
    """Every chain with its rules.

    Args:
        node: the node.
        used: the sets that have elements.
        drops: the rules of KUBE-IPVS-OUT-FILTER.
    """
    look = _Lookup(node, used)
    mark = f"{node.masquerade_mark:#x}"
    return {
        (NAT, names.MARK_MASQ): static_chains.marking(mark),
        (NAT, names.POSTROUTING): [
            *look.commented(names.LOOP_BACK, "dst,dst,src", "-j MASQUERADE"),
            *static_chains.masquerading(mark),
        ],
        (NAT, names.LOAD_BALANCER): [
            *look.commented(names.BALANCER_LOCAL, "dst,dst", "-j RETURN"),
            f"-j {names.MARK_MASQ}",
        ],
        (NAT, names.NODE_PORT): [rule for protocol in names.NODE_PORTS for rule in look.node_ports(protocol)],
        (NAT, names.SERVICES): list(_services(node, look)),
        (FILTER, names.NODE_PORT): [
            *look.commented(names.HEALTH_CHECK, "dst", "-j ACCEPT", always=True),
        ],
        (FILTER, names.FORWARD): static_chains.forwarding(mark),
        (FILTER, names.SOURCE_RANGES): [
            *look.commented(names.BALANCER_SOURCE_CIDR, "dst,dst,src", "-j RETURN"),
            *look.commented(names.BALANCER_SOURCE_IP, "dst,dst,src", "-j RETURN"),
            "-j DROP",
        ],
        (FILTER, names.PROXY_FIREWALL): [
            *look.commented(names.BALANCER_FIREWALL, "dst,dst", f"-j {names.SOURCE_RANGES}"),
        ],
        (FILTER, names.FILTER_IN): [
            *(
                f"{look.match(name)} dst,dst -j RETURN"
                for name in (names.BALANCER, names.CLUSTER_IP, names.EXTERNAL_IP, names.EXTERNAL_IP_LOCAL)
            ),
            f"{look.match(names.HEALTH_CHECK)} dst -j RETURN",
            f"-m conntrack --ctstate NEW {look.match(names.ADDRESSES)} dst -j REJECT --reject-with {matches.unreachable(node.family)}",
        ],
        OUT: list(drops),
    }


def _services(node: NodeConfig, look: "_Lookup") -> Iterator[str]:
    """The rules of nat KUBE-SERVICES."""
    yield f"-s {'127.0.0.0/8' if node.family == IPV4 else '::1/128'} -j RETURN"
    yield from look.commented(names.BALANCER, "dst,dst", f"-j {names.LOAD_BALANCER}")
    if node.masquerade_all:
        yield from look.commented(names.CLUSTER_IP, "dst,dst", f"-j {names.MARK_MASQ}")
    elif node.local_traffic is None:
        # What the host itself sends to a ClusterIP comes from that address.
        yield from look.commented(names.CLUSTER_IP, "src,dst", f"-j {names.MARK_MASQ}")
    elif others := matches.not_from_local_pod(node.local_traffic):
        yield from look.commented(
            names.CLUSTER_IP, "dst,dst", f"-j {names.MARK_MASQ}", before="".join(others)
        )
    yield from look.commented(names.EXTERNAL_IP, "dst,dst", f"-j {names.MARK_MASQ}")
    for name in (names.EXTERNAL_IP, names.EXTERNAL_IP_LOCAL):
        # From another host, and not through a bridge from a Pod; or to an address of the host.
        for extra in (
            "-m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL",
            "-m addrtype --dst-type LOCAL",
        ):
            yield from look.commented(name, "dst,dst", f"{extra} -j ACCEPT")
    yield f"-m addrtype --dst-type LOCAL -j {names.NODE_PORT}"
    for name in (names.CLUSTER_IP, names.BALANCER):
        if name in look.used:
            yield f"{look.match(name)} dst,dst -j ACCEPT"


class _Lookup:
    """Rules that look up sets."""

    def __init__(self, node: NodeConfig, used: Collection[str]) -> None:
        self.used = used
        self._family = node.family

    def match(self, name: str) -> str:
        return f"-m set --match-set {names.set_name(name, self._family)}"

    def commented(
        self, name: str, fields: str, rest: str, *, before: str = "", always: bool = False
    ) -> Iterator[str]:
        """A rule with the set's comment, if the set has elements."""
        if always or name in self.used:
            comment = names.SETS[name].comment
            yield f'{before}-m comment --comment "{comment}" {self.match(name)} {fields} {rest}'

    def node_ports(self, protocol: str) -> Iterator[str]:
        """Node ports are masqueraded unless their policy is Local."""
        fields = "dst,dst" if protocol == "SCTP" else "dst"
        before = f"-p {protocol.lower()} "
        yield from self.commented(names.NODE_PORTS_LOCAL[protocol], fields, "-j RETURN", before=before)
        yield from self.commented(names.NODE_PORTS[protocol], fields, f"-j {names.MARK_MASQ}", before=before)
