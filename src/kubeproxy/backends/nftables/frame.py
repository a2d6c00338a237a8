"""The rules that do not depend on Services: they look up packets in the sets and maps."""

from collections.abc import Iterable

from kubeproxy.api.addresses import BITS, IPV4, pack
from kubeproxy.backends.nftables import layout, packing
from kubeproxy.backends.nftables.statements import Rule, Statements
from kubeproxy.backends.nftables.transaction import Transaction
from kubeproxy.model.node import NodeConfig
from kubeproxy.netlink.nft import expressions as x
from kubeproxy.netlink.nft import messages
from kubeproxy.netlink.nft.messages import DROP, JUMP, RETURN, NftMessage, TableName, verdict


def table(name: TableName, node: NodeConfig) -> list[NftMessage]:
    """Makes a table with everything that does not depend on Services."""
    out = [messages.add_table(name, layout.COMMENT)]
    out += [
        messages.add_set(name, s.name, s.key, s.data, flags=s.flags, comment=s.comment)
        for s in layout.sets(name.family)
    ]
    out += [messages.add_chain(name, chain) for chain in layout.FIXED_CHAINS]
    out += [messages.add_chain(name, chain, hook) for chain, hook in layout.BASE_CHAINS.items()]
    rest = Transaction(name)
    for chain, wanted in rules(node).items():
        rest.chain(chain, wanted, exists=True)
    for set_name, found in elements(node).items():
        rest.add((set_name, element) for element in found)
    return [*out, *rest.messages()]


def rules(node: NodeConfig) -> dict[str, list[Rule]]:
    """The rules of all fixed chains."""
    s = Statements(node)
    new = s.new_connection()
    to = {chain: x.verdict(verdict(JUMP, chain)) for chain in layout.FIXED_CHAINS}
    drop, reject = x.verdict(verdict(DROP)), x.reject(s.family)
    front, port = s.front(), s.port(0)
    from_firewall = Rule((*new, to[layout.FIREWALL_CHECK]))
    check_services = Rule((*new, to[layout.SERVICE_CHECK]))
    check_ips = Rule((*new, to[layout.CLUSTER_IPS_CHECK]))
    return {
        "filter-prerouting-pre-dnat": [from_firewall],
        "filter-output-pre-dnat": [from_firewall],
        "filter-input": [Rule((*new, to[layout.NODEPORT_CHECK])), check_services],
        "filter-forward": [check_services, check_ips],
        "filter-output": [check_services, check_ips],
        "nat-prerouting": [Rule((to[layout.SERVICES],))],
        "nat-output": [*_of_relay(node, s), Rule((to[layout.SERVICES],))],
        "nat-postrouting": [Rule((to[layout.MASQUERADING],))],
        layout.SERVICES: _services(node, s, to[layout.FIND_ENDPOINT]),
        layout.FIND_ENDPOINT: _find_endpoint(node, s),
        layout.MASQUERADING: [
            Rule((*s.unmark(), x.masquerade())),
            Rule(
                (
                    *s.translated(),
                    s.source(0),
                    s.destination(s.words),
                    *s.port(2 * s.words),
                    x.lookup(layout.HAIRPIN, 0),
                    x.masquerade(),
                ),
                "an endpoint that is sent to itself",
            ),
        ],
        layout.FIREWALL_CHECK: [
            Rule(
                (
                    *front,
                    x.lookup(layout.FIREWALL_IPS, 0),
                    *front,
                    s.source(s.words + 2),
                    x.lookup(layout.FIREWALL_SOURCES, 0, inverted=True),
                    drop,
                )
            ),
            Rule(
                (
                    *_to_node_ports(node, s),
                    *port,
                    x.lookup(layout.FIREWALL_NODEPORTS, 0),
                    *port,
                    s.source(2),
                    x.lookup(layout.FIREWALL_NODEPORT_SOURCES, 0, inverted=True),
                    drop,
                )
            ),
        ],
        layout.SERVICE_CHECK: [
            Rule((*front, x.lookup(layout.DROP_SERVICES, 0), drop)),
            Rule((*front, x.lookup(layout.REJECT_SERVICES, 0), reject)),
        ],
        layout.NODEPORT_CHECK: [
            Rule((*_to_node_ports(node, s), *port, x.lookup(layout.DROP_NODEPORTS, 0), drop)),
            Rule((*_to_node_ports(node, s), *port, x.lookup(layout.REJECT_NODEPORTS, 0), reject)),
        ],
        layout.CLUSTER_IPS_CHECK: [
            # Its client is served at the next packet after the flow was deleted: it must not be rejected
            # before.
            Rule(
                (
                    *s.tracked_before(),
                    s.destination(0),
                    x.lookup(layout.CLUSTER_IPS, 0),
                    x.verdict(verdict(RETURN)),
                ),
                "began before the Service was there",
            ),
            Rule(
                (s.destination(0), x.lookup(layout.CLUSTER_IPS, 0), reject),
                "Reject traffic to invalid ports of ClusterIPs",
            ),
            Rule(
                (s.destination(0), x.lookup(layout.SERVICE_CIDRS, 0), drop),
                "Drop traffic to unallocated ClusterIPs",
            ),
        ],
    }


def elements(node: NodeConfig) -> dict[str, list[bytes]]:
    """The elements that do not depend on Services."""
    addresses = [a for a in node.node_port_addresses if node.serves_node_ports(a)]
    return {
        layout.NODEPORT_IPS: [packing.member(pack(address)) for address in addresses]
        if node.node_port_ranges
        else [],
        layout.SERVICE_CIDRS: _intervals(node.service_cidrs, BITS[node.family]),
    }


def _of_relay(node: NodeConfig, s: Statements) -> list[Rule]:
    """What a relay of ours sends to an endpoint is sent nowhere else, whatever the endpoint's address."""
    rule = Rule((*s.unmark(), x.verdict(verdict(RETURN))), "a relay's own connections")
    return [rule] if node.relayed else []


def _services(node: NodeConfig, s: Statements, find: bytes) -> list[Rule]:
    """Where packets to Services are distinguished from others.

    While a transaction takes effect, a packet may be looked up in one map before it and in the next one after
    it, and find a Service that moves between them in neither. So it is sent through a second time.
    """
    rules = []
    outside = () if node.masquerade_all else s.not_from_local_pod()
    if outside is not None:
        comment = (
            "masquerade all" if node.masquerade_all else "masquerade clusterIP traffic from outside cluster"
        )
        rules.append(Rule((s.destination(0), x.lookup(layout.CLUSTER_IPS, 0), *outside, *s.mark()), comment))
    return [*rules, Rule((find,)), Rule((find,), "again, if it was changed meanwhile")]


def _find_endpoint(node: NodeConfig, s: Statements) -> list[Rule]:
    """Finds where a packet is to be sent. A packet that is not to be sent anywhere returns from here."""
    rules = [
        Rule((*s.front(), x.lookup_verdict(layout.SERVICE_IPS, 0))),
        Rule((*_to_node_ports(node, s), *s.port(0), x.lookup_verdict(layout.SERVICE_NODEPORTS, 0))),
        Rule((s.destination(0), x.lookup(layout.CLUSTER_IPS, 0, inverted=True), x.verdict(verdict(RETURN)))),
    ]
    rules += [Rule(s.pick(layout.endpoints(s.family, n).name, n)) for n in range(1, layout.DIRECT + 1)]
    return rules


def _to_node_ports(node: NodeConfig, s: Statements) -> tuple[bytes, ...]:
    """Continues only if the destination is an address that accepts node ports."""
    if node.node_port_ranges:
        return s.destination(0), x.lookup(layout.NODEPORT_IPS, 0)
    loopback = "127.0.0.0/8" if node.family == IPV4 else "::1/128"
    return *s.to_this_host(), *s.destination_in(loopback, inverted=True)


def _intervals(cidrs: Iterable[str], bits: int) -> list[bytes]:
    """The boundaries of ranges, those that touch or overlap made one."""
    spans: list[list[int]] = []
    for first, last in sorted(_span(cidr, bits) for cidr in cidrs):
        if spans and first <= spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], last)
        else:
            spans.append([first, last])
    found = []
    for first, last in spans:
        found.append(packing.boundary(first.to_bytes(bits // 8), end=False))
        if last < 1 << bits:
            found.append(packing.boundary(last.to_bytes(bits // 8), end=True))
    return found


def _span(cidr: str, bits: int) -> tuple[int, int]:
    """The first address of a range, and the first one behind it."""
    network, _, length = cidr.partition("/")
    first = int.from_bytes(pack(network))
    return first, first + (1 << (bits - int(length)))
