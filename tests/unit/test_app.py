"""The daemon's parts together, with a source and backends that do as told; nothing here touches the kernel."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kubeproxy import backends, session, sysctls
from kubeproxy.api import types
from kubeproxy.api.addresses import IPV4, IPV6, Family
from kubeproxy.app import App
from kubeproxy.backends.base import VIRTUAL_INTERFACE, Change, Driver, Failures, UnsupportedError
from kubeproxy.config.load import load
from kubeproxy.config.types import Conntrack
from kubeproxy.figures import Figure
from kubeproxy.hub import Hub
from kubeproxy.machine.base import Machine
from kubeproxy.machine.fake import FakeMachine
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, ServicePlan
from kubeproxy.netlink.route import Address
from kubeproxy.sources import manifests
from kubeproxy.sources.unusable import Unusable
from tests.fakes import modes
from tests.fakes.clock import FakeClock


class Recorder:
    """A backend that remembers which Services each sync was told."""

    def __init__(self, syncs: list[tuple[Family, list[Key]]], nodes: list[NodeConfig]) -> None:
        self._syncs = syncs
        self._nodes = nodes

    async def load(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        self._syncs.append((node.family, list(plans)))
        self._nodes.append(node)
        return {}

    async def apply(self, node: NodeConfig, changes: Sequence[Change]) -> Failures:
        self._syncs.append((node.family, [c.key for c in changes]))
        self._nodes.append(node)
        return {}

    def watch(self, disturbed: Callable[[str], None]) -> bool:
        self.disturbed = disturbed
        return False

    async def close(self) -> None:
        self.closed = True

    async def intact(self) -> bool:
        return True


class Rig:
    """An App whose kernel is a list."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        folder: Path,
        *,
        machine: FakeMachine | None = None,
        **flags: Any,
    ) -> None:
        self.syncs: list[tuple[Family, list[Key]]] = []
        self.nodes: list[NodeConfig] = []
        self.unsupported: set[Family] = set()
        self.opened: set[Family] = set()
        self.cleaned: list[str] = []
        self.settings: list[Conntrack] = []
        self.listed = asyncio.Event()
        modes.open_by(monkeypatch, self.open_driver)
        monkeypatch.setattr(backends, "cleanup", lambda _, mode: self.cleaned.append(mode))
        monkeypatch.setattr(session, "HANDSHAKE_SECONDS", 0)
        monkeypatch.setattr(sysctls, "apply", lambda _, settings: self.settings.append(settings))
        monkeypatch.setattr(manifests, "Manifests", self._source)
        silent = {"healthz-port": 0, "metrics-port": 0}
        given = {"manifests": [str(folder)], "hostname-override": "here", **silent, **flags}
        self.app = App(load(given, "linux"), machine or FakeMachine(("192.0.2.1", "2001:db8::1")))

    def open_driver(self, machine: Machine, node: NodeConfig) -> Driver:
        if node.family in self.unsupported:
            raise UnsupportedError(f"no {node.family} here")
        self.opened.add(node.family)
        return Recorder(self.syncs, self.nodes)

    def _source(self, paths: Sequence[Path], sink: Hub, **_: Any) -> "Rig":
        self.hub = sink
        self.unusable = Unusable()
        return self

    def figures(self) -> Iterable[Figure]:
        return ()

    async def run(self) -> None:
        """The source: the list of EndpointSlices is complete when the test says so."""
        meta = types.ObjectMeta(name="here")
        status = types.NodeStatus((types.NodeAddress("InternalIP", "192.0.2.1"),))
        self.hub.set(types.Node(meta, status=status))
        spec = types.ServiceSpec(ports=(types.ServicePort(80),), cluster_ip="10.96.0.1")
        self.hub.set(types.Service(types.ObjectMeta(name="a", namespace="default"), spec))
        for kind in types.KINDS.keys() - {"EndpointSlice"}:
            self.hub.complete(kind)
        await self.listed.wait()
        self.hub.complete("EndpointSlice")
        await asyncio.Event().wait()


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 what is waited for happens in threads
            await asyncio.sleep(0.01)


async def test_nothing_is_written_before_services_and_endpoints_are_complete(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rig = Rig(monkeypatch, tmp_path)
    task = asyncio.create_task(rig.app.run())
    await _until(lambda: rig.opened == {IPV4, IPV6})
    await FakeClock.settle()
    assert rig.syncs == []
    assert rig.settings == [Conntrack()], "kernel settings come before the rules"
    rig.listed.set()
    await _until(lambda: len(rig.cleaned) == 3)
    assert sorted(rig.syncs) == [(IPV4, [("default", "a")]), (IPV6, [])]
    assert rig.cleaned == ["ebpf", "nftables", "ipvs"], (
        "after its rules are in place it removes what other modes left"
    )
    rig.app.end(0)
    assert await task == 0


async def test_a_service_without_endpoints_is_said_once_when_rules_are_in_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rig = Rig(monkeypatch, tmp_path)
    task = asyncio.create_task(rig.app.run())
    await _until(lambda: rig.opened == {IPV4, IPV6})
    await FakeClock.settle()
    said = "Service default/a: it has no endpoints, connections to it are rejected"
    assert said not in caplog.text, "they may be in what is yet to come"
    rig.listed.set()
    await _until(lambda: said in caplog.text)
    text = caplog.text
    assert text.index("writing rules") < text.index(said)
    for loop in rig.hub.loops:
        loop.resync()
    await _until(lambda: len(rig.syncs) == 4)
    await FakeClock.settle()
    assert caplog.text.count(said) == 1
    rig.app.end(0)
    assert await task == 0


async def test_a_second_family_that_cannot_be_served_is_done_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(monkeypatch, tmp_path)
    rig.unsupported = {IPV6}
    rig.listed.set()
    task = asyncio.create_task(rig.app.run())
    await _until(lambda: rig.cleaned)
    assert rig.syncs == [(IPV4, [("default", "a")])]
    assert "Only IPv4 is served: no IPv6 here" in caplog.text
    rig.app.end(0)
    assert await task == 0


async def test_the_primary_family_must_be_served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rig = Rig(monkeypatch, tmp_path)
    rig.unsupported = {IPV4}
    rig.listed.set()
    with pytest.raises(UnsupportedError, match="no IPv4 here"):
        await rig.app.run()
    assert rig.syncs == []


class Host(FakeMachine):
    """A host whose addresses cannot always be listed."""

    unsteady = False

    def addresses(self) -> list[Address]:
        if self.unsteady:
            raise OSError(4, "too fast")
        return super().addresses()


async def test_node_ports_follow_the_addresses_of_the_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = Host(("192.0.2.1", "2001:db8::1"))
    host.interfaces[VIRTUAL_INTERFACE] = 7
    host.set_addresses(["192.0.2.99"], interface=VIRTUAL_INTERFACE)
    rig = Rig(monkeypatch, tmp_path, machine=host, **{"nodeport-addresses": ["192.0.2.0/24"]})
    task = asyncio.create_task(rig.app.run())
    await _until(lambda: rig.opened == {IPV4, IPV6})
    await FakeClock.settle()

    def serves(*numbers: int) -> bool:
        found = [node for node in rig.nodes if node.family == IPV4]
        return bool(found) and found[-1].node_port_addresses == tuple(f"192.0.2.{i}" for i in numbers)

    host.set_addresses(["192.0.2.1", "192.0.2.2"])  # nobody is told: nobody watches yet
    rig.listed.set()
    await _until(lambda: serves(1, 2))
    host.set_addresses(["192.0.2.3"])
    await _until(lambda: serves(3))
    host.own.append(Address(bytes([192, 0, 2, 5]), 24, 2))
    host.set_addresses(["192.0.2.98"], interface=VIRTUAL_INTERFACE)  # a Service's: nobody has to look
    await FakeClock.settle()
    assert serves(3)
    host.unsteady = True
    host.set_addresses(["192.0.2.4"])
    await _until(lambda: "cannot be listed" in caplog.text)
    assert serves(3)
    host.unsteady = False
    host.set_addresses(["192.0.2.4"])
    await _until(lambda: serves(4))
    rig.app.end(0)
    assert await task == 0
