"""The nftables backend on a kernel in memory."""

import asyncio

from msgspec import structs

from kubeproxy.api.addresses import Family
from kubeproxy.backends.nftables import layout
from kubeproxy.backends.nftables.driver import NFTablesDriver
from kubeproxy.model.node import NodeConfig
from kubeproxy.netlink import wire
from kubeproxy.netlink.nft import messages as m
from kubeproxy.netlink.nft import objects, text
from kubeproxy.netlink.nft.fake import FakeNftKernel
from kubeproxy.netlink.nft.kernel import NftKernel
from kubeproxy.netlink.nft.messages import NftMessage, TableName
from tests.fakes.cluster import NODE, NODE6, Proxy
from tests.scenarios.world import World

NODES = tuple(
    structs.replace(node, service_cidrs=cidrs)
    for node, cidrs in ((NODE, ("10.96.0.0/12",)), (NODE6, ("fd00:10:96::/112",)))
)
FAMILY = {"IPv4": m.IP, "IPv6": m.IP6}


Content = dict[tuple[str, str], list[bytes]]
"""What a table holds, whatever order it came in: kind and name of an object -> its attributes, or its parts."""


class Rig(Proxy):
    """A proxy and its kernel."""

    def __init__(self, kernel: FakeNftKernel | None = None, node: NodeConfig = NODES[0]) -> None:
        self.kernel = kernel or FakeNftKernel()
        super().__init__(NFTablesDriver(self.kernel, node), node)

    def restarted(self, node: NodeConfig | None = None) -> "Rig":
        """Another run over the same kernel that has heard the same; perhaps the node is another now."""
        other = Rig(self.kernel, node or self.node)
        other.state = self.state
        self.kernel.commits.clear()
        return other

    def fresh(self) -> "Rig":
        """Another run that has heard the same, in a kernel of its own, after its first sync."""
        other = Rig(FakeNftKernel(), self.node)
        other.state = self.state
        assert not other.full()
        return other

    def sent(self) -> list[NftMessage]:
        """What was committed since the last call."""
        found = [message for commit in self.kernel.commits for message in commit]
        self.kernel.commits.clear()
        return found

    def table(self) -> Content:
        """What the table holds."""
        return content(self.kernel, self.node.family)


def content(kernel: NftKernel, family: Family) -> Content:
    """What a kernel's table holds, handles aside."""
    table = TableName(FAMILY[family], layout.TABLE)
    only = wire.text(1, table.name)
    found: Content = {}
    for body in list(kernel.dump(m.GETSET, table.family, only)):
        a = wire.attributes(body)
        name = wire.string(a[2])
        found["set", name] = [bytes(a[kind]) for kind in (3, 4, 5, 6, 7, 9, 11, 13) if kind in a]
        if not int.from_bytes(a.get(3, b"")) & m.EVAL:  # packets fill those
            found["elements", name] = sorted(objects.elements(kernel, table, name))
    for body in kernel.dump(m.GETCHAIN, table.family, only):
        a = wire.attributes(body)
        if wire.string(a[1]) == table.name:
            found["chain", wire.string(a[3])] = [bytes(a[kind]) for kind in (4, 7) if kind in a]
    for body in kernel.dump(m.GETRULE, table.family, only):
        a = wire.attributes(body)
        found.setdefault(("rules", wire.string(a[2])), []).append(bytes(a[4]) + bytes(a.get(7, b"")))
    return found


def listing(case: World, *, empty: bool = False) -> str:
    """The tables of a case of the oracle, as nft lists them; or of its node without Services."""
    kernel = FakeNftKernel()
    for family, node in case.nodes.items():
        cidrs = tuple(cidr for cidr in case.hub.service_cidrs if (":" in cidr) == (family == "IPv6"))
        here = structs.replace(node, service_cidrs=cidrs)
        plans = {} if empty else {plan.key: plan for plan in case.plans(family)}
        assert not asyncio.run(NFTablesDriver(kernel, here).load(here, plans))
    return text.render(kernel.listing())
