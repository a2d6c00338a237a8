"""What is said of findings: once each, together where there are many, and not at all of what does not last."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable

import pytest
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.api.rows import SliceRow
from kubeproxy.log import V2
from kubeproxy.model.distribution import BalancingSupport
from kubeproxy.model.plan import Key
from kubeproxy.model.state import State
from kubeproxy.reporter import BURST, EVERY_SECONDS, LOOK_SECONDS, SETTLE_SECONDS, Reporter
from tests.fakes.clock import FakeClock
from tests.fakes.cluster import endpoints, service

SETTLED = SETTLE_SECONDS + 2 * LOOK_SECONDS


def unready(name: str, address: str) -> types.EndpointSlice:
    """The EndpointSlice of an endpoint that is not ready."""
    given = endpoints(name, address)
    conditions = types.EndpointConditions(ready=False, serving=False)
    return replace(given, endpoints=(types.SliceEndpoint((address,), conditions),))


class Rig:
    """A reporter of a state, its clock, and what it says."""

    def __init__(self, caplog: pytest.LogCaptureFixture, *, files: bool = False) -> None:
        self.state = State()
        self.clock = FakeClock()
        self.events: list[tuple[Key, str, str, str]] = []
        self._caplog = caplog
        self.reporter = Reporter(
            self.state, "here", lambda *event: self.events.append(event), files=files, clock=self.clock
        )
        caplog.set_level(logging.INFO, "kubeproxy.reporter")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.ensure_future(self.reporter.run())
        try:
            await self.clock.settle()
            yield
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def set(self, *objects: types.Service | types.EndpointSlice) -> None:
        for obj in objects:
            self.state.set(obj)

    def lines(self) -> list[str]:
        """What was said since the last look."""
        said = [f"{r.levelname[0]} {r.getMessage()}" for r in self._caplog.records]
        self._caplog.clear()
        return said

    def counts(self) -> dict[str, float]:
        """The metrics that are not 0."""
        found = {figure.labels["reason"]: figure.value for figure in self.reporter.figures()}
        assert all(isinstance(value, int | float) for value in found.values())
        return {reason: value for reason, value in found.items() if value}  # type: ignore[misc]


@pytest.fixture
def rig(caplog: pytest.LogCaptureFixture) -> Rig:
    return Rig(caplog)


async def test_a_service_without_endpoints_at_the_start_is_said_once(rig: Rig) -> None:
    rig.set(service("web", "10.96.0.1"), service("db", "10.96.0.2"), endpoints("db", "10.1.0.1"))
    async with rig.running():
        assert rig.lines() == ["I Service default/web: it has no endpoints, connections to it are rejected"]
        assert rig.counts() == {"NoEndpoints": 1}
        rig.set(service("web", "10.96.0.3"), endpoints("db", "10.1.0.2"))
        await rig.clock.advance(10_000)
        assert rig.lines() == []
    assert rig.events == [], "each node of the cluster would write it"


async def test_thousands_of_them_are_one_line(rig: Rig) -> None:
    for i in range(2000):
        rig.set(service(f"s{i:04}", "10.96.0.1"))
    rig.set(*(service(f"u{i}", "10.96.0.1", ports=[types.ServicePort(80, "x")]) for i in range(4)))
    rig.set(*(endpoints(f"u{i}", "10.1.0.1", port_name="y") for i in range(4)))
    async with rig.running():
        first, second, third = rig.lines()
        assert first.startswith(
            "I 2000 Services have no endpoints, connections to them are rejected: default/s0000, default/s0001, "
        )
        assert first.endswith("default/s0009 and 1990 more")
        assert second.startswith("W 4 Services have ports that are in none of their EndpointSlices")
        assert third.startswith("W 4 Services have EndpointSlices with ports that the Service does not have")
        assert rig.counts() == {"NoEndpoints": 2000, "PortWithoutEndpoints": 4, "UnknownEndpointPort": 4}


async def test_what_comes_and_goes_is_said_when_it_lasts(rig: Rig) -> None:
    rig.set(service("web", "10.96.0.1"), endpoints("web", "10.1.0.1"))
    async with rig.running():
        rig.set(endpoints("web"))
        await rig.clock.advance(SETTLE_SECONDS - LOOK_SECONDS)
        assert rig.lines() == []
        assert rig.counts() == {"NoEndpoints": 1}, "the metric does not wait"
        await rig.clock.advance(3 * LOOK_SECONDS)
        assert rig.lines() == ["I Service default/web: it has no endpoints, connections to it are rejected"]
        rig.set(unready("web", "10.1.0.2"))
        await rig.clock.advance(SETTLED)
        assert rig.lines() == [
            "W Service default/web: none of its endpoints is ready, connections to it are rejected"
        ]
        rig.set(endpoints("web", "10.1.0.2"))
        await rig.clock.advance(SETTLED)
        assert (
            rig.lines()
            == [
                "I Service default/web: it has endpoints now",
                "I Service default/web: it has ready endpoints now",
            ][1:]
        )
        assert rig.counts() == {}
        rig.set(endpoints("web"))
        await rig.clock.advance(SETTLED)
        rig.lines()
        rig.state.gone("Service", "default", "web")
        await rig.clock.advance(SETTLED)
        assert rig.lines() == [], "nothing is well of a Service that is gone"


async def test_a_service_that_waits_for_its_first_endpoints_is_not_said(rig: Rig) -> None:
    async with rig.running():
        rig.set(service("web", "10.96.0.1"))
        await rig.clock.advance(2)
        rig.set(endpoints("web"))
        await rig.clock.advance(2)
        rig.set(endpoints("web", "10.1.0.1"))
        await rig.clock.advance(1000)
        assert rig.lines() == []


async def test_names_of_ports_that_do_not_match(rig: Rig) -> None:
    port = types.ServicePort(80, "http")
    rig.set(service("web", "10.96.0.1", ports=[port]))
    rig.set(endpoints("web", "10.1.0.1", port_name="web", local=["10.1.0.1"], node="here"))
    async with rig.running():
        first, second = rig.lines()
        assert first == (
            "W Service default/web: port http/TCP is in none of its EndpointSlices, connections to it are rejected;"
            " they have web/TCP, names and protocols must be the same in the Service and its EndpointSlices"
        )
        assert second == (
            "W Service default/web: its EndpointSlices have port web/TCP, which the Service does not have: it is ignored"
        )
        assert [event[:2] for event in rig.events] == [
            (("default", "web"), "PortWithoutEndpoints"),
            (("default", "web"), "UnknownEndpointPort"),
        ]
        rig.set(endpoints("web", "10.1.0.1", port_name="http"))
        await rig.clock.advance(SETTLED)
        assert rig.lines() == ["I Service default/web: it has endpoints for its ports now"]


async def test_of_all_nodes_that_of_the_first_endpoint_writes_the_event(rig: Rig) -> None:
    rig.set(service("web", "10.96.0.1", ports=[types.ServicePort(80, "http")]))
    rig.set(endpoints("web", "10.1.0.1", name="a", port_name="web", local=["10.1.0.1"], node="there"))
    rig.set(endpoints("web", "10.1.0.2", name="b", port_name="web", local=["10.1.0.2"], node="here"))
    async with rig.running():
        assert rig.counts() == {"PortWithoutEndpoints": 1, "UnknownEndpointPort": 1}
        assert rig.events == []


async def test_local_policies(rig: Rig) -> None:
    """Without an endpoint here, external traffic is as it should be on most nodes; internal traffic is lost."""
    inside = service("in", "10.96.0.1", internal_traffic_policy="Local")
    outside = service(
        "out", "10.96.0.2", ports=[types.ServicePort(80, node_port=30080)], external_traffic_policy="Local"
    )
    rig.set(inside, outside, endpoints("in", "10.1.0.1"), endpoints("out", "10.1.0.2"))
    async with rig.running():
        assert rig.lines() == [
            "I Service default/in: internalTrafficPolicy is Local and none of its endpoints is on this node, connections"
            " from this node are dropped",
            "I Service default/out: externalTrafficPolicy is Local and none of its endpoints is on this node, external"
            " connections that arrive here are dropped",
        ]
        assert rig.counts() == {"NoLocalEndpointsInternal": 1, "NoLocalEndpointsExternal": 1}
        for name, address in (("in", "10.1.0.1"), ("out", "10.1.0.2")):
            rig.set(endpoints(name, address, local=[address], node="here"))
        await rig.clock.advance(SETTLED)
        assert rig.lines() == ["I Service default/in: it has an endpoint on this node now"]
        assert rig.counts() == {}


async def test_local_policies_with_more_verbosity(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(V2, "kubeproxy.reporter")
    ports = [types.ServicePort(80, node_port=30080)]
    rig.set(service("out", "10.96.0.2", ports=ports, external_traffic_policy="Local"))
    rig.set(endpoints("out", "10.1.0.2", local=["10.1.0.2"], node="here"))
    async with rig.running():
        rig.set(endpoints("out", "10.1.0.2"))
        await rig.clock.advance(SETTLED)
        (line,) = rig.lines()
        assert "default/out: externalTrafficPolicy is Local" in line


async def test_slices_of_no_service_in_files(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(caplog, files=True)
    rig.set(endpoints("wbe", "10.1.0.1", name="web-1"))
    async with rig.running():
        assert rig.lines() == [
            "W Service default/wbe: there is no such Service, EndpointSlice default/web-1 is ignored"
        ]
        rig.set(service("wbe", "10.96.0.1"))
        await rig.clock.advance(SETTLED)
        assert rig.counts() == {}


async def test_in_a_cluster_a_service_is_deleted_before_its_slices(rig: Rig) -> None:
    rig.set(service("web", "10.96.0.1"), endpoints("web", "10.1.0.1"))
    async with rig.running():
        rig.state.gone("Service", "default", "web")
        await rig.clock.advance(1000)
        assert (rig.lines(), rig.counts()) == ([], {})


async def test_lines_are_limited_whatever_happens(rig: Rig) -> None:
    """A Service of which something else is true each time we look."""
    rig.set(service("web", "10.96.0.1"), endpoints("web", "10.1.0.1"))
    async with rig.running():
        rounds, seconds = 200, SETTLED + 1
        for i in range(rounds):
            rig.set(endpoints("web", *([] if i % 2 == 0 else ["10.1.0.1"])))
            await rig.clock.advance(seconds)
        assert BURST <= len(rig.lines()) <= BURST + 1 + rounds * seconds / EVERY_SECONDS
        rig.set(unready("web", "10.1.0.3"))
        await rig.clock.advance(SETTLED + 2 * EVERY_SECONDS)
        assert any("is ready" in line for line in rig.lines()), "what lasts is said in the end"


async def test_a_partial_change_judges_what_changed_and_nothing_else(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(100):
        rig.set(service(f"s{i}", "10.96.0.1"))
    judged: list[Key] = []
    slices = State.slices

    def counted(state: State, key: Key) -> Iterable[SliceRow]:
        judged.append(key)
        return slices(state, key)

    monkeypatch.setattr(State, "slices", counted)
    async with rig.running():
        assert len(judged) == 100
        judged.clear()
        rig.set(endpoints("s5", "10.1.0.1"), endpoints("s5", "10.1.0.2"))
        await rig.clock.advance(100)
        assert judged == [("default", "s5")]


async def test_an_annotation_that_cannot_be_used(rig: Rig) -> None:
    plain = service("web", "10.96.0.1")
    metadata = types.ObjectMeta(
        "web", "default", annotations=types.Annotations(balancing="best", weights="zone:a=2 zone:b")
    )
    rig.set(plain, endpoints("web", "10.1.0.1", local=["10.1.0.1"], node="here"))
    async with rig.running():
        rig.set(types.Service(metadata, plain.spec))
        assert rig.counts() == {"IgnoredAnnotation": 1}
        await rig.clock.advance(SETTLED)
        first, second = rig.lines()
        assert first == (
            "W Service default/web: an annotation is ignored: kube-proxy/balancing: 'best' is not random, maglev or"
            " least-connections"
        )
        assert second.startswith(
            "W Service default/web: an annotation is ignored: kube-proxy/weights: 'zone:b' is"
        )
        rig.reporter.use(BalancingSupport(maglev=True))
        await rig.clock.advance(SETTLED)
        [third] = rig.lines()
        assert third.endswith("kube-proxy/weights: this mode has no weights, all shares are equal")
        assert [event[:3] for event in rig.events] == [
            (("default", "web"), "IgnoredAnnotation", "ReadAnnotations")
        ] * 3
        rig.set(plain)
        await rig.clock.advance(SETTLED)
        assert rig.lines() == ["I Service default/web: it has no annotation that is ignored now"]
