"""Metrics of the connections of endpoints: limited in number, and never lower than before."""

import asyncio
from collections.abc import Collection
from typing import Any

import pytest
from msgspec.structs import replace

from kubeproxy.backends.base import EndpointCounts
from kubeproxy.backends.nftables import mode as nftables
from kubeproxy.model.plan import Key, PortId, ServicePlan
from kubeproxy.model.select import Endpoint
from kubeproxy.serve import connections
from kubeproxy.serve.connections import ConnectionMetrics
from tests.machines import MACHINE
from tests.unit.serve.stage import Stage, plan, until

PORT: PortId = ("default/web", "TCP")


class Rules:
    """What a mode's rules count."""

    by_service = False
    partial = False

    def __init__(self) -> None:
        self.counts: EndpointCounts | None = {}
        self.plans: dict[Key, ServicePlan | None] = {}
        self.readings = 0
        self.error: OSError | None = None

    def set(self, key: Key, plan: ServicePlan | None) -> None:
        self.plans[key] = plan

    def read(self, only: Collection[Key] = ()) -> EndpointCounts | None:
        assert not only
        self.readings += 1
        if self.error is not None:
            raise self.error
        return self.counts

    def close(self) -> None:
        self.readings = -1


class Rig:
    def __init__(self, rules: Rules | None, most: int = 2) -> None:
        self.rules, self.stage = rules, Stage()
        mode: Any = replace(nftables.MODE, counter=(lambda *_: rules) if rules is not None else None)
        self.metrics = ConnectionMetrics(MACHINE, mode, self.stage.loop, most)

    def series(self) -> dict[str, float]:
        return {
            figure.labels.get("endpoint", "others"): figure.value  # type: ignore[misc]
            for figure in self.metrics.figures()
        }

    async def read(self) -> None:
        assert self.rules is not None
        before = self.rules.readings
        await until(lambda: self.rules is not None and self.rules.readings >= before + 2)


def web(*addresses: str) -> ServicePlan:
    return plan(cluster=tuple(Endpoint(address, 8080, True) for address in addresses))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LEAST_SECONDS", 0.001)
    monkeypatch.setattr(connections, "_TIMES_AS_LONG", 0)


async def test_endpoints_have_a_series_as_long_as_there_are_not_too_many() -> None:
    rules = Rules()
    rig = Rig(rules)
    task = asyncio.ensure_future(rig.metrics.run())
    rig.stage.synced(web("10.244.1.1", "10.244.1.2", "10.244.1.3"), full=True)
    rules.counts = {PORT: {("10.244.1.1", 8080): 5}}
    await rig.read()
    assert rig.series() == {"10.244.1.1:8080": 5, "others": 0}
    rules.counts = {PORT: {(f"10.244.1.{i}", 8080): 5 + i for i in (1, 2, 3)}}
    await rig.read()
    found = rig.series()
    assert len(found) == 3
    assert found["10.244.1.1:8080"] == 6
    assert sum(found.values()) == 6 + 7 + 8
    # A series that ends makes room for the next one.
    rig.stage.synced(web("10.244.1.2", "10.244.1.3"))
    await rig.read()
    rules.counts = {PORT: {(f"10.244.1.{i}", 8080): 50 for i in (2, 3)}}
    await rig.read()
    assert {"10.244.1.2:8080", "10.244.1.3:8080"} <= rig.series().keys()
    (figure,) = [f for f in rig.metrics.figures() if f.labels.get("endpoint") == "10.244.1.2:8080"]
    assert figure.labels == {
        "ip_family": "IPv4", "namespace": "default", "service": "web", "port": "", "protocol": "TCP",
        "endpoint": "10.244.1.2:8080",
    }  # fmt: skip
    task.cancel()
    await asyncio.wait([task])
    assert rules.readings == -1


async def test_counters_that_cannot_be_read_are_read_again(caplog: pytest.LogCaptureFixture) -> None:
    rules = Rules()
    rig = Rig(rules)
    rules.error = OSError(1, "Operation not permitted")
    task = asyncio.ensure_future(rig.metrics.run())
    rig.stage.synced(web("10.244.1.1"), full=True)
    await rig.read()
    assert "the counters of connections cannot be read, trying again" in caplog.text
    rules.error = None
    rules.counts = {PORT: {("10.244.1.1", 8080): 3}}
    await rig.read()
    assert rig.series() == {"10.244.1.1:8080": 3, "others": 0}
    task.cancel()


async def test_rules_that_do_not_count_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    rules = Rules()
    rules.counts = None
    rig = Rig(rules)
    task = asyncio.ensure_future(rig.metrics.run())
    rig.stage.synced(web("10.244.1.1"), full=True)
    await rig.read()
    await rig.read()
    assert caplog.text.count("nftables.counters is off") == 1
    task.cancel()
    await Rig(None).metrics.run()
    assert "the rules of" in caplog.text
