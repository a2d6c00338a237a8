"""A Windows host, made of interfaces, a lock and processes in memory."""

import asyncio
import os
import socket
import sys
from ipaddress import ip_address

import pytest

from kubeproxy import host as hosts
from kubeproxy.api.addresses import IPV4, IPV6
from kubeproxy.config.load import load
from kubeproxy.insight import origin
from kubeproxy.linux.instance import HeldError, Holder
from kubeproxy.machine.windows import WindowsMachine
from kubeproxy.netlink.route import Address
from kubeproxy.windows.adapters import Adapter
from kubeproxy.windows.fake_host import FakeAdapters, FakeLock, FakeProcesses


def adapter(index: int, name: str, *addresses: str, mac: str = "", loopback: bool = False) -> Adapter:
    parts = [address.partition("/") for address in addresses]
    packed = tuple((ip_address(text).packed, int(prefix)) for text, _, prefix in parts)
    return Adapter(index, name, mac, 1500, loopback, True, packed)


LOOPBACK = adapter(1, "Loopback Pseudo-Interface 1", "127.0.0.1/8", "::1/128", loopback=True)
ETHERNET = adapter(
    7, "vEthernet (Ethernet)", "192.0.2.1/24", "2001:db8::1/64", "fe80::1/64", mac="00-15-5D-00-00-AB"
)


class World:
    def __init__(self) -> None:
        self.adapters = FakeAdapters([LOOPBACK, ETHERNET])
        self.lock = FakeLock()
        self.processes = FakeProcesses()
        self.machine = WindowsMachine(adapters=self.adapters, lock=self.lock, processes=self.processes)


@pytest.fixture
def world() -> World:
    return World()


def test_addresses_and_interfaces(world: World) -> None:
    machine = world.machine
    assert Address(socket.inet_pton(socket.AF_INET, "192.0.2.1"), 24, 7) in machine.addresses()
    assert len(machine.addresses()) == 5
    assert machine.interface("vEthernet (Ethernet)") == 7
    assert machine.interface_name(7) == "vEthernet (Ethernet)"
    assert (machine.interface("none"), machine.interface_name(99)) == (0, "")
    assert [(link.number, link.mtu, link.up) for link in machine.links()] == [
        (1, 1500, True),
        (7, 1500, True),
    ]
    assert hosts.supported_families(machine) == [IPV4, IPV6]


def test_a_host_without_ipv6_addresses_has_no_ipv6(world: World) -> None:
    world.adapters.present = [adapter(1, "Loopback", "127.0.0.1/8", loopback=True)]
    assert hosts.supported_families(world.machine) == [IPV4]


@pytest.mark.parametrize(
    ("address", "mac"),
    [
        ("192.0.2.1", "00-15-5D-00-00-AB"),
        ("2001:db8:0::1", "00-15-5D-00-00-AB"),
        ("127.0.0.1", ""),
        ("192.0.2.2", ""),
    ],
)
def test_the_hardware_address_of_an_address(world: World, address: str, mac: str) -> None:
    assert world.machine.mac(address) == mac


def test_own_addresses_are_routed_locally(world: World) -> None:
    route = world.machine.route_to("192.0.2.1")
    assert route is not None
    assert (route.interface, route.local) == (7, True)
    elsewhere = world.machine.route_to("127.0.0.9")  # the real host of the test answers
    assert elsewhere is not None
    assert not elsewhere.local


async def test_a_change_of_addresses_calls_back_in_the_event_loop(world: World) -> None:
    changed = asyncio.Event()
    with world.machine.watch_addresses(changed.set, but="kube-ipvs0"):
        await asyncio.to_thread(world.adapters.change, [LOOPBACK])
        await changed.wait()
        assert len(world.machine.addresses()) == 2
    world.adapters.change([ETHERNET])


def test_a_change_after_the_loop_was_closed_is_ignored(world: World) -> None:
    watching = world.machine.watch_addresses(lambda: None, but="")

    async def begin() -> None:
        watching.__enter__()

    asyncio.run(begin())
    world.adapters.change([LOOPBACK])


def test_only_one_instance_runs(world: World) -> None:
    machine = world.machine
    assert machine.holder() is None
    lock = machine.lock(0)
    assert lock.fileno() == -1
    assert machine.holder() == Holder(os.getpid(), 0)
    waited: list[Holder] = []
    with pytest.raises(HeldError, match=rf"process {os.getpid()}\) runs on this host"):
        machine.lock(0.15, waiting=waited.append)
    assert waited == [Holder(os.getpid(), 0)]
    lock.release()
    machine.lock(0).release()
    assert machine.holder() is None


def test_what_only_linux_has_is_missing(world: World) -> None:
    machine = world.machine
    for missing in (
        lambda: machine.sysctl("net/ipv4/ip_forward"),
        lambda: machine.set_sysctl("net/ipv4/ip_forward", 1),
        lambda: machine.sysctls("net/ipv4/conf"),
        lambda: machine.watch_sysctls(lambda: None),
        lambda: machine.module("xt_recent", ""),
        lambda: machine.net("if_inet6"),
        lambda: machine.feed(["iptables-restore"], []),
        lambda: machine.lines(["iptables-save"]),
    ):
        with pytest.raises(OSError, match="not implemented"):
            missing()
    assert machine.lacks(("CAP_NET_ADMIN",)) == []
    assert machine.running() == []
    machine.set_oom_score(-999)
    machine.stop()


def test_commands_find_the_configuration_of_the_daemon(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    world.lock.take(4711)
    world.processes.lines[4711] = (
        "C:\\Program Files\\Python312\\python.exe".replace("\\", os.sep),
        "C:\\k\\kube-proxy.exe",
        "--manifests=C:\\k\\services",
        "--network-name=azure",
    )
    found = origin.find({}, world.machine, {})
    assert found.process == 4711
    assert found.options.config.winkernel.network_name == "azure"
    assert found.options.manifests[0].endswith("C:\\k\\services")


def test_a_daemon_whose_command_line_cannot_be_read_is_named(world: World) -> None:
    world.lock.take(4711)
    with pytest.raises(origin.OriginError, match="process 4711, cannot be read"):
        origin.find({}, world.machine, {})


def test_the_node_has_the_addresses_of_the_host(world: World) -> None:
    options = load({"manifests": ("x",), "bind-address": "192.0.2.1"}, "win32")
    host = hosts.host(options.config, "node1", None, supported=hosts.supported_families(world.machine))
    assert host.primary.address == "192.0.2.1"
