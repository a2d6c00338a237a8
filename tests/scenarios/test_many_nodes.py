"""A cluster in one process: one API server, and the daemons of 200 nodes, each on a host in memory."""

import asyncio
from collections.abc import Callable

from tests.fakes.apiserver import FakeApiServer
from tests.fakes.cluster import endpoints, service
from tests.fakes.nodes import Hollow, address, node, running, served

NODES = 200
PATIENCE = 600.0  # seconds; it takes a few, but machines are busy


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 it is the state of 200 daemons
            await asyncio.sleep(0.1)


async def test_all_become_ready_and_follow_a_change() -> None:
    async with FakeApiServer() as server:
        apps = [Hollow(f"node-{i}", address(i), server.url) for i in range(NODES)]
        for i in range(NODES):
            server.store.put(node(f"node-{i}", address(i)))
        server.store.put(served(service("web", "10.96.0.10")))
        server.store.put(served(endpoints("web", "10.244.0.1")))
        server.store.put(served(service("agent", "10.96.0.11", internal_traffic_policy="Local")))
        for i in range(NODES):
            at = f"10.244.1.{i}"
            server.store.put(served(endpoints("agent", at, name=f"agent-{i}", local=[at], node=f"node-{i}")))

        def targets(app: Hollow, name: str) -> list[str]:
            """The endpoints that a node sends traffic for a Service to."""
            plan = app.drivers[0].plans.get(("default", name)) if app.drivers else None
            return [endpoint.address for endpoint in plan.ports[0].internal_endpoints] if plan else []

        async with running(apps):
            await until(lambda: all(app.drivers and app.drivers[0].loads for app in apps))
            for i, app in enumerate(apps):
                assert targets(app, "web") == ["10.244.0.1"]
                assert targets(app, "agent") == [f"10.244.1.{i}"], "each node has its own"
            server.store.put(served(endpoints("web", "10.244.0.2")))
            await until(lambda: all(targets(app, "web") == ["10.244.0.2"] for app in apps))
            assert {len(app.drivers) for app in apps} == {1}, "no address is of IPv6"
            assert {app.drivers[0].loads for app in apps} == {1}
            assert {key for app in apps for keys in app.drivers[0].applied for key in keys} == {
                ("default", "web")
            }
