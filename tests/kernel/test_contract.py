"""The contract of drivers, on the real kernel."""

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from kubeproxy.api.addresses import IPV4
from kubeproxy.backends.base import Driver
from kubeproxy.backends.ebpf import prepare
from kubeproxy.backends.ebpf.driver import ConnectDriver
from kubeproxy.backends.iptables.driver import IPTablesDriver
from kubeproxy.backends.ipvs import names
from kubeproxy.backends.ipvs.driver import IPVSDriver
from kubeproxy.backends.ipvs.kernel import LinuxIPVSKernel
from kubeproxy.backends.nftables.driver import NFTablesDriver
from kubeproxy.backends.userspace.driver import Led
from kubeproxy.backends.userspace.listening import Listening
from kubeproxy.model.node import NodeConfig
from kubeproxy.netlink import route
from kubeproxy.netlink.nft.kernel import NftKernel
from tests.contract import FRONTS, LOCAL, WEB, Bench, Contract, Subject, begin, change_web, same
from tests.fakes.faults import FaultyNftables, FaultyRelay, FaultyServers, FaultyTables, make_faulty
from tests.kernel import bpffs
from tests.kernel.spaces import Real
from tests.lab import netns
from tests.machines import MACHINE

OWN = [*LOCAL, *FRONTS]


class Space(Bench):
    """A mode in a network namespace."""

    stride = 9

    def __init__(self, mode: str, namespace: str) -> None:
        super().__init__(mode)
        self.namespace = namespace
        self._places = contextlib.ExitStack()
        if mode == "ebpf":
            self.places = self._places.enter_context(bpffs.places())
        with self.inside():
            if mode == "ipvs":
                route.ensure_dummy(MACHINE, names.INTERFACE)

    def inside(self) -> AbstractContextManager[object]:
        """See `Bench`."""
        return netns.inside(self.namespace)

    def end(self) -> None:
        """See `Bench`."""
        super().end()
        self._places.close()

    def driver(self, node: NodeConfig) -> Driver:
        """See `Bench`."""
        faults = self.faults
        if self.mode == "ebpf":
            assert node.connects is not None
            connects = replace(node.connects, cgroup=self.places.cgroup, pins=self.places.pins)
            front = prepare.open_front(MACHINE, replace(node, connects=connects))
            assert front._installation.maps is not None
            make_faulty(front._installation.maps, faults)
            kernel_: Any = FaultyNftables(NftKernel(MACHINE), faults)
            return ConnectDriver(NFTablesDriver(kernel_, node), front)
        if self.mode == "userspace-listen":
            return Listening(FaultyRelay(faults), lambda: OWN)
        if self.mode in {"nftables", "userspace"}:
            kernel: Any = FaultyNftables(NftKernel(MACHINE), faults)
            rules = NFTablesDriver(kernel, node)
            if self.mode == "nftables":
                return rules
            return Led(rules, FaultyRelay(faults), lambda node: node.address)
        variant = "legacy" if self.mode == "iptables-legacy" else "nf_tables"
        tables = FaultyTables(Real(IPV4, variant), faults)  # type: ignore[arg-type]
        if self.mode == "ipvs":
            return IPVSDriver(FaultyServers(LinuxIPVSKernel(MACHINE, IPV4), faults), tables, node)
        return IPTablesDriver(tables, counters=False, drop_invalid=True)


@pytest.fixture
def make() -> Iterator[Callable[[str], Bench]]:
    """Each bench has a namespace of its own. Services' addresses are the host's where a relay listens on them."""
    made: list[Space] = []

    def make(mode: str) -> Bench:
        name = f"{netns.unique_prefix()}contract{len(made)}"
        netns.create([name])
        own = OWN if mode == "userspace-listen" else LOCAL
        lines = [f"address add {address}/32 dev lo" for address in own if not address.startswith("127.")]
        netns.finish(netns.ip_batch("link set lo up", *lines, namespace=name))
        made.append(Space(mode, name))
        return made[-1]

    yield make
    for bench in made:
        bench.end()
    netns.delete([bench.namespace for bench in made])


class TestKernel(Contract):
    """See `Contract`."""

    MARKS: ClassVar[dict[str, Any]] = {"ipvs": pytest.mark.vm}

    def test_a_port_of_another_program_is_a_refusal(self, make: Callable[[str], Bench]) -> None:
        """A refusal of the kernel's own: the Service keeps its other listeners, and is served when the port is free."""
        subject = Subject(make("userspace-listen"))
        begin(subject)
        assert not subject.full()
        before = subject.held()
        change_web(subject)
        with subject.bench.inside(), socket.create_server(("203.0.113.99", 80)):
            failures = subject.sync()
            same(subject.held(), before)
        address_in_use = OSError(errno.EADDRINUSE, "Address already in use").strerror
        assert failures == {WEB: f"cannot listen on 203.0.113.99:80 TCP: {address_in_use}"}
        assert not subject.full()
        assert any("203.0.113.99:80" in line for line in subject.held())
