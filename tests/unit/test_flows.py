"""What follows a sync: who is woken, what is asked of the kernel, and what becomes of its refusals. The kernel is a list."""

import asyncio
import contextlib
import errno
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest

from kubeproxy.api.addresses import IPV6
from kubeproxy.api.rows import Protocol
from kubeproxy.flows import Cleaned, FlowCleaner
from kubeproxy.machine.base import Machine
from kubeproxy.machine.fake import FakeMachine
from kubeproxy.model.flows import place
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint
from kubeproxy.netlink import conntrack
from kubeproxy.reconcile.ledger import Ledger

DNS, WEB = ("shop", "dns"), ("shop", "web")
TCP, UDP, SCTP = 6, 17, 132
A, B = place("10.244.1.1", 5353), place("10.244.1.2", 5353)
FRONT, NODE_PORT = place("10.96.0.10", 53), place("192.0.2.1", 30053)
Asked = tuple[int, int, bytes, bytes]


class Flow(NamedTuple):
    protocol: int
    destination: bytes
    source: bytes
    zone: int = 0
    unanswered: bool = False


class Loop:
    """A control loop without any: it tells what the test says was synced."""

    def __init__(self, node: NodeConfig) -> None:
        self.node = node
        self.family = node.family
        self.ledger = Ledger(node.family)

    def in_kernel(self, plan: ServicePlan) -> ServicePlan:
        return plan

    def full(self, *plans: ServicePlan, refused: Sequence[ServicePlan] = ()) -> None:
        for key in self.ledger.known():
            self.ledger.want(key, None)
        for plan in (*plans, *refused):
            self.ledger.want(plan.key, plan)
        self.ledger.loaded({plan.key: "no" for plan in refused})

    def partial(self, plan: ServicePlan) -> None:
        self._change(plan.key, plan)

    def gone(self, key: Key) -> None:
        self._change(key, None)

    def _change(self, key: Key, plan: ServicePlan | None) -> None:
        self.ledger.want(key, plan)
        self.ledger.applied(self.ledger.due())


class Kernel:
    """A connection table.

    Attributes:
        table: the flows.
        asked: which lists were asked for.
        fails: what the next requests are answered with.
        meanwhile: what happens once, when a list has been read.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.table: list[Flow] = []
        self.asked: list[Asked] = []
        self.fails: list[OSError] = []
        self.meanwhile: Callable[[], None] = lambda: None
        monkeypatch.setattr(conntrack, "flows", self._flows)
        monkeypatch.setattr(conntrack, "delete", self._delete)
        monkeypatch.setattr(conntrack, "delete_unanswered", self._delete)
        self.machine = FakeMachine(("192.0.2.1", "fd00::1"))

    def _flows(
        self,
        machine: Machine,
        family: int,
        protocol: int,
        *,
        destination: bytes = b"",
        source: bytes = b"",
        unanswered: bool = False,
    ) -> Iterator[Flow]:
        self.asked.append((family, protocol, destination, source))
        if self.fails:
            raise self.fails.pop(0)
        yield from [
            flow
            for flow in self.table
            if flow.protocol == protocol
            and (flow.unanswered or not unanswered)
            and destination in {b"", flow.destination, flow.destination[-2:]}
            and source in {b"", flow.source}
        ]
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()

    def _delete(self, machine: Machine, flows: Sequence[Flow]) -> int:
        for flow in flows:
            self.table.remove(flow)
        return len(flows)


class Rig:
    """A cleaner that runs."""

    def __init__(self, kernel: Kernel, node: NodeConfig) -> None:
        self.kernel = kernel
        self.loop = Loop(node)
        self.cleaner = FlowCleaner(self.kernel.machine, self.loop, unanswered_seconds=0.01)  # type: ignore[arg-type]
        self.done: list[Cleaned] = []
        self.cleaner.on_clean(self.done.append)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.cleaner.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def cleaned(self, times: int = 1) -> list[Asked]:
        """Waits for cleanings; returns what was asked for."""
        await until(lambda: len(self.done) >= times)
        assert len(self.done) == times
        self.done.clear()
        asked, self.kernel.asked = self.kernel.asked, []
        return asked

    async def idle(self) -> bool:
        """Whether nobody has anything to do."""
        for _ in range(10):
            await asyncio.sleep(0)
        return not self.cleaner._wake.is_set() and not self.kernel.asked and not self.done


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 what is waited for happens in threads
            await asyncio.sleep(0.001)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


@pytest.fixture
def rig(kernel: Kernel) -> Rig:
    return Rig(kernel, NodeConfig())


def service(*endpoints: int, key: Key = DNS, protocol: Protocol = "UDP", **fields: Any) -> ServicePlan:
    backends = tuple(Endpoint(f"10.244.1.{i}", 5353) for i in endpoints)
    defaults = {"cluster_ip": "10.96.0.10", "cluster": backends}
    serving = () if protocol == "TCP" else backends
    return ServicePlan(
        *key, (PortPlan("/".join(key), protocol, 53, **{**defaults, "serving": serving, **fields}),)
    )


async def test_the_first_sync_has_everything_looked_at(rig: Rig, kernel: Kernel) -> None:
    kernel.table = [Flow(UDP, FRONT, A), Flow(UDP, FRONT, B), Flow(UDP, FRONT, FRONT), Flow(UDP, B, A)]
    async with rig.running():
        rig.loop.full(service(1), service(1, key=WEB, protocol="TCP", cluster_ip="10.96.0.20"))
        await until(lambda: rig.done)
        assert (rig.done[0].listed, rig.done[0].deleted) == (4, 2)
        assert await rig.cleaned() == [(2, UDP, b"", b""), (2, TCP, place("10.96.0.20", 53), b"")]
    assert kernel.table == [Flow(UDP, FRONT, A), Flow(UDP, B, A)]
    assert rig.cleaner.deleted == 2


async def test_of_tcp_nothing_is_asked_but_when_a_front_comes(rig: Rig) -> None:
    async with rig.running():
        rig.loop.full(service(1, protocol="TCP"))
        assert await rig.cleaned() == [(2, TCP, FRONT, b"")]
        rig.loop.partial(service(1, 2, protocol="TCP"))
        rig.loop.partial(service(protocol="TCP"))
        assert await rig.idle()
        rig.loop.partial(service(1, protocol="TCP"))
        assert await rig.cleaned() == [(2, TCP, FRONT, b"")]
        rig.loop.gone(DNS)
        assert await rig.idle()


async def test_a_tcp_client_who_began_before_its_front_came_is_forgotten_and_nobody_else(
    rig: Rig, kernel: Kernel
) -> None:
    old = place("10.96.0.20", 53)
    bystanders = [
        Flow(TCP, FRONT, FRONT),
        Flow(TCP, FRONT, A, unanswered=True),
        Flow(TCP, old, old, unanswered=True),
        Flow(UDP, FRONT, FRONT),
    ]
    waiting = [Flow(TCP, at, at, unanswered=True) for at in (FRONT, NODE_PORT)]
    async with rig.running():
        rig.loop.full(service(1, key=WEB, protocol="TCP", cluster_ip="10.96.0.20"))
        await rig.cleaned()
        kernel.table = [*bystanders, *waiting]
        rig.loop.partial(service(1, protocol="TCP", node_port=30053))
        await rig.cleaned()
    assert kernel.table == bystanders


async def test_tcp_clients_that_wait_for_a_removed_endpoint_are_served_by_another(
    rig: Rig, kernel: Kernel
) -> None:
    """Those that are answered, or wait for an endpoint that is left, stay; all removals are looked at together."""
    other = place("10.96.0.20", 53)
    stay = [
        Flow(TCP, FRONT, A, unanswered=True),
        Flow(TCP, FRONT, B),
        Flow(TCP, place("10.96.0.99", 53), B, unanswered=True),
    ]
    waiting = [Flow(TCP, FRONT, B, unanswered=True), Flow(TCP, other, B, unanswered=True)]
    web: dict[str, Any] = {"key": WEB, "protocol": "TCP", "cluster_ip": "10.96.0.20"}
    async with rig.running():
        rig.loop.full(service(1, 2, 3, protocol="TCP"), service(1, 2, **web))
        await rig.cleaned()
        kernel.table = [*stay, *waiting]
        rig.loop.partial(service(1, 2, protocol="TCP"))
        rig.loop.partial(service(1, protocol="TCP"))
        rig.loop.partial(service(1, **web))
        assert kernel.table == [*stay, *waiting], "not at once: an answer may be in transit"
        assert set(await rig.cleaned()) == {(2, TCP, FRONT, b""), (2, TCP, other, b"")}
        assert kernel.table == stay


async def test_an_endpoint_that_came_back_keeps_its_clients(rig: Rig, kernel: Kernel) -> None:
    waiting = [Flow(TCP, FRONT, B, unanswered=True)]
    async with rig.running():
        rig.loop.full(service(1, 2, protocol="TCP"))
        await rig.cleaned()
        kernel.table = list(waiting)
        rig.loop.partial(service(1, protocol="TCP"))
        rig.loop.partial(service(1, 2, protocol="TCP"))
        await rig.cleaned()
        assert kernel.table == waiting
        rig.loop.partial(service(1, protocol="TCP"))
        rig.loop.gone(DNS)
        await asyncio.sleep(0.05)
        assert await rig.idle()
        assert kernel.table == waiting


async def test_where_the_kernel_is_led_elsewhere_what_leads_there_is_left_alone(
    rig: Rig, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in userspace mode, where the endpoints that the kernel knows are the relay's sockets."""
    relay = service(9, protocol="TCP")
    monkeypatch.setattr(rig.loop, "in_kernel", lambda _: relay)
    kernel.table = [
        Flow(TCP, FRONT, place("10.244.1.9", 5353), unanswered=True),
        Flow(TCP, FRONT, A, unanswered=True),
    ]
    async with rig.running():
        rig.loop.full(service(1, protocol="TCP"))
        await rig.cleaned()
        rig.loop.partial(service(1, 2, protocol="TCP"))
        rig.loop.partial(service(1, protocol="TCP"))
        await asyncio.sleep(0.05)
        assert await rig.idle(), "the relay tries other endpoints itself"
    assert kernel.table == [Flow(TCP, FRONT, place("10.244.1.9", 5353), unanswered=True)]


async def test_a_change_asks_for_what_it_changed(rig: Rig, kernel: Kernel) -> None:
    async with rig.running():
        rig.loop.full(service(1, 2, node_port=30053), service(1, key=WEB, cluster_ip="10.96.0.20"))
        await rig.cleaned()
        kernel.table = [Flow(UDP, FRONT, B), Flow(UDP, NODE_PORT, B), Flow(UDP, NODE_PORT, A)]
        rig.loop.partial(service(1, node_port=30053))
        assert await rig.cleaned() == [(2, UDP, b"", B)]
        assert kernel.table == [Flow(UDP, NODE_PORT, A)]
        rig.loop.gone(DNS)
        assert await rig.cleaned() == [(2, UDP, b"", A)]
        assert kernel.table == []


async def test_at_a_full_sync_who_is_not_told_is_gone_and_who_is_refused_is_not(
    rig: Rig, kernel: Kernel
) -> None:
    other = place("10.96.0.20", 53)
    async with rig.running():
        rig.loop.full(service(1), service(1, key=WEB, cluster_ip="10.96.0.20"))
        await rig.cleaned()
        kernel.table = [Flow(UDP, FRONT, A), Flow(UDP, other, A)]
        rig.loop.full(refused=[service(2, key=WEB, cluster_ip="10.96.0.20")])
        assert await rig.cleaned() == [(2, UDP, b"", b"")]
        assert kernel.table == [Flow(UDP, other, A)]


async def test_flows_of_a_refused_service_follow_the_plan_that_the_kernel_kept(
    rig: Rig, kernel: Kernel
) -> None:
    """A is an endpoint of the plan in the kernel, B of the plan that is refused."""
    async with rig.running():
        rig.loop.full(service(1))
        await rig.cleaned()
        kernel.table = [Flow(UDP, FRONT, A), Flow(UDP, FRONT, B)]
        rig.loop.full(refused=[service(2)])
        await rig.cleaned()
        assert kernel.table == [Flow(UDP, FRONT, A)]
        rig.loop.full(service(2))
        await rig.cleaned()
        assert kernel.table == []


async def test_a_refused_service_that_the_kernel_never_had_owns_no_flows(rig: Rig, kernel: Kernel) -> None:
    async with rig.running():
        kernel.table = [Flow(UDP, FRONT, B)]
        rig.loop.full(refused=[service(1)])
        await rig.cleaned()
        assert kernel.table == [Flow(UDP, FRONT, B)]


async def test_ipv6(kernel: Kernel) -> None:
    rig = Rig(kernel, NodeConfig(family=IPV6))
    there = (Endpoint("fd00:1::1", 53),)
    stays = Flow(UDP, place("fd00::2", 30053), A)
    kernel.table = [Flow(UDP, place("fd00:10::1", 53), A), Flow(UDP, place("fd00::1", 30053), A), stays]
    async with rig.running():
        rig.loop.full(service(cluster_ip="fd00:10::1", serving=there, node_port=30053))
        assert await rig.cleaned() == [(10, UDP, b"", b"")]
    assert kernel.table == [stays]


@pytest.mark.parametrize(
    ("node", "found"),
    [
        (NodeConfig(), {"192.0.2.1"}),
        (NodeConfig(localhost_node_ports=True), {"192.0.2.1", "127.0.0.1", "127.0.0.9"}),
        (NodeConfig(node_port_ranges=("203.0.113.0/24",)), set()),
        (NodeConfig(node_port_ranges=("192.0.2.0/24",), node_port_addresses=("192.0.2.1",)), {"192.0.2.1"}),
    ],
)
async def test_node_ports_are_on_addresses_that_accept_them(
    kernel: Kernel, node: NodeConfig, found: set[str]
) -> None:
    rig = Rig(kernel, node)
    everywhere = ("192.0.2.1", "192.0.2.2", "127.0.0.1", "127.0.0.9", "203.0.113.7")
    kernel.table = [Flow(UDP, place(address, 30053), B) for address in everywhere]
    async with rig.running():
        rig.loop.full(service(1, node_port=30053))
        await rig.cleaned()
    assert {flow.destination for flow in kernel.table} == {
        place(a, 30053) for a in everywhere if a not in found
    }


async def test_what_changes_meanwhile_is_done_together_and_at_once(rig: Rig, kernel: Kernel) -> None:
    """An endpoint that came while a list was read gets flows before we know of it."""
    new = place("10.244.1.3", 5353)
    running = asyncio.get_running_loop()
    told = threading.Event()

    def tell() -> None:
        for endpoint in (4, 5, 3):
            rig.loop.partial(service(1, endpoint))
        told.set()

    def meanwhile() -> None:
        running.call_soon_threadsafe(tell)
        assert told.wait(30)

    async with rig.running():
        rig.loop.full(service(1, 2))
        await rig.cleaned()
        kernel.table = [Flow(UDP, FRONT, B), Flow(UDP, FRONT, new)]
        kernel.meanwhile = meanwhile
        rig.loop.partial(service(1))
        await until(lambda: len(rig.done) == 2)
        assert [done.deleted for done in rig.done] == [1, 0]
    assert kernel.table == [Flow(UDP, FRONT, new)]


async def test_a_refusal_is_said_once_and_what_was_to_do_is_done_with_the_next_change(
    rig: Rig, kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    def complaints() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]

    def forbidden() -> OSError:
        return OSError(errno.EPERM, "Operation not permitted")

    async with rig.running():
        rig.loop.full(service(1, 2), service(1, key=WEB, cluster_ip="10.96.0.20"))
        await rig.cleaned()
        kernel.table = [Flow(UDP, FRONT, A), Flow(UDP, FRONT, B)]
        for endpoints in (1,), ():
            kernel.fails = [forbidden(), forbidden()][: 2 - len(endpoints)]
            rig.loop.partial(service(*endpoints))
            await until(lambda: not kernel.fails)
        await until(complaints)
        assert "IPv4" in complaints()[0]
        assert "CAP_NET_ADMIN" in complaints()[0]
        assert len(kernel.table) == 2
        kernel.asked.clear()
        rig.loop.partial(service(2, key=WEB, cluster_ip="10.96.0.20"))
        await rig.cleaned()
        assert kernel.table == []
        assert len(complaints()) == 1
        kernel.fails = [forbidden()]
        rig.loop.partial(service(3, key=WEB, cluster_ip="10.96.0.20"))
        await until(lambda: len(complaints()) == 2)


async def test_one_list_that_is_refused_does_not_hold_up_the_others(rig: Rig, kernel: Kernel) -> None:
    async with rig.running():
        rig.loop.full(service(1), service(2, key=WEB, cluster_ip="10.96.0.20"))
        await rig.cleaned()
        kernel.table = [Flow(UDP, FRONT, A), Flow(UDP, place("10.96.0.20", 53), B)]
        kernel.fails = [OSError(errno.EBUSY, "Device or resource busy")]
        rig.loop.gone(DNS)
        rig.loop.gone(WEB)
        await until(lambda: kernel.table == [Flow(UDP, FRONT, A)])


async def test_a_defect_ends_nothing(rig: Rig, kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    async with rig.running():
        kernel.fails = [ValueError("attribute 1 claims too much")]  # type: ignore[list-item]
        rig.loop.full(service(1))
        await until(lambda: "claims too much" in caplog.text)
        kernel.table = [Flow(UDP, FRONT, B)]
        rig.loop.full(service(1))
        await rig.cleaned()
    assert kernel.table == []


async def test_both_protocols_and_more_than_are_deleted_at_a_time(rig: Rig, kernel: Kernel) -> None:
    kernel.table = [Flow(protocol, FRONT, B) for protocol in (UDP, SCTP) for _ in range(1001)]
    async with rig.running():
        rig.loop.full(service(1), service(1, key=WEB, protocol="SCTP"))
        await until(lambda: rig.done)
        assert (rig.done[0].listed, rig.done[0].deleted) == (2002, 2002)
    assert kernel.table == []
