"""What is left out is put back: when a watch ends, when a Service goes, and by whichever loop is in force then."""

import asyncio
import contextlib
from collections.abc import Collection

from kubeproxy.api.addresses import IPV4
from kubeproxy.hub import Hub
from kubeproxy.machine.fake import FakeMachine
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint
from kubeproxy.model.silence import Address, Doubt, PortSilence
from kubeproxy.silence import SilenceWatch
from kubeproxy.watched import WatchedPort
from tests.unit.test_flows import Loop

KEY: Key = ("shop", "web")
A, SIX = ("10.244.1.1", 8080), ("fd00::1", 8080)
PORT = WatchedPort(KEY, "shop/web", 80)


class NextLoop:
    """The loop of the session that took over."""

    family = IPV4

    def __init__(self) -> None:
        self.touched: list[Key] = []

    def touch(self, keys: Collection[Key], triggered: float | None = None) -> None:
        self.touched += keys


def plan(*, skips: bool = True) -> ServicePlan:
    port = PortPlan("shop/web", "TCP", 80, "10.96.0.10", cluster=(Endpoint("10.244.1.2", 8080),))
    return ServicePlan(*KEY, (port,), skips_silent=skips)


def silent(*kept: Address) -> tuple[SilenceWatch, Hub, NextLoop, Loop]:
    """A watch that has left out an endpoint; others of another family are left out, too."""
    hub, after, loop = Hub("here"), NextLoop(), Loop(NodeConfig())
    hub.loops = [after]  # type: ignore[list-item]
    watch = SilenceWatch(FakeMachine(), loop, hub, lambda *_: None)  # type: ignore[arg-type]
    loop.full(plan())
    watch._silences[PORT] = found = PortSilence()
    found.doubts[A] = Doubt("silent", 2, set())
    hub.state.silent[KEY] = (*kept, A)
    hub.state.services[KEY] = None  # type: ignore[assignment]
    return watch, hub, after, loop


async def test_a_watch_that_ends_puts_back_what_it_left_out() -> None:
    watch, hub, after, _ = silent(SIX)
    task = asyncio.create_task(watch.run())
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert hub.state.silent == {KEY: (SIX,)}
    assert after.touched == [KEY]


async def test_a_service_that_no_longer_asks_for_it_gets_all_endpoints_back() -> None:
    _, hub, after, loop = silent()
    loop.partial(plan(skips=False))
    assert hub.state.silent == {}
    assert after.touched == [KEY]


async def test_what_is_silent_is_said() -> None:
    watch, *_ = silent()
    (said,) = watch.silent()
    assert (said.namespace, said.name, said.address, said.endpoint_port) == (*KEY, *A)
    values = {(figure.name, *figure.labels.values()): figure.value for figure in watch.figures()}
    assert values["kubeproxy_silent_endpoints", "IPv4"] == 1
