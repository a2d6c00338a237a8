"""What is reported of fronts that several Services name: both Services, once each time."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import pytest

from kubeproxy.api import types
from kubeproxy.contests import MOST_LINES, REASON, Contests
from kubeproxy.model.plan import Key
from kubeproxy.model.state import State
from kubeproxy.reconcile.reconciler import Reconciler
from tests.fakes.clock import FakeClock
from tests.fakes.cluster import NODE, NODE6, endpoints, service
from tests.unit.test_sync import Kernel

A, B, C = (("default", name) for name in "abc")
WARNING = "Service default/a: external IP 10.96.0.2:80 TCP belongs to Service default/b and is not served for this one"
PORT = types.ServicePort


class Rig:
    """Loops of both families, and what is reported of their syncs."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "kubeproxy.contests")
        self._caplog = caplog
        self.state = State()
        self.events: list[tuple[Key, str]] = []
        self.contests = Contests(self.state, NODE.name, self._event)
        self._clock = FakeClock()
        self.kernels = [Kernel(self._clock), Kernel(self._clock)]
        self.loops = [
            Reconciler(self.state, kernel, node, clock=self._clock)
            for kernel, node in zip(self.kernels, (NODE, NODE6), strict=True)
        ]
        for loop in self.loops:
            self.contests.follow(loop.ledger)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The loops run."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(loop.run()) for loop in self.loops]
            yield
            for task in tasks:
                task.cancel()

    def _event(self, key: Key, reason: str, action: str, note: str) -> None:
        assert (reason, action) == (REASON, "AssignFront")
        self.events.append((key, note))

    def tell(self, *objects: types.Service | types.EndpointSlice) -> None:
        """Objects look like this."""
        for obj in objects:
            self._touch(self.state.set(obj))

    def gone(self, key: Key) -> None:
        """A Service is no more."""
        self._touch(self.state.gone("Service", *key))

    def _touch(self, keys: object) -> None:
        for loop in self.loops:
            loop.touch(keys)  # type: ignore[arg-type]

    async def sync(self) -> list[str]:
        """Waits for a sync of each family; returns what was logged."""
        self._caplog.clear()
        await self._clock.advance(5)
        return [record.getMessage() for record in self._caplog.records if record.name == "kubeproxy.contests"]

    @property
    def contested(self) -> list[float]:
        """The metric, for IPv4 and IPv6."""
        found = list(self.contests.figures())
        assert [f.labels["ip_family"] for f in found] == ["IPv4", "IPv6"]
        assert {f.name for f in found} == {"kubeproxy_contested_fronts"}
        return [f.value for f in found if isinstance(f.value, int | float)]


@pytest.fixture
async def rig(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Rig]:
    rig = Rig(caplog)
    async with rig.running():
        yield rig


async def test_both_services_are_named_once(rig: Rig) -> None:
    rig.tell(service("a", "10.96.0.1", external_ips=("10.96.0.2",)), service("b", "10.96.0.2"))
    assert await rig.sync() == [WARNING]
    assert rig.events == [(A, WARNING.partition(": ")[2])]
    assert rig.contested == [1, 0]
    rig.tell(service("a", "10.96.0.1", external_ips=("10.96.0.2",), internal_traffic_policy="Local"))
    assert await rig.sync() == []
    for loop in rig.loops:
        loop.resync()
    assert await rig.sync() == [], "a full sync finds what is known"
    assert len(rig.events) == 1


async def test_of_a_refused_service_what_it_lost_in_the_kernel_is_reported(rig: Rig) -> None:
    """a names an address that is the ClusterIP of b, and the kernel refuses what a is to be."""
    rig.tell(service("a", "10.96.0.1"), service("b", "10.96.0.2"))
    assert await rig.sync() == []
    for kernel in rig.kernels:
        kernel.refused = {A: "no"}
    ports = [PORT(80), PORT(81, "p")]
    rig.tell(service("a", "10.96.0.1", external_ips=("10.96.0.2",), ports=ports))
    assert await rig.sync() == [], "the plan in the kernel does not name it"
    assert rig.contested == [0, 0]
    for kernel in rig.kernels:
        kernel.refused = {}
    for loop in rig.loops:
        loop.resync()
    assert await rig.sync() == [WARNING]
    for kernel in rig.kernels:
        kernel.refused = {A: "no"}
    rig.tell(service("a", "10.96.0.1", external_ips=("10.96.0.9",)))
    assert await rig.sync() == [], "the plan in the kernel names it still"
    assert rig.contested == [1, 0]


async def test_a_front_is_lost_when_the_other_service_is_in_the_kernel(rig: Rig) -> None:
    """The kernel refuses the plan of a without the front, which it programs for b."""
    rig.tell(service("a", "10.96.0.1", external_ips=("10.96.0.2",)))
    assert await rig.sync() == []
    for kernel in rig.kernels:
        kernel.refused = {A: "no"}
    rig.tell(
        service("a", "10.96.0.1", external_ips=("10.96.0.2",), ports=[PORT(80), PORT(81, "p")]),
        service("b", "10.96.0.2"),
    )
    assert await rig.sync() == [WARNING]
    assert rig.contested == [1, 0]


async def test_another_owner_and_the_end_are_reported(rig: Rig) -> None:
    for name, ip in (("a", "10.96.0.1"), ("b", "10.96.0.2"), ("c", "10.96.0.3")):
        rig.tell(service(name, ip, external_ips=("203.0.113.1",)))
    said = await rig.sync()
    assert [line.partition(":80 TCP ")[2].split(" and")[0] for line in said] == [
        "belongs to Service default/a"
    ] * 2
    assert rig.contested == [1, 0]
    rig.gone(A)
    assert await rig.sync() == [
        "Service default/c: external IP 203.0.113.1:80 TCP belongs to Service default/b and is not served for this one",
        "Service default/b: external IP 203.0.113.1:80 TCP does not belong to another Service any more",
    ]
    rig.gone(C)
    assert await rig.sync() == [], "who is gone has lost nothing"
    assert rig.contested == [0, 0]


async def test_a_node_port_of_two_families_is_one_loss(rig: Rig) -> None:
    for name, ips in (("a", ("10.96.0.1", "fd00:10:96::1")), ("b", ("10.96.0.2", "fd00:10:96::2"))):
        rig.tell(service(name, *ips, type="NodePort", ports=[PORT(80, node_port=30080)]))
    words = (
        "Service default/b: node port 30080 TCP belongs to Service default/a and is not served for this one"
    )
    assert await rig.sync() == [words]
    assert rig.contested == [1, 1]
    rig.gone(A)
    assert await rig.sync() == [
        "Service default/b: node port 30080 TCP does not belong to another Service any more"
    ]


async def test_a_health_check_port_that_is_its_own_node_port(rig: Rig) -> None:
    rig.tell(
        service(
            "a",
            "10.96.0.1",
            type="LoadBalancer",
            ports=[PORT(80, node_port=30080)],
            external_traffic_policy="Local",
            health_check_node_port=30080,
        )
    )
    assert await rig.sync() == [
        "Service default/a: health check node port 30080 TCP is also a node port of the same Service and is not served"
    ]


@pytest.mark.parametrize(
    ("slices", "written"),
    [
        ([], True),
        ([endpoints("a", "10.244.1.1", local=["10.244.1.1"])], True),
        ([endpoints("a", "10.244.1.1", "10.244.1.2", local=["10.244.1.1"])], True),
        ([endpoints("a", "10.244.1.1", "10.244.1.2", local=["10.244.1.2"])], False),
        ([endpoints("b", "10.244.1.1", local=["10.244.1.1"])], True),
        ([endpoints("b", "10.244.1.1")], False),
        ([endpoints("a", "10.244.1.1"), endpoints("b", "10.244.1.1", local=["10.244.1.1"])], False),
    ],
)
async def test_one_node_writes_the_event(
    rig: Rig, slices: list[types.EndpointSlice], *, written: bool
) -> None:
    rig.tell(service("a", "10.96.0.1", external_ips=("10.96.0.2",)), service("b", "10.96.0.2"), *slices)
    assert await rig.sync() == [WARNING], "each node logs it"
    assert [key for key, _ in rig.events] == [A] * written


async def test_many_share_a_line(rig: Rig) -> None:
    victim, count = "10.96.200.1", MOST_LINES + 5
    rig.tell(service("zz", victim))
    for i in range(count):
        rig.tell(service(f"s{i:02}", f"10.96.0.{i}", external_ips=(victim,)))
    said = await rig.sync()
    assert len(said) == MOST_LINES + 1
    assert said[-1] == "5 more fronts belong to another Service"
    assert rig.contested == [1, 0]
    assert len(rig.events) == count
    rig.gone(("default", "zz"))
    said = await rig.sync()
    assert len(said) == MOST_LINES + 2, "of those that lose to the first by name now, and of the first"
    assert (
        said[-1]
        == f"Service default/s00: external IP {victim}:80 TCP does not belong to another Service any more"
    )
