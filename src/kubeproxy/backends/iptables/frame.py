"""The rules that do not depend on Services: chains, and the rules that lead to the fronts.

Some chains are ours alone and are kept exactly as they are here. Into others, the kernel's own and the
kubelet's KUBE-FIREWALL, we only put single rules, on top (`hooks`) or anywhere (`extras`).
"""

from collections import Counter
from typing import NamedTuple

from kubeproxy.api.addresses import IPV4
from kubeproxy.backends.iptables import names
from kubeproxy.backends.iptables.compile import NAT_SERVICES, SHARED, Shared
from kubeproxy.backends.programs import FILTER, MANGLE, NAT
from kubeproxy.backends.shared import matches, static_chains
from kubeproxy.model.node import NodeConfig


class Frame(NamedTuple):
    """The static rules of one family.

    Attributes:
        chains: chains that hold exactly these rules.
        shared: chains that Services have fronts in; all exist.
        common: chains that others fill too; all exist.
        tail: rules that stand last in a shared chain.
        hooks: rules to be on top of chains of the kernel, the first one topmost.
        extras: rules to be somewhere in common chains.
    """

    chains: dict[Shared, list[str]]
    shared: tuple[Shared, ...]
    common: tuple[Shared, ...]
    tail: dict[Shared, list[str]]
    hooks: list[tuple[Shared, str]]
    extras: list[tuple[Shared, str]]

    def rules(self) -> Counter[str]:
        """How many rules of ours each table has, without those in the kernel's chains that lead to them."""
        rules: Counter[str] = Counter()
        for (table, _), lines in (*self.chains.items(), *self.tail.items()):
            rules[table] += len(lines)
        rules.update([table for (table, _), _ in self.extras])
        return rules


def frame(node: NodeConfig, *, drop_invalid: bool, counters: bool) -> Frame:
    """The frame of a node.

    Args:
        node: the node under one family.
        drop_invalid: drop packets in conntrack state INVALID (a NATed connection would be reset by them);
            false where the kernel is configured to be liberal with TCP windows.
        counters: the nfacct counters exist.
    """
    mark = f"{node.masquerade_mark:#x}"
    invalid = "-m conntrack --ctstate INVALID "
    if counters:
        invalid += f"-m nfacct --nfacct-name  {names.INVALID_COUNTER} "
    chains: dict[Shared, list[str]] = {
        (FILTER, names.FORWARD): [
            *([f"{invalid}-j DROP"] if drop_invalid else []),
            *static_chains.forwarding(mark),
        ],
        (NAT, names.MARK_MASQ): static_chains.marking(mark),
        (NAT, names.POSTROUTING): static_chains.masquerading(mark),
        (MANGLE, names.CANARY): [],
        (NAT, names.CANARY): [],
        (FILTER, names.CANARY): [],
    }
    return Frame(
        chains=chains,
        shared=tuple(SHARED),
        common=((FILTER, names.KUBELET_FIREWALL),),
        tail={NAT_SERVICES: _node_ports(node)},
        hooks=_HOOKS,
        extras=_localnet(node),
    )


def _hook(table: str, chain: str, to: str, comment: str, *, new: bool = False) -> tuple[Shared, str]:
    state = "-m conntrack --ctstate NEW " if new else ""
    comment_match = f'-m comment --comment "{comment}" ' if comment else ""
    return (table, chain), f"{state}{comment_match}-j {to}"


_BALANCER = "kubernetes load balancer firewall"
_PORTALS = "kubernetes service portals"
_VISIBLE = "kubernetes externally-visible service portals"
_HOOKS = [
    _hook(FILTER, "INPUT", names.KUBELET_FIREWALL, ""),
    _hook(FILTER, "INPUT", names.PROXY_FIREWALL, _BALANCER, new=True),
    _hook(FILTER, "INPUT", names.NODE_PORTS, "kubernetes health check service ports"),
    _hook(FILTER, "INPUT", names.EXTERNAL_SERVICES, _VISIBLE, new=True),
    _hook(FILTER, "FORWARD", names.PROXY_FIREWALL, _BALANCER, new=True),
    _hook(FILTER, "FORWARD", names.FORWARD, "kubernetes forwarding rules"),
    _hook(FILTER, "FORWARD", names.SERVICES, _PORTALS, new=True),
    _hook(FILTER, "FORWARD", names.EXTERNAL_SERVICES, _VISIBLE, new=True),
    _hook(FILTER, "OUTPUT", names.KUBELET_FIREWALL, ""),
    _hook(FILTER, "OUTPUT", names.PROXY_FIREWALL, _BALANCER, new=True),
    _hook(FILTER, "OUTPUT", names.SERVICES, _PORTALS, new=True),
    _hook(NAT, "PREROUTING", names.SERVICES, _PORTALS),
    _hook(NAT, "OUTPUT", names.SERVICES, _PORTALS),
    _hook(NAT, "POSTROUTING", names.POSTROUTING, "kubernetes postrouting rules"),
]


def _node_ports(node: NodeConfig) -> list[str]:
    """The last rules of KUBE-SERVICES: what is for the node itself may be for a node port."""
    comment = (
        '-m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain"'
    )
    if node.node_port_ranges:
        addresses = (a for a in node.node_port_addresses if node.serves_node_ports(a))
        return [
            f"-d {address}{matches.host(node.family)} {comment} -j {names.NODE_PORTS}"
            for address in addresses
        ]
    if node.family == IPV4:
        no_localhost = "" if node.localhost_node_ports else "! -d 127.0.0.0/8 "
    else:
        no_localhost = "! -d ::1/128 "
    return [f"{no_localhost}{comment} -m addrtype --dst-type LOCAL -j {names.NODE_PORTS}"]


def _localnet(node: NodeConfig) -> list[tuple[Shared, str]]:
    """Protects what `route_localnet`, which localhost node ports need, would expose (CVE-2020-8558).

    The kubelet keeps the same rule; the text must stay identical.
    """
    if node.family != IPV4 or not node.localhost_node_ports:
        return []
    rule = (
        '! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections"'
        " -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
    )
    return [((FILTER, names.KUBELET_FIREWALL), rule)]
