"""A configuration takes the place of another one, or does not, with drivers that do as they are told."""

import asyncio
import contextlib
import gc
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from kubeproxy import backends, session
from kubeproxy.api.addresses import IPV4
from kubeproxy.app import App
from kubeproxy.backends.base import Change, Driver, Failures, SyncError, UnsupportedError
from kubeproxy.config import watch
from kubeproxy.config.load import load
from kubeproxy.exchange import Exchange
from kubeproxy.machine.base import Machine
from kubeproxy.machine.fake import FakeMachine
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, ServicePlan
from tests.fakes import modes
from tests.fakes.apiserver import FakeApiServer
from tests.unit.serve.stage import ask

HEAD = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "healthzBindAddress": "",
    "metricsBindAddress": "",
}


class Recording:
    """A driver of IPv4 or IPv6 that notes what it is asked in the log of the kernel."""

    def __init__(self, kernel: "Kernel", node: NodeConfig) -> None:
        self._kernel = kernel
        self._node = node
        self.closed = False
        self.why = kernel.breaks

    async def load(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        assert not self.closed
        self._kernel.loads.append((self, node))
        if self._kernel.hold is not None:
            await self._kernel.hold.wait()
        if self.why:
            raise SyncError(self.why)
        return {}

    async def apply(self, node: NodeConfig, changes: Sequence[Change]) -> Failures:
        assert not self.closed
        self._kernel.applied += [(self, change.key) for change in changes]
        return {}

    async def intact(self) -> bool:
        return True

    def watch(self, disturbed: Callable[[str], None]) -> bool:
        return False

    async def close(self) -> None:
        self.closed = True


class Kernel:
    """What the drivers of all modes were asked; those that are opened while `breaks` is set fail with these words."""

    def __init__(self) -> None:
        self.drivers: list[Recording] = []
        self.loads: list[tuple[Recording, NodeConfig]] = []
        self.applied: list[tuple[Recording, Key]] = []
        self.cleaned: list[str] = []
        self.breaks = ""
        self.unsupported: Callable[[NodeConfig], str] = lambda _: ""
        self.hold: asyncio.Event | None = None

    def open_driver(self, machine: Machine, node: NodeConfig) -> Driver:
        if why := self.unsupported(node):
            raise UnsupportedError(why)
        driver = Recording(self, node)
        if node.family == IPV4:
            self.drivers.append(driver)
        return driver


class Rig:
    """A daemon on node "here" of an API server, with a configuration file."""

    def __init__(self, server: FakeApiServer, file: Path) -> None:
        self.server = server
        self.kernel = Kernel()
        self.machine = FakeMachine(("192.0.2.1", "2001:db8::1"))
        self._file = file
        self._count = 0

    def write(self, text: str = "", **config: Any) -> None:
        self._file.write_text(text or yaml.safe_dump({**HEAD, **config}))

    def put(self, kind: str, name: str, **more: Any) -> None:
        self.server.store.put({"kind": kind, "metadata": {"name": name}, **more})

    def service(self, number: int) -> None:
        self.put("Service", f"s{number}", spec={"clusterIP": f"10.96.0.{number}", "ports": [{"port": 80}]})

    def begin(self, **flags: Any) -> None:
        given = {
            "config": str(self._file),
            "master": self.server.url,
            "hostname-override": "here",
            **flags,
        }
        self.app = App(load(given, "linux"), self.machine)
        self.task = asyncio.create_task(self.app.run())

    @property
    def exchange(self) -> Exchange:
        return self.app.exchange

    @property
    def mode(self) -> str:
        return self.exchange.options.config.mode

    def figures(self, name: str = "kubeproxy_config_changes_total") -> dict[str, float]:
        return {f.labels.get("result", ""): f.value for f in self.exchange.figures() if f.name == name}  # type: ignore[misc]

    async def synced(self) -> None:
        """Waits until the rules of the first configuration are in place."""
        await self.until(lambda: hasattr(self.app, "exchange") and self.exchange.session is not None)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                assert not self.task.done(), self.task
                await asyncio.sleep(0.01)

    async def begun(self, **config: Any) -> None:
        self.put("Node", "here", status={"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]})
        self.service(1)
        self.write(**config)
        self.begin()
        await self.synced()

    async def takes(self, **config: Any) -> None:
        """Writes the file, and waits until it is in force."""
        taken = self.figures()["taken"]
        self.write(**config)
        await self.until(lambda: self.figures()["taken"] == taken + 1)

    async def keeps(self, why: str, **config: Any) -> None:
        """Writes the file, and waits until it is refused."""
        before = self.figures()
        self.write(**config)
        await self.until(lambda: why in self.exchange.trouble)
        assert self.figures()["taken"] == before["taken"]
        assert self.figures("kubeproxy_config_in_force") == {"": 0}
        await self.follows(self.kernel.drivers[0] if len(self.kernel.drivers) == 1 else None)

    async def follows(self, driver: Recording | None = None) -> None:
        """Changes reach the kernel, by a driver."""
        self._count += 1
        self.service(100 + self._count)
        name = f"s{100 + self._count}"
        await self.until(lambda: any(key[1] == name for _, key in self.kernel.applied))
        if driver is not None:
            assert self.kernel.applied[-1][0] is driver

    async def ready(self) -> dict[str, Any]:
        answer = await ask(self.exchange.serving.health.routes()["GET /readyz"])
        found: dict[str, Any] = msgspec.json.decode(answer.body)
        return {"status": answer.status, **found}


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Rig]:
    monkeypatch.setattr(session, "HANDSHAKE_SECONDS", 0)
    monkeypatch.setattr("kubeproxy.log.setup", lambda _: None)
    monkeypatch.setattr(watch.follow, "__kwdefaults__", {"look": 0.05, "settle": 0.02})
    async with FakeApiServer() as server:
        rig = Rig(server, tmp_path / "config.yaml")
        modes.open_by(monkeypatch, rig.kernel.open_driver)
        monkeypatch.setattr(backends, "cleanup", lambda _, mode: rig.kernel.cleaned.append(mode))
        yield rig
        rig.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await rig.task


async def test_another_mode(rig: Rig) -> None:
    await rig.begun(mode="iptables")
    old = rig.kernel.drivers[0]
    await rig.until(lambda: rig.kernel.cleaned == ["ebpf", "nftables", "ipvs"])
    rig.kernel.cleaned.clear()
    await rig.takes(mode="nftables")
    assert rig.mode == "nftables"
    new = rig.kernel.drivers[1]
    await rig.follows(new)
    await rig.until(lambda: rig.kernel.cleaned == ["ebpf", "ipvs", "iptables"])
    await rig.until(lambda: old.closed)
    assert not new.closed
    assert (await rig.ready()) == {"status": 200, "ready": True, "reasons": []}
    rig.app.end(0)
    assert await rig.task == 0
    assert new.closed


async def test_drivers_stay_open_as_long_as_rules_lead_to_them(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a replaced session, and those of one that replaced it and was replaced before it had cleaned up."""
    await rig.begun(mode="userspace")
    await rig.until(lambda: rig.kernel.cleaned == ["ebpf", "ipvs", "iptables"])
    monkeypatch.setattr(session, "HANDSHAKE_SECONDS", 1e6)
    await rig.takes(mode="iptables")
    monkeypatch.setattr(session, "HANDSHAKE_SECONDS", 0)
    removing = threading.Event()

    def cleanup(_: Machine, mode: str) -> None:
        removing.wait(30)
        assert not any(driver.closed for driver in rig.kernel.drivers)
        rig.kernel.cleaned.append(mode)

    monkeypatch.setattr(backends, "cleanup", cleanup)
    await rig.takes(mode="nftables")
    first, second, third = rig.kernel.drivers
    await rig.follows(third)
    assert not first.closed
    assert not second.closed
    rig.kernel.cleaned.clear()
    removing.set()
    await rig.until(lambda: first.closed and second.closed)
    assert rig.kernel.cleaned == ["ebpf", "ipvs", "iptables"]
    assert not third.closed


async def test_drivers_that_could_not_take_over_stay_open_as_long_as_rules_lead_to_them(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.begun(mode="iptables")
    await rig.until(lambda: len(rig.kernel.cleaned) == 3)
    rig.kernel.cleaned.clear()
    rig.kernel.breaks = "no"

    def cleanup(_: Machine, mode: str) -> None:
        assert not rig.kernel.drivers[1].closed
        rig.kernel.cleaned.append(mode)

    monkeypatch.setattr(backends, "cleanup", cleanup)
    rig.write(mode="userspace")
    await rig.until(lambda: len(rig.kernel.drivers) > 1 and rig.kernel.drivers[1].closed)
    assert "nftables" in rig.kernel.cleaned, "the rules of userspace mode are there"
    await rig.follows(rig.kernel.drivers[0])


@pytest.mark.parametrize(
    "config",
    [
        {"clusterCIDR": "10.0.0.0/8"},
        {"iptables": {"masqueradeAll": True}},
        {"iptables": {"minSyncPeriod": "2s"}},
        {"nodePortAddresses": ["192.0.2.0/24"]},
        {"featureGates": {"AllowServiceExternalIPs": False}},
        {"conntrack": {"maxPerCore": 0, "tcpBeLiberal": True}},
    ],
)
async def test_what_rules_depend_on_opens_the_drivers_again(rig: Rig, config: dict[str, Any]) -> None:
    await rig.begun()
    await rig.takes(**config)
    assert len(rig.kernel.drivers) == 2
    await rig.follows(rig.kernel.drivers[1])


@pytest.mark.parametrize(
    "config",
    [
        {"logging": {"verbosity": 4}},
        {"oomScoreAdj": -500},
        {"enableProfiling": True},
        {"healthzBindAddress": "127.0.0.1:0"},
        {"clientConnection": {"qps": 50}},
    ],
)
async def test_what_no_rule_depends_on_leaves_the_drivers_alone(rig: Rig, config: dict[str, Any]) -> None:
    await rig.begun()
    loads = len(rig.kernel.loads)
    await rig.takes(**config)
    assert len(rig.kernel.drivers) == 1
    assert len(rig.kernel.loads) == loads
    await rig.follows(rig.kernel.drivers[0])


async def test_an_invalid_file_and_a_valid_one(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    await rig.begun(mode="iptables")
    await rig.keeps("KubeProxyConfiguration.Mode", mode="iptabels")
    assert any("stays in force" in message for message in caplog.messages)
    ready = await rig.ready()
    assert ready["status"] == 200
    assert ["KubeProxyConfiguration.Mode" in each for each in ready["warnings"]] == [True]
    await rig.takes(mode="nftables")
    assert rig.exchange.trouble == ""
    assert "warnings" not in await rig.ready()
    assert rig.figures("kubeproxy_config_in_force") == {"": 1}


async def test_an_invalid_file_and_the_old_one_again(rig: Rig) -> None:
    await rig.begun(mode="iptables")
    await rig.keeps("KubeProxyConfiguration.Mode", mode="iptabels")
    rig.write(mode="iptables")
    await rig.until(lambda: rig.exchange.trouble == "")
    assert len(rig.kernel.drivers) == 1


async def test_a_mode_that_cannot_run_here(rig: Rig) -> None:
    await rig.begun(mode="iptables")
    rig.kernel.unsupported = lambda _: "the kernel has no such thing"
    await rig.keeps("the kernel has no such thing", mode="nftables")
    assert rig.mode == "iptables"
    assert not rig.kernel.drivers[0].closed


async def test_first_syncs_that_fail(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    await rig.begun(mode="iptables")
    rig.kernel.cleaned.clear()
    rig.kernel.breaks = "no"
    rig.write(mode="nftables")
    await rig.until(lambda: "3 syncs failed: no" in rig.exchange.trouble)
    await rig.until(lambda: rig.kernel.drivers[1].closed)
    await rig.until(lambda: "nftables" in rig.kernel.cleaned)
    await rig.follows(rig.kernel.drivers[0])
    assert rig.mode == "iptables"
    assert "had lost" not in caplog.text
    rig.kernel.breaks = ""
    await rig.takes(mode="nftables", clusterCIDR="10.0.0.0/8")


async def test_changes_during_an_exchange_are_not_lost(rig: Rig) -> None:
    await rig.begun(mode="iptables")
    rig.kernel.hold = asyncio.Event()
    loads = len(rig.kernel.loads)
    rig.write(mode="nftables")
    await rig.until(lambda: len(rig.kernel.loads) > loads)
    rig.service(50)
    await rig.until(lambda: ("default", "s50") in rig.exchange.feed.hub.state.services)
    assert rig.mode == "iptables"
    rig.kernel.hold.set()
    await rig.until(lambda: rig.mode == "nftables")
    await rig.until(
        lambda: any(("default", "s50") in loop.ledger.plans for loop in rig.exchange.feed.hub.loops)
    )


async def test_before_the_first_sync_another_configuration_begins_as_at_a_start(rig: Rig) -> None:
    rig.put("Node", "here", status={"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]})
    rig.service(1)
    rig.kernel.breaks = "no"
    rig.write(mode="iptables")
    rig.begin()
    await rig.until(lambda: len(rig.kernel.loads) > 1)
    rig.kernel.breaks = ""
    rig.write(mode="nftables")
    await rig.synced()
    assert rig.mode == "nftables"
    assert rig.kernel.drivers[0].closed
    await rig.follows(rig.kernel.drivers[1])


async def test_another_api_server(rig: Rig, tmp_path: Path) -> None:
    """Its lists are awaited while the rules of the old one are kept, and followed."""

    def kubeconfig(url: str) -> str:
        file = tmp_path / f"kubeconfig-{url.rpartition(':')[2]}"
        clusters = [{"name": "c", "cluster": {"server": url}}]
        contexts = [{"name": "c", "context": {"cluster": "c"}}]
        file.write_text(yaml.safe_dump({"clusters": clusters, "contexts": contexts, "current-context": "c"}))
        return str(file)

    rig.put("Node", "here", status={"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]})
    rig.service(1)
    rig.write(clientConnection={"kubeconfig": kubeconfig(rig.server.url)})
    rig.begin(master="")
    await rig.synced()
    async with FakeApiServer() as other:
        await other.stop()
        rig.write(clientConnection={"kubeconfig": kubeconfig(other.url)})
        await rig.until(lambda: len(rig.exchange.sessions) == 2)
        await rig.follows(rig.kernel.drivers[0])
        other.store.put(
            {
                "kind": "Node",
                "metadata": {"name": "here"},
                "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
            }
        )
        spec = {"clusterIP": "10.96.0.99", "ports": [{"port": 80}]}
        other.store.put({"kind": "Service", "metadata": {"name": "there"}, "spec": spec})
        await other.start()
        await rig.until(lambda: rig.figures()["taken"] == 1)
        (loop, _) = rig.exchange.feed.hub.loops
        assert list(loop.ledger.plans) == [("default", "there")]
        rig.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await rig.task


async def test_another_name_ends_the_program(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.put("Node", "here", status={"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]})
    rig.write(hostnameOverride="here")
    rig.begin(**{"hostname-override": ""})
    await rig.synced()
    rig.write(hostnameOverride="there")
    async with asyncio.timeout(30):
        assert await rig.task == 1
    assert any("hostnameOverride is 'there'" in message for message in caplog.messages)


async def test_flags_still_override_the_file(rig: Rig) -> None:
    await rig.begun(hostnameOverride="here")
    await rig.takes(hostnameOverride="elsewhere", mode="nftables")
    assert rig.exchange.options.config.node_name == "here"


async def test_a_session_that_was_replaced_is_forgotten(rig: Rig) -> None:
    with warnings.catch_warnings():  # other tests' garbage, which their daemons froze, is collected here
        warnings.simplefilter("ignore", ResourceWarning)
        gc.unfreeze()
        gc.collect()
    await rig.begun(mode="iptables")
    old = weakref.ref(rig.exchange.session)
    rig.kernel.drivers.clear()
    await rig.takes(mode="nftables")
    rig.kernel.loads.clear()
    rig.kernel.applied.clear()
    await rig.until(lambda: len(rig.exchange.sessions) == 1)
    gc.collect()
    assert old() is None
