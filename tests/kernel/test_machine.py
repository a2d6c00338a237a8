"""The fake machine does what the Linux one does, in a network namespace of its own; one contract for both."""

import asyncio
import socket
from collections.abc import Iterator

import pytest

from kubeproxy.machine.base import Machine
from kubeproxy.machine.fake import FakeMachine
from kubeproxy.machine.linux import LinuxMachine
from kubeproxy.netlink.nft.kernel import Transactions
from tests.kernel.daemons import PATIENCE
from tests.lab import netns

HOST, OTHER, SERVICE = "192.0.2.1", "192.0.2.2", "10.96.0.10"


class World:
    """A machine, and how its addresses are changed."""

    def __init__(self, machine: Machine, space: str = "") -> None:
        self.machine = machine
        self._space = space

    def add(self, address: str, interface: str) -> None:
        if isinstance(self.machine, FakeMachine):
            index = self.machine.interfaces[interface]
            there = [a.packed for a in self.machine.own if a.interface == index]
            self.machine.set_addresses([*map(socket.inet_ntoa, there), address], interface=interface)
        else:
            netns.finish(netns.ip_batch(f"address add {address}/32 dev {interface}", namespace=self._space))


@pytest.fixture(params=["fake", "linux"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "fake":
        fake = FakeMachine(["127.0.0.1", HOST])
        fake.interfaces["kube-ipvs0"] = 7
        yield World(fake)
        return
    space: str = request.getfixturevalue("space")
    netns.finish(
        netns.ip_batch(
            "link add eth0 type veth peer name kube-ipvs0",
            f"address add {HOST}/24 dev eth0",
            "link set eth0 up",
            "link set kube-ipvs0 up",
            "route add default via 192.0.2.254",
            namespace=space,
        )
    )
    netns.write_sysctls(space, {"net/ipv6/conf/all/disable_ipv6": "1"})
    yield World(LinuxMachine(netns.FOLDER / space), space)


def test_addresses(world: World) -> None:
    machine = world.machine
    assert {a.packed for a in machine.addresses()} == {socket.inet_aton(a) for a in ("127.0.0.1", HOST)}
    assert machine.source_address(socket.AF_INET) == HOST
    assert machine.source_address(socket.AF_INET6) == ""
    assert machine.has_family(socket.AF_INET)
    assert not machine.has_family(socket.AF_INET6)
    index = machine.interface("eth0")
    assert index > 0
    assert {a.interface for a in machine.addresses() if a.packed == socket.inet_aton(HOST)} == {index}
    assert machine.interface("nosuch") == 0


async def test_changes_of_addresses_are_notified_but_for_one_interface(world: World) -> None:
    changed = asyncio.Event()
    with world.machine.watch_addresses(changed.set, but="kube-ipvs0"):
        world.add(SERVICE, "kube-ipvs0")
        for _ in range(10):
            await asyncio.sleep(0)
        assert not changed.is_set()
        world.add(OTHER, "eth0")
        async with asyncio.timeout(PATIENCE):
            await changed.wait()
    assert socket.inet_aton(OTHER) in {a.packed for a in world.machine.addresses()}


def test_settings(world: World) -> None:
    machine = world.machine
    machine.set_sysctl("net/ipv4/ip_forward", 0)
    assert machine.set_sysctl("net/ipv4/ip_forward", 1)
    assert not machine.set_sysctl("net/ipv4/ip_forward", 1), "it is that already"
    assert machine.sysctl("net/ipv4/ip_forward") == "1"
    assert "all" in machine.sysctls("net/ipv4/conf")
    for call in (
        lambda: machine.sysctl("net/nosuch"),
        lambda: machine.set_sysctl("net/nosuch", 1),
        lambda: machine.net("nosuch"),
        lambda: machine.module("nosuch", ""),
        lambda: machine.module("nosuch", "parameter"),
    ):
        with pytest.raises(FileNotFoundError):
            call()


def test_programs_that_are_missing(world: World) -> None:
    machine = world.machine
    assert machine.which("no-such-program") is None
    with pytest.raises(FileNotFoundError):
        machine.start(["no-such-program"])
    with pytest.raises(FileNotFoundError):
        machine.feed(["no-such-program"], [b"input"])
    with pytest.raises(FileNotFoundError):
        list(machine.lines(["no-such-program"]))
    machine.stop()


def test_what_is_shared_is_shared_in_one_machine_only(world: World) -> None:
    assert world.machine.shared(Transactions) is world.machine.shared(Transactions)
    assert world.machine.shared(Transactions) is not FakeMachine().shared(Transactions)


def test_sockets(world: World) -> None:
    with world.machine.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with world.machine.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.connect(listener.getsockname())
    with pytest.raises(OSError), world.machine.socket(socket.AF_APPLETALK, socket.SOCK_STREAM):
        pass
    world.machine.lock(0).release()
