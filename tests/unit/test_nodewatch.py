"""The daemon and its Node at an API server: what it waits for, what it follows, what it ends for."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import pytest

from kubeproxy import backends, host, nodewatch
from kubeproxy.api.addresses import IPV4, IPV6
from kubeproxy.app import App
from kubeproxy.backends.base import Change, Driver, Failures
from kubeproxy.config.load import load
from kubeproxy.machine.base import Machine
from kubeproxy.machine.fake import FakeMachine
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, ServicePlan
from tests.fakes import modes
from tests.fakes.apiserver import FakeApiServer
from tests.fakes.lines import Fault

ADDRESS = "192.0.2.1"
_FORBIDDEN = Fault(status=403, reason="Forbidden")


class Kernel:
    """A backend of both families; remembers for which nodes it was told to sync, and refuses some Services."""

    def __init__(self) -> None:
        self.nodes: list[NodeConfig] = []
        self.refuses: dict[tuple[str, str], str] = {}
        self.opened: list[NodeConfig] = []

    def open_driver(self, machine: Machine, node: NodeConfig) -> Driver:
        self.opened.append(node)
        return self

    async def load(self, node: NodeConfig, plans: Mapping[Key, ServicePlan]) -> Failures:
        if node.family == IPV4:
            self.nodes.append(node)
        return {key: self.refuses[key] for key in plans if key in self.refuses}

    async def apply(self, node: NodeConfig, changes: Sequence[Change]) -> Failures:
        if node.family == IPV4:
            self.nodes.append(node)
        return {c.key: self.refuses[c.key] for c in changes if c.key in self.refuses}

    async def intact(self) -> bool:
        return True

    def watch(self, disturbed: Callable[[str], None]) -> bool:
        """Nobody disturbs it."""
        return False

    async def close(self) -> None:
        """Holds nothing."""


class Rig:
    """A daemon on node "here" of an API server.

    Attributes:
        server: the API server.
        kernel: what the daemon writes to.
        task: the daemon, once begun.
    """

    def __init__(self, server: FakeApiServer) -> None:
        self.server = server
        self.kernel = Kernel()
        self.machine = FakeMachine(("127.0.0.1", "::1"))

    def put(
        self,
        *addresses: str,
        cidrs: Sequence[str] = (),
        zone: str = "",
        labels: dict[str, str] | None = None,
    ) -> None:
        """The Node is so now."""
        self.server.store.put(
            {
                "kind": "Node",
                "metadata": {
                    "name": "here",
                    "labels": {"topology.kubernetes.io/zone": zone, **(labels or {})},
                },
                "spec": {"podCIDRs": list(cidrs)},
                "status": {"addresses": [{"type": "InternalIP", "address": a} for a in addresses]},
            }
        )

    def begin(self, **flags: Any) -> None:
        silent = {"healthz-port": 0, "metrics-port": 0}
        given: dict[str, Any] = {"master": self.server.url, "hostname-override": "here", **silent, **flags}
        self.task = asyncio.create_task(App(load(given, "linux"), self.machine).run())

    async def ends(self) -> int:
        async with asyncio.timeout(20):
            return await self.task

    async def until(self, condition: Callable[[], object]) -> None:
        """Waits until something is so, while the daemon runs."""
        async with asyncio.timeout(20):
            while not condition():
                assert not self.task.done(), self.task
                await asyncio.sleep(0.01)

    async def synced(self) -> NodeConfig:
        """The node it first synced for."""
        await self.until(lambda: self.kernel.nodes)
        return self.kernel.nodes[-1]

    async def goes_on(self) -> None:
        """It takes in whatever was said and still runs."""
        self.server.store.put(
            {"kind": "Service", "metadata": {"name": "x"}, "spec": _spec(len(self.kernel.nodes))}
        )
        syncs = len(self.kernel.nodes)
        await self.until(lambda: len(self.kernel.nodes) > syncs)


def _spec(number: int) -> dict[str, Any]:
    return {"clusterIP": f"10.96.1.{number}", "ports": [{"port": 80}]}


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    async with FakeApiServer() as server:
        rig = Rig(server)
        modes.open_by(monkeypatch, rig.kernel.open_driver)
        monkeypatch.setattr(backends, "cleanup", lambda *_: None)
        yield rig
        rig.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await rig.task


class TestStart:
    async def test_its_addresses_are_waited_for(self, rig: Rig) -> None:
        rig.put()
        rig.begin()
        await rig.until(lambda: rig.server.asked("Service"))
        await asyncio.sleep(0.1)
        assert not rig.kernel.nodes
        rig.put(ADDRESS)
        assert (await rig.synced()).address == ADDRESS

    async def test_but_not_for_ever(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nodewatch, "ADDRESS_SECONDS", 0.1)
        rig.begin()
        assert (await rig.synced()).address == "127.0.0.1"

    async def test_nor_when_it_may_not_be_read(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nodewatch, "ADDRESS_SECONDS", 0.1)
        rig.server.forbidden = {"Node"}
        rig.put(ADDRESS)
        rig.begin()
        assert (await rig.synced()).address == "127.0.0.1"

    async def test_the_time_runs_from_when_the_server_is_there(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(nodewatch, "ADDRESS_SECONDS", 0.05)
        rig.put(ADDRESS)
        await rig.server.stop()
        rig.begin()
        await rig.until(lambda: "cannot connect" in caplog.text)
        await asyncio.sleep(0.2)
        assert not rig.kernel.opened
        monkeypatch.setattr(nodewatch, "ADDRESS_SECONDS", 30.0)
        await rig.server.start()
        assert (await rig.synced()).address == ADDRESS

    async def test_pod_cidrs_are_waited_for(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        """Longer than addresses."""
        monkeypatch.setattr(nodewatch, "ADDRESS_SECONDS", 0.05)
        rig.put()
        rig.begin(**{"detect-local-mode": "NodeCIDR"})
        await rig.until(lambda: rig.server.asked("Service"))
        await asyncio.sleep(0.2)
        assert not rig.kernel.nodes
        rig.put(ADDRESS, cidrs=["10.244.1.0/24"])
        local = (await rig.synced()).local_traffic
        assert local is not None
        assert local.value == "10.244.1.0/24"

    async def test_without_pod_cidrs_it_ends(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nodewatch, "POD_CIDR_SECONDS", 0.1)
        rig.put(ADDRESS)
        rig.begin(**{"detect-local-mode": "NodeCIDR"})
        with pytest.raises(
            host.NodeError, match="Node here has no podCIDRs, but detectLocalMode is NodeCIDR"
        ):
            await rig.ends()
        assert not rig.kernel.nodes

    async def test_a_start_is_told(self, rig: Rig) -> None:
        rig.put(ADDRESS)
        rig.begin()
        await rig.until(lambda: rig.server.events)
        (event,) = rig.server.events
        assert (event["reason"], event["regarding"]["kind"]) == ("Starting", "Node")


class TestChanges:
    @pytest.fixture
    async def begun(self, rig: Rig) -> Rig:
        rig.put(ADDRESS, cidrs=["10.244.1.0/24"], zone="a")
        rig.begin()
        await rig.synced()
        return rig

    async def test_another_zone(self, begun: Rig) -> None:
        begun.put(ADDRESS, cidrs=["10.244.1.0/24"], zone="b")
        await begun.until(lambda: begun.kernel.nodes[-1].zone == "b")
        await begun.goes_on()

    async def test_what_does_not_concern_us(self, begun: Rig) -> None:
        syncs = len(begun.kernel.nodes)
        begun.put(ADDRESS, cidrs=["10.244.1.0/24"], zone="a", labels={"a": "b"})
        begun.put(ADDRESS, cidrs=["10.244.9.0/24"], zone="a")
        await begun.goes_on()
        assert {node.zone for node in begun.kernel.nodes} == {"a"}
        assert len(begun.kernel.nodes) <= syncs + 2

    async def test_another_address(self, begun: Rig, caplog: pytest.LogCaptureFixture) -> None:
        begun.put("192.0.2.9", cidrs=["10.244.1.0/24"], zone="a")
        await begun.until(lambda: begun.kernel.nodes[-1].address == "192.0.2.9")
        why = "Node here had addresses 192.0.2.1, it has 192.0.2.9 now: the drivers are opened again"
        assert why in caplog.messages
        await begun.goes_on()

    async def test_one_address_more(self, begun: Rig) -> None:
        opened = len(begun.kernel.opened)
        begun.put(ADDRESS, "2001:db8::1", cidrs=["10.244.1.0/24"], zone="a")
        await begun.until(lambda: len(begun.kernel.opened) == opened + 2)
        await begun.until(lambda: begun.kernel.opened[-1].address == "2001:db8::1")
        await begun.goes_on()

    async def test_no_addresses_any_more(self, begun: Rig, caplog: pytest.LogCaptureFixture) -> None:
        """A cloud's controller that has trouble empties the status. What is known is better than loopback."""
        begun.put(zone="b")
        await begun.until(lambda: begun.kernel.nodes[-1].zone == "b")
        assert begun.kernel.nodes[-1].address == ADDRESS
        assert "Node here has no addresses any more, the last known ones stay in use" in caplog.messages
        begun.put(ADDRESS, zone="c")
        await begun.until(lambda: begun.kernel.nodes[-1].zone == "c")
        begun.put("192.0.2.9")
        await begun.until(lambda: begun.kernel.nodes[-1].address == "192.0.2.9")

    async def test_deleted(self, begun: Rig, caplog: pytest.LogCaptureFixture) -> None:
        begun.server.store.delete("Node", "here")
        assert await begun.ends() == 1
        assert "Node here was deleted: exiting, to be started again" in caplog.messages

    async def test_deleted_while_the_server_was_away(self, begun: Rig) -> None:
        await begun.server.stop()
        begun.server.store.delete("Node", "here")
        begun.server.store.compact()
        await begun.server.start()
        assert await begun.ends() == 1

    async def test_another_node(self, begun: Rig) -> None:
        """A server that ignores field selectors."""
        begun.server.store.put({"kind": "Node", "metadata": {"name": "there"}})
        begun.server.store.delete("Node", "there")
        await begun.goes_on()


async def test_other_pod_cidrs(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.put(ADDRESS, cidrs=["10.244.1.0/24"])
    rig.begin(**{"detect-local-mode": "NodeCIDR"})
    await rig.synced()
    rig.put(ADDRESS, cidrs=["10.244.7.0/24"])

    def local() -> str:
        found = rig.kernel.nodes[-1].local_traffic
        return found.value if found else ""

    await rig.until(lambda: local() == "10.244.7.0/24")
    assert "Node here had podCIDRs 10.244.1.0/24, it has 10.244.7.0/24 now: the drivers" in caplog.text


async def test_a_node_that_comes_late(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It began with loopback; with addresses the drivers are opened again."""
    monkeypatch.setattr(nodewatch, "ADDRESS_SECONDS", 0.1)
    rig.begin()
    assert (await rig.synced()).address == "127.0.0.1"
    rig.put(zone="a")
    await rig.until(lambda: rig.kernel.nodes[-1].zone == "a")
    rig.put(ADDRESS, zone="a")
    await rig.until(lambda: rig.kernel.nodes[-1].address == ADDRESS)


async def test_a_refused_service_has_an_event(rig: Rig) -> None:
    rig.kernel.refuses = {("default", "bad"): "no such table"}
    for number, name in enumerate(("bad", "good"), 1):
        rig.server.store.put({"kind": "Service", "metadata": {"name": name}, "spec": _spec(number)})
    rig.put(ADDRESS)
    rig.begin()
    await rig.until(lambda: len(rig.server.events) >= 2)
    (event,) = (event for event in rig.server.events if event["regarding"]["kind"] == "Service")
    assert event["regarding"]["name"] == "bad"
    assert (event["reason"], event["type"]) == ("FailedToProgramService", "Warning")
    assert event["note"] == "here: IPv4: no such table"


async def test_events_that_may_not_be_written_harm_nothing(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.put(ADDRESS)
    rig.server.next(*[_FORBIDDEN] * 3, verb="post")
    rig.begin()
    await rig.synced()
    await rig.until(lambda: "Events cannot be written" in caplog.text)
    await rig.goes_on()


class TestInitOnly:
    async def test_it_opens_the_mode_and_asks_no_server(self, rig: Rig) -> None:
        await rig.server.stop()
        rig.task = asyncio.create_task(
            App(load({"hostname-override": "here"}, "linux"), rig.machine).prepare()
        )
        assert await rig.ends() == 0
        assert {node.family for node in rig.kernel.opened} == {IPV4, IPV6}
        assert not rig.kernel.nodes
        assert not rig.server.requests


async def test_a_node_that_does_not_exist(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(nodewatch, "ADDRESS_SECONDS", 0.3)
    rig.begin()
    node = await rig.synced()
    assert node.address == "127.0.0.1"
    told = [(r.levelname, r.getMessage()) for r in caplog.records if r.name.endswith(("nodewatch", "host"))]
    cure = "set --hostname-override if this node has another name in the cluster"
    assert [text for text in told if "does not exist" in text[1]] == [
        ("ERROR", f"Node here does not exist: {cure}; waiting for it, 0.3 s at most")
    ]
    assert (
        "INFO",
        "This is node here, with addresses of loopback (assumed, there is no Node object)",
    ) in told
    assert any(level == "WARNING" and "assuming loopback" in text for level, text in told)
    assert not any("has no addresses yet" in text for _, text in told)


async def test_a_node_that_has_no_addresses_yet(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    rig.put()
    rig.begin()
    await rig.until(lambda: "Node here has no addresses yet, waiting 30 s at most" in caplog.text)
    rig.put(ADDRESS)
    await rig.synced()
    assert f"This is node here, with addresses {ADDRESS} (of its Node object)" in caplog.text
    assert "does not exist" not in caplog.text
    assert "loopback" not in caplog.text


async def test_before_the_node_was_listed_nothing_is_said_of_it(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rig.put(ADDRESS)
    rig.server.next(_FORBIDDEN, kind="Node")
    rig.begin()
    await rig.synced()
    assert "has no addresses yet" not in caplog.text
    assert "does not exist" not in caplog.text
