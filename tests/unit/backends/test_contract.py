"""The contract of drivers, on kernels in memory."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from kubeproxy.backends.base import Driver
from kubeproxy.backends.fake_tables import FakeTables
from kubeproxy.backends.iptables.driver import IPTablesDriver
from kubeproxy.backends.ipvs.driver import IPVSDriver
from kubeproxy.backends.ipvs.fake import FakeIPVSKernel as FakeServers
from kubeproxy.backends.nftables.driver import NFTablesDriver
from kubeproxy.backends.userspace.driver import Led
from kubeproxy.backends.userspace.listening import Listening
from kubeproxy.model.node import NodeConfig
from kubeproxy.netlink.nft.fake import FakeNftKernel
from tests.contract import FRONTS, LOCAL, OF_MODES, Bench, Contract, Subject, begin
from tests.fakes.faults import FaultyNftables, FaultyRelay, FaultyServers, FaultyTables, Piece
from tests.unit.backends.test_relayed_properties import Ports


class Fakes(Bench):
    """A mode on a kernel in memory."""

    def __init__(self, mode: str) -> None:
        super().__init__(mode)
        self._tables = FakeTables("legacy" if mode == "iptables-legacy" else "nf_tables")
        self._servers = FakeServers()
        self._kernel = FakeNftKernel()

    def driver(self, node: NodeConfig) -> Driver:
        """See `Bench`. The sockets of a process end with it."""
        faults = self.faults
        tables = FaultyTables(self._tables, faults)
        kernel: Any = FaultyNftables(self._kernel, faults)
        relay = FaultyRelay(faults, Ports().bind)
        match self.mode:
            case "nftables":
                return NFTablesDriver(kernel, node)
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
