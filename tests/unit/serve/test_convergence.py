"""How long changes take until they are in the kernel, by kind, with every repetition of a failed sync."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from kubeproxy.answers.observed import Converged
from kubeproxy.backends.base import Change, StaleError, SyncError
from kubeproxy.model.plan import PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint
from kubeproxy.serve.convergence import Convergence, kinds
from tests.unit.test_sync import A, B, Rig

E1, E2 = Endpoint("10.244.1.11", 80), Endpoint("10.244.1.12", 80, local=True)


def plan(*cluster: Endpoint, local: tuple[Endpoint, ...] = (), **fields: Any) -> ServicePlan:
    port = PortPlan("a/b", "TCP", 80, "10.96.0.1", cluster=cluster, local=local, **fields)
    return ServicePlan("a", "b", (port,))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (None, plan(E1), ["service_added"]),
        (plan(E1), None, ["service_removed"]),
        (plan(E1), plan(E1, E2), ["endpoint_added"]),
        (plan(E1, E2), plan(E1), ["endpoint_removed"]),
        (plan(E1), plan(E2), ["endpoint_removed", "endpoint_added"]),
        (plan(E1), plan(E1, affinity=60), ["service_changed"]),
        (plan(E1, local=(E2,)), plan(E1), ["endpoint_removed"]),
        (plan(E1), plan(replace(E1, port=81)), ["endpoint_removed", "endpoint_added"]),
    ],
)
def test_kinds(before: ServicePlan | None, after: ServicePlan | None, expected: list[str]) -> None:
    assert list(kinds(Change(("a", "b"), before, after))) == expected


def measured(rig: Rig) -> Convergence:
    found = Convergence(clock=rig.clock, wall=lambda: rig.clock.time + 5000)
    found.follow(rig.loop)
    return found


async def test_a_change_is_measured_from_its_arrival_and_from_when_it_happened() -> None:
    rig = Rig()
    convergence = measured(rig)
    rig.set(B)
    async with rig.running():
        await rig.clock.settle()
        rig.kernel.cost = 0.5
        rig.set(A)
        rig.loop.touch([A], rig.clock.time + 5000 - 3.0)  # it happened three seconds ago
        await rig.clock.advance(10)
    found = convergence.summary()
    assert Converged("service_added", "change", 1, 5.0, 5.0, 5.0) in found
    assert Converged("service_added", "received", 2, 0.001, 0.5, 0.5) in found
    (figure, _) = convergence.figures()
    assert figure.labels == {"ip_family": "IPv4", "change": "service_added", "since": "change"}


@pytest.mark.parametrize("error", [SyncError("no"), StaleError("no")])
async def test_failed_syncs_are_part_of_the_time(error: Exception) -> None:
    rig = Rig()
    convergence = measured(rig)
    async with rig.running():
        await rig.clock.settle()
        rig.kernel.answers = [error, SyncError("no"), SyncError("no")]
        rig.set(A)
        await rig.clock.settle()
        rig.loop.touch([A], rig.clock.time + 5000 - 90.0)
        await rig.clock.advance(100)
    assert rig.loop.failures_in_row == 0
    ((first, second),) = [convergence.summary()]
    assert (first.since, first.median) == ("change", 100.0)
    assert (second.since, second.median) == ("received", 1.0 if isinstance(error, StaleError) else 2.0)


async def test_what_is_there_at_a_start_is_no_change() -> None:
    rig = Rig()
    convergence = measured(rig)
    rig.loop._pending.clear()
    async with rig.running():
        await rig.clock.advance(10)
        rig.loop.resync()
        await rig.clock.advance(10)
        await asyncio.sleep(0)
    assert convergence.summary() == ()
