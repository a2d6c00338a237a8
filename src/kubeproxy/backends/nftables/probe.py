"""Determines, before anything is written, whether the kernel supports everything that our table needs.

A table with an imaginary Service that uses everything is made and deleted in one transaction: it never
exists.
"""

from collections.abc import Sequence
from typing import Final

from kubeproxy.api.addresses import IPV4
from kubeproxy.backends.base import Change
from kubeproxy.backends.nftables import frame
from kubeproxy.backends.nftables.content import Content
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint
from kubeproxy.netlink import wire
from kubeproxy.netlink.nft import messages
from kubeproxy.netlink.nft.kernel import NftKernel, TransactionRefusedError
from kubeproxy.netlink.nft.messages import IP, IP6, NEWRULE, NftMessage, TableName

TABLE: Final = "kube-proxy-probe"
_ENDPOINTS: Final = 20
"""More than are looked up directly: the Service's fronts lead to chains."""

_RULE_CHAIN, _RULE_EXPRESSIONS, _EXPRESSION, _NAME = 2, 4, 1, 1


def missing(kernel: NftKernel, node: NodeConfig) -> str:
    """A description of what the kernel refuses; "" if it refuses nothing."""
    table = TableName(IP if node.family == IPV4 else IP6, TABLE)
    content = Content(table, node)
    services = content.difference([Change(plan.key, None, plan) for plan in _services(node)])
    wanted = [*frame.table(table, node), *services.beforehand(), *services.messages()]
    try:
        _try(kernel, table, wanted)
    except TransactionRefusedError as e:
        if e.message is None or e.message.kind != NEWRULE:
            return str(e)
        there = [m for m in wanted if m.kind != NEWRULE]
        return f"{_expression(kernel, table, there, e.message)}: {e.strerror}"
    return ""


def _try(kernel: NftKernel, table: TableName, wanted: Sequence[NftMessage]) -> None:
    kernel.commit([*wanted, messages.delete_table(table)])


def _expression(kernel: NftKernel, table: TableName, there: Sequence[NftMessage], rule: NftMessage) -> str:
    """The expression of a refused rule at which it begins to be refused."""
    found = wire.attributes(rule.body)
    chain = wire.string(found[_RULE_CHAIN])
    expressions = [bytes(value) for _, value in wire.attribute_list(found[_RULE_EXPRESSIONS])]
    for count in range(1, len(expressions) + 1):
        begun = [wire.attribute(_EXPRESSION, value) for value in expressions[:count]]
        try:
            _try(kernel, table, [*there, messages.add_rule(table, chain, *begun)])
        except TransactionRefusedError:
            name = wire.string(wire.attributes(expressions[count - 1])[_NAME])
            return f"the expression {name} of a rule in chain {chain}"
    return f"a rule in chain {chain}"


def _services(node: NodeConfig) -> list[ServicePlan]:
    """Services that use everything: kinds of fronts, policies, affinity, source ranges, many endpoints."""
    address = "192.0.2.{}" if node.family == IPV4 else "2001:db8::{}"
    everyone = tuple(Endpoint(address.format(100 + i), 80) for i in range(_ENDPOINTS))
    ports = tuple(
        PortPlan(
            name=f"probe/{protocol}:{affinity}",
            protocol=protocol,
            port=1000 + affinity,
            cluster_ip=address.format(1),
            node_port=30000 + affinity,
            external_ips=(address.format(2),),
            load_balancer_ips=(address.format(3),),
            source_ranges=("0.0.0.0/1" if node.family == IPV4 else "2000::/3",),
            affinity=affinity,
            internal_local=protocol == "UDP",
            external_local=protocol != "SCTP",
            cluster=everyone,
            local=everyone[:2],
            any=True,
            known_endpoints=_ENDPOINTS,
        )
        for protocol in ("TCP", "UDP", "SCTP")
        for affinity in (0, 10)
    )
    return [ServicePlan("probe", "all", ports)]
