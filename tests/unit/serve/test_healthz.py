"""/healthz and /livez as the reference has them, /readyz as it should be."""

from typing import Any

import msgspec
import pytest

from kubeproxy.serve.healthz import FAILURES, STALE_SECONDS, Health
from kubeproxy.sources.base import Status
from tests.fakes.clock import FakeClock
from tests.unit.serve.stage import IPV4, IPV6, Stage, ask

WALL = 1_700_000_000.0
START = 1000.0
NEVER = "0001-01-01T00:00:00Z"


class Rig:
    """A proxy of two families, whose changes may wait for 60 s."""

    def __init__(self) -> None:
        self.clock = FakeClock(START)
        self.v4, self.v6 = Stage(IPV4, self.clock), Stage(IPV6, self.clock)
        self.eligible = True
        self.statuses: list[Status] = []
        self.missing: list[str] = []
        self.health = Health(
            timeout=60.0,
            eligible=lambda: self.eligible,
            statuses=lambda: self.statuses,
            missing=lambda: self.missing,
            clock=self.clock,
            wall=lambda: WALL + self.clock.time - START,
        )

    def attach(self) -> None:
        self.health.attach([self.v4.loop, self.v6.loop])

    def begin(self) -> None:
        """Everything is in the kernel."""
        self.attach()
        self.v4.synced(full=True)
        self.v6.synced(full=True)

    async def get(self, page: str) -> tuple[int, dict[str, Any]]:
        answer = await ask(self.health.routes()[f"GET /{page}"])
        assert answer.content_type == "application/json"
        return answer.status, msgspec.json.decode(answer.body)

    async def troubles(self) -> list[str]:
        status, body = await self.get("readyz")
        assert body["ready"] is (status == 200) is (not body["reasons"])
        reasons: list[str] = body["reasons"]
        return reasons

    @property
    def figures(self) -> dict[tuple[str, str], float]:
        return {(f.name, f.labels.get("code", "")): f.value for f in self.health.figures()}  # type: ignore[misc]


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_it_is_healthy_before_anything_is_known(rig: Rig) -> None:
    now = "2023-11-14T22:13:20.000000Z"
    assert await rig.get("livez") == (200, {"lastUpdated": now, "currentTime": now, "healthy": True})
    assert await rig.get("healthz") == (
        200,
        {"lastUpdated": now, "currentTime": now, "nodeEligible": True, "healthy": True},
    )


async def test_what_a_healthy_proxy_says(rig: Rig) -> None:
    rig.attach()
    rig.clock.time += 1.5
    rig.v4.synced(full=True)
    rig.clock.time += 8.5
    now = "2023-11-14T22:13:30.000000Z"
    assert await rig.get("healthz") == (
        200,
        {
            "lastUpdated": now,
            "currentTime": now,
            "nodeEligible": True,
            "healthy": True,
            "status": {
                "IPv4": {"lastUpdated": "2023-11-14T22:13:21.500000Z", "healthy": True},
                "IPv6": {"lastUpdated": NEVER, "healthy": True},
            },
        },
    )


async def test_a_change_that_waits_too_long_is_not_healthy(rig: Rig) -> None:
    rig.begin()
    rig.clock.time += 10
    rig.v6.loop.resync()
    rig.clock.time += 59.9
    assert (await rig.get("healthz"))[0] == 200
    rig.clock.time += 0.1
    for page, more in (("healthz", {"nodeEligible": True}), ("livez", {})):
        assert await rig.get(page) == (
            503,
            {
                "lastUpdated": "2023-11-14T22:13:20.000000Z",
                "currentTime": "2023-11-14T22:14:30.000000Z",
                **more,
                "healthy": False,
                "status": {
                    "IPv4": {"lastUpdated": "2023-11-14T22:13:20.000000Z", "healthy": True},
                    "IPv6": {"lastUpdated": "2023-11-14T22:13:20.000000Z", "healthy": False},
                },
            },
        )
    assert not rig.health.healthy()
    assert await rig.troubles() == ["IPv6: changes have waited for more than 60 s"]
    rig.v6.synced()
    assert (await rig.get("healthz"))[0] == 200
    assert rig.health.healthy()


async def test_a_node_that_leaves_gets_no_traffic_but_is_not_restarted(rig: Rig) -> None:
    rig.begin()
    rig.eligible = False
    status, body = await rig.get("healthz")
    assert (status, body["healthy"], body["nodeEligible"]) == (503, True, False)
    assert body["lastUpdated"] == "2023-11-14T22:13:20.000000Z"
    assert (await rig.get("livez"))[0] == 200
    assert rig.health.healthy(), "health-check node ports go on"
    rig.eligible = True
    assert (await rig.get("healthz"))[0] == 200


async def test_it_is_ready_when_all_families_are_in_the_kernel(rig: Rig) -> None:
    assert await rig.troubles() == ["not all Services and endpoints are known yet"]
    rig.attach()
    rig.v4.synced(full=True)
    assert await rig.troubles() == ["IPv6: nothing is in the kernel yet"]
    rig.v6.synced(full=True)
    assert await rig.troubles() == []


async def test_syncs_that_fail_in_a_row_are_no_chance(rig: Rig) -> None:
    rig.begin()
    rig.v4.loop.failures_in_row = FAILURES - 1
    assert await rig.troubles() == []
    rig.v4.loop.failures_in_row = FAILURES
    assert await rig.troubles() == ["IPv4: 3 syncs in a row failed"]
    assert (await rig.get("healthz"))[0] == 200
    rig.v4.synced(full=True)
    assert await rig.troubles() == []


async def test_rules_that_others_changed_are_not_ready_until_they_are_mended(rig: Rig) -> None:
    rig.begin()
    rig.v4.loop.watch()
    rig.v4.driver.disturbed("a rule was deleted")
    assert await rig.troubles() == ["IPv4: another program changed the rules in the kernel"]
    rig.v4.synced()
    assert await rig.troubles() != [], "a sync of changes mends nothing"
    rig.v4.synced(full=True)
    assert await rig.troubles() == []


async def test_a_silent_api_server_is_told(rig: Rig) -> None:
    heard = Status("Service", connected=True, received=START)
    rig.statuses = [heard, Status("EndpointSlice", connected=True, received=START + 200)]
    assert await rig.troubles() == ["not all Services and endpoints are known yet"]
    rig.begin()
    rig.clock.time = START + STALE_SECONDS
    assert await rig.troubles() == []
    rig.clock.time += 1
    assert await rig.troubles() == ["Service: no event for 301 s: no data on the watch"]
    heard.trouble = "cannot connect to 192.0.2.1:6443: refused"
    assert await rig.troubles() == ["Service: no event for 301 s: cannot connect to 192.0.2.1:6443: refused"]
    assert (await rig.get("healthz"))[0] == (await rig.get("livez"))[0] == 200
    heard.received = rig.clock.time
    assert await rig.troubles() == []


async def test_answers_are_counted(rig: Rig) -> None:
    rig.begin()
    assert rig.figures == {("kubeproxy_ready", ""): True}
    for _ in range(2):
        await rig.get("livez")
    await rig.get("healthz")
    rig.eligible = False
    await rig.get("healthz")
    assert rig.figures == {
        ("kubeproxy_proxy_livez_total", "200"): 2,
        ("kubeproxy_proxy_healthz_total", "200"): 1,
        ("kubeproxy_proxy_healthz_total", "503"): 1,
        ("kubeproxy_ready", ""): True,
    }


async def test_what_the_source_cannot_read_is_told(rig: Rig) -> None:
    rig.missing = ["/etc/services.d/a.yaml cannot be used: line 3, column 1: no"]
    assert await rig.troubles() == ["not all Services and endpoints are known yet", *rig.missing]
    rig.begin()
    assert await rig.troubles() == rig.missing
    rig.missing = []
    assert await rig.troubles() == []
