"""The contract of drivers, on kernels in memory."""

import asyncio
import threading
from collections.abc import Callable
from copy import copy
from typing import Any

import pytest

from kubeproxy.api.addresses import IPV4
from kubeproxy.backends.base import Driver
from kubeproxy.backends.ebpf.driver import ConnectDriver
from kubeproxy.backends.ebpf.front import LEAST, ConnectFront
from kubeproxy.backends.ebpf.layout import LAYOUTS
from kubeproxy.backends.ebpf.tables import FrontMaps, MemoryMaps
from kubeproxy.backends.fake_tables import FakeTables
from kubeproxy.backends.iptables.driver import IPTablesDriver
from kubeproxy.backends.ipvs.driver import IPVSDriver
from kubeproxy.backends.ipvs.fake import FakeIPVSKernel as FakeServers
from kubeproxy.backends.nftables.driver import NFTablesDriver
from kubeproxy.backends.userspace.driver import Led
from kubeproxy.backends.userspace.listening import Listening
from kubeproxy.clock import SystemClock
from kubeproxy.model.node import NodeConfig
from kubeproxy.netlink.nft.fake import FakeNftKernel
from tests.contract import FRONTS, LOCAL, OF_MODES, Bench, Contract, Subject, begin
from tests.fakes.faults import FaultyNftables, FaultyRelay, FaultyServers, FaultyTables, Piece, make_faulty
from tests.unit.backends.test_relayed_properties import Ports


class FakeInstallation:
    """See `backends.ebpf.install.Installation`: everything is attached, and the maps are large enough."""

    active = True

    def __init__(self, maps: FrontMaps) -> None:
        self.maps = maps

    def missing(self) -> list[str]:
        return []

    def whole(self) -> bool:
        return True

    def close(self) -> None:
        """There is nothing to close."""


class Fakes(Bench):
    """A mode on a kernel in memory."""

    def __init__(self, mode: str) -> None:
        super().__init__(mode)
        self._tables = FakeTables("legacy" if mode == "iptables-legacy" else "nf_tables")
        self._servers = FakeServers()
        self._kernel = FakeNftKernel()
        self._maps = MemoryMaps(LAYOUTS[IPV4], LEAST)

    def driver(self, node: NodeConfig) -> Driver:
        """See `Bench`. The sockets of a process end with it."""
        faults = self.faults
        tables = FaultyTables(self._tables, faults)
        kernel: Any = FaultyNftables(self._kernel, faults)
        relay = FaultyRelay(faults, Ports().bind)
        match self.mode:
            case "nftables":
                return NFTablesDriver(kernel, node)
            case "ebpf":
                maps = copy(self._maps)
                make_faulty(maps, faults)
                front = ConnectFront(FakeInstallation(maps), SystemClock(), frozenset())  # type: ignore[arg-type]
                return ConnectDriver(NFTablesDriver(kernel, node), front)
            case "ipvs":
                return IPVSDriver(FaultyServers(self._servers, faults), tables, node)
            case "userspace":
                return Led(NFTablesDriver(kernel, node), relay, lambda node: node.address)
            case "userspace-listen":
                return Listening(relay, lambda: [*LOCAL, *FRONTS])
        return IPTablesDriver(tables, counters=False, drop_invalid=True)


@pytest.fixture
def make() -> Callable[[str], Bench]:
    return Fakes


@pytest.mark.parametrize("mode", OF_MODES)
async def test_a_load_that_is_cancelled_ends_after_its_thread(mode: str) -> None:
    """Its thread writes nothing any more, so that another driver can start over the same kernel."""
    bench = Fakes(mode)
    subject = Subject(bench)
    begin(subject)
    writing, go_on = threading.Event(), threading.Event()

    def wait(_: Piece) -> bool:
        writing.set()
        go_on.wait(60)
        return False

    bench.faults.refuse = wait
    load = asyncio.ensure_future(subject.backend.load(subject.node, subject.plans()))
    await asyncio.to_thread(writing.wait, 60)
    ended = []
    for _ in range(3):
        load.cancel()
        await asyncio.sleep(0.01)
        ended.append(load.done())
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await load
    assert not any(ended), "a thread cannot be interrupted"
    writes = bench.faults.writes
    assert writes
    await asyncio.sleep(0.05)
    assert bench.faults.writes == writes


class TestFakes(Contract):
    """See `Contract`."""
