"""Two daemons of one process, each in a network namespace of its own: rules, sockets, the lock, repairs and counters are apart."""

import asyncio
import contextlib
import logging
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest

from kubeproxy.api.addresses import IPV4
from kubeproxy.app import App
from kubeproxy.backends.programs import Programs
from kubeproxy.config.load import load
from kubeproxy.linux.instance import HeldError
from kubeproxy.machine.linux import LinuxMachine
from kubeproxy.netlink.nft.kernel import NftKernel
from kubeproxy.netlink.nft.messages import IP, TableName, add_table, delete_table
from tests.fakes.cluster import Folder, endpoints, service
from tests.kernel.daemons import PATIENCE
from tests.lab import netns
from tests.machines import MACHINE

HOST, FRONT, OTHER = "192.0.2.1", "10.96.0.10", "10.96.0.11"
HEALTH = 10256
MODES = ["nftables", "iptables", "userspace"]


class Place:
    """A namespace whose only endpoint says its name, and the daemon in it.

    Attributes:
        name: of the namespace.
        machine: the host bound to it.
        folder: its manifests.
        app: its daemon.
    """

    def __init__(self, name: str, path: Path, mode: str) -> None:
        self.name = name
        self.machine = LinuxMachine(netns.FOLDER / name)
        self.folder = Folder(path)
        self.folder.put(service("web", FRONT), endpoints("web", HOST))
        flags = {
            "proxy-mode": mode,
            "manifests": [str(path)],
            "hostname-override": "here",
            "healthz-bind-address": f"127.0.0.1:{HEALTH}",
        }
        self.app = App(load(flags, "linux"), self.machine)

    def ask(self, address: str, port: int, given: bytes = b"") -> bytes:
        """What a server answers to a client in the namespace; nothing if there is none."""
        with netns.inside(self.name):
            client = socket.socket()
        with client, contextlib.suppress(OSError):
            client.settimeout(PATIENCE)
            client.connect((address, port))
            client.sendall(given)
            return client.recv(4096)
        return b""

    def nft(self, *arguments: str) -> str:
        """Runs nft in the namespace."""
        with netns.inside(self.name):
            return subprocess.run(["nft", *arguments], check=True, capture_output=True, text=True).stdout

    @contextlib.contextmanager
    def endpoint(self) -> Iterator[None]:
        """A server on port 8080 that sends the name of the namespace."""
        with netns.inside(self.name):
            listener = socket.create_server((HOST, 8080))

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with listener.accept()[0] as client:
                        client.sendall(self.name.encode())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with listener:
            yield
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The daemon runs."""
        alone = self.machine.lock(0)
        task = asyncio.create_task(self.app.run(alone))
        try:
            yield
            assert not task.done(), task
            self.app.end(0)
            assert await task == 0
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            alone.release()


@pytest.fixture
def names() -> Iterator[list[str]]:
    prefix = netns.unique_prefix()
    names = [f"{prefix}{number}" for number in (1, 2)]
    netns.create(names)
    try:
        for name in names:
            netns.finish(
                netns.ip_batch(
                    "link set lo up",
                    "link add eth0 type veth peer name eth1",
                    f"address add {HOST}/24 dev eth0",
                    "link set eth0 up",
                    "link set eth1 up",
                    "route add default via 192.0.2.2",
                    namespace=name,
                )
            )
        yield names
    finally:
        netns.delete(names)


def tables() -> str:
    """The tables of the namespace the test itself is in."""
    return subprocess.run(["nft", "list", "tables"], check=True, capture_output=True, text=True).stdout


async def until(condition: Callable[[], object]) -> None:
    """Waits, while the daemons run."""
    async with asyncio.timeout(PATIENCE):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110 it is the kernel's state
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("mode", MODES)
async def test_each_serves_its_own(
    names: list[str], tmp_path: Path, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kubeproxy")
    home = tables()
    one, two = (Place(name, tmp_path / f"{n}", mode) for n, name in enumerate(names))
    async with AsyncExitStack() as daemons:
        with ExitStack() as servers:
            for place in (one, two):
                servers.enter_context(place.endpoint())
                await daemons.enter_async_context(place.running())
            for place in (one, two):
                await until(lambda place=place: place.ask(FRONT, 80) == place.name.encode())  # type: ignore[misc]
                answer = await asyncio.to_thread(
                    place.ask, "127.0.0.1", HEALTH, b"GET /livez HTTP/1.0\r\n\r\n"
                )
                assert answer.split()[1] == b"200"
                with pytest.raises(HeldError, match="another kube-proxy"):
                    place.machine.lock(0)
            two.folder.put(service("other", OTHER), endpoints("other", HOST))
            await until(lambda: two.ask(OTHER, 80) == two.name.encode())
            assert OTHER in two.nft("list", "ruleset")
            assert OTHER not in one.nft("list", "ruleset")
        assert caplog.text.count("Synced: 1 Services in place") == 2
        assert "changed" not in caplog.text, "what one does is no change by somebody else for the other"
    assert MACHINE.interface("lo"), "the test's own thread is where it was"
    assert tables() == home, "nothing was written where the process itself is"


async def test_drift_is_repaired_where_it_happens(
    names: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kubeproxy")
    one, two = (Place(name, tmp_path / f"{n}", "nftables") for n, name in enumerate(names))
    async with one.running(), two.running():
        for place in (one, two):
            await until(lambda place=place: FRONT in place.nft("list", "ruleset"))  # type: ignore[misc]
        await until(lambda: caplog.text.count("Synced: ") == 2)
        kept = await asyncio.to_thread(two.nft, "list", "ruleset")
        await asyncio.to_thread(one.nft, "delete", "table", "ip", "kube-proxy")
        await until(lambda: FRONT in one.nft("list", "ruleset"))
        assert await asyncio.to_thread(two.nft, "list", "ruleset") == kept
        assert caplog.text.count("changed table ip kube-proxy") == 1


def test_programs_and_settings_are_those_of_the_namespace(names: list[str]) -> None:
    one, two = (LinuxMachine(netns.FOLDER / name) for name in names)
    one.set_sysctl("net/ipv4/ip_forward", 1)
    two.set_sysctl("net/ipv4/ip_forward", 0)
    assert [machine.sysctl("net/ipv4/ip_forward") for machine in (one, two)] == ["1", "0"]
    netns.finish(netns.ip_batch("link add only-here type veth peer name only-too", namespace=names[0]))
    assert "only-here" in "\n".join(one.lines(["ip", "-o", "link"]))
    assert "only-here" not in "\n".join(two.lines(["ip", "-o", "link"]))
    assert one.interface("only-here")
    assert not two.interface("only-here")
    assert "only-here" in one.sysctls("net/ipv4/conf")
    with one.net("dev") as file:
        assert b"only-here" in file.read()
    assert one.source_address(socket.AF_INET) == HOST
    assert {address.packed for address in one.addresses()} >= {socket.inet_aton(HOST)}


def test_a_namespace_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LinuxMachine(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot enter the network namespace"):
        LinuxMachine(tmp_path / "file")


@pytest.mark.parametrize("how", ["netlink", "program"])
def test_what_we_do_in_one_is_not_counted_in_the_other(names: list[str], how: str) -> None:
    one, two = (LinuxMachine(netns.FOLDER / name) for name in names)
    table = TableName(IP, "test")

    def looks() -> list[object]:
        found: list[object] = []
        for machine in (one, two):
            with NftKernel(machine) as kernel:
                found.append(kernel.others())
            found.append(programs(machine).fingerprint())
        return found

    def programs(machine: LinuxMachine) -> Programs:
        return Programs(machine, IPV4, "iptables-nft-save", "iptables-nft-restore", "nf_tables")

    programs(one).restore("nat", [":TEST - [0:0]\n"])
    with NftKernel(one) as kernel:
        kernel.commit([add_table(table)])
    before = looks()
    if how == "netlink":
        with NftKernel(one) as kernel:
            kernel.commit([delete_table(table)])
        own, others = 0, 1
    else:
        programs(one).restore("nat", ["-X TEST\n"])
        own, others = 1, 0
    after = looks()
    assert after[own] == before[own], "it is no change by somebody else"
    assert after[others] != before[others], "the other way of writing is not ours"
    assert after[2:] == before[2:], "in the other namespace nothing was done, by anybody"
