"""What a Service needs in the table, in the syntax of nft."""

from kubeproxy.backends.base import Change
from kubeproxy.backends.nftables import layout
from kubeproxy.backends.nftables.content import Content
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import ServicePlan
from kubeproxy.netlink.nft import messages, text
from kubeproxy.netlink.nft.messages import TableName


def service(plan: ServicePlan, node: NodeConfig, table: TableName) -> list[str]:
    """The commands of nft that add what a Service needs to a table that is laid out as ours."""
    transaction = Content(table, node).difference([Change(plan.key, None, plan)])
    known = [messages.add_set(table, s.name, s.key, s.data, flags=s.flags) for s in layout.sets(table.family)]
    sent = (each for each in (*transaction.beforehand(), *transaction.messages()))
    return [line for line in text.commands(sent, known) if line.startswith("add ")]
