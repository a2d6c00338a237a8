"""The ipvs backend on a kernel and tables in memory, and both put as they are printed by `ipvsadm`, `ipset` and `ip`."""

from collections.abc import Iterator

from msgspec.structs import replace

from kubeproxy.api.addresses import IPV4, unpack
from kubeproxy.backends.fake_tables import FakeTables
from kubeproxy.backends.ipvs import describe
from kubeproxy.backends.ipvs.drain import END_SECONDS, RemovedEndpoints
from kubeproxy.backends.ipvs.driver import IPVSDriver
from kubeproxy.backends.ipvs.fake import FakeIPVSKernel
from kubeproxy.backends.ipvs.mode import MODE
from kubeproxy.model.node import IPVSSettings, NodeConfig
from kubeproxy.netlink.ipset import BITMAP_PORT
from tests.fakes.cluster import NODE, Proxy

HERE = replace(
    NODE, localhost_node_ports=False, ipvs=IPVSSettings(), balancing=MODE.balancing
).with_addresses(["127.0.0.1", "192.0.2.1", "10.244.1.1"])


class Rig(Proxy):
    """A proxy and its kernel."""

    def __init__(
        self, node: NodeConfig = HERE, kernel: FakeIPVSKernel | None = None, tables: FakeTables | None = None
    ) -> None:
        self.kernel = kernel or FakeIPVSKernel()
        self.tables = tables or FakeTables()
        self.now = 0.0
        self.driver = IPVSDriver(self.kernel, self.tables, node, removed=RemovedEndpoints(lambda: self.now))
        super().__init__(self.driver, node)

    def a_second_later(self) -> None:
        """What is done a second after syncs."""
        self.now += END_SECONDS
        self.driver.end_removed()

    def done(self) -> list[tuple[str, object]]:
        """What was changed in the kernel since the last call; tables whose rules did are told at the end."""
        found = [*self.kernel.log, *(("rules", table) for table, _ in self.tables.inputs)]
        self.kernel.log.clear()
        self.tables.inputs.clear()
        return found

    def restarted(self, node: NodeConfig | None = None) -> "Rig":
        """Another run over the same kernel that has heard the same; perhaps the node is another now."""
        other = Rig(node or self.node, self.kernel, self.tables)
        other.state = self.state
        self.done()
        return other

    def fresh(self) -> "Rig":
        """Another run that has heard the same, over a kernel of its own, after its first sync."""
        other = Rig(self.node)
        other.state = self.state
        assert not other.full()
        return other

    def everything(self) -> object:
        """All that is in the kernel; which rule of a chain of Services comes first says nothing."""
        rules = {
            (table, chain): sorted(held) if chain == "KUBE-IPVS-OUT-FILTER" else list(held)
            for table, chains in self.tables.tables.items()
            for chain, held in chains.items()
        }
        sets = {name: set(elements) for name, (_, elements) in self.kernel.sets.items()}
        return sorted(servers(self.kernel)), sets, self.kernel.addresses(), rules


def servers(kernel: FakeIPVSKernel) -> Iterator[str]:
    """What `ipvsadm -Sn` prints."""
    for virtual, (settings, reals) in kernel.virtuals.items():
        yield from describe.server(virtual, settings, {real: load.weight for real, load in reals.items()})


def sets(kernel: FakeIPVSKernel, family: str = IPV4) -> Iterator[str]:
    """What `ipset save` prints."""
    inet = "inet" if family == IPV4 else "inet6"
    for name, (header, elements) in kernel.sets.items():
        bitmap = header.type == BITMAP_PORT
        size = (
            "range 0-65535" if bitmap else f"family {inet} hashsize 1024 maxelem {header.limit} bucketsize 12"
        )
        yield f"create {name} {header.type} {size}"
        for element in elements:
            yield f"add {name} {describe.element(element)}"


def addresses(kernel: FakeIPVSKernel) -> list[str]:
    """The addresses of kube-ipvs0."""
    return sorted(unpack(address) for address in kernel.addresses())
