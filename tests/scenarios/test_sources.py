"""The same objects come to the same plans from files and from an API server."""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeproxy import host
from kubeproxy.api.addresses import FAMILIES
from kubeproxy.hub import Hub
from kubeproxy.sources.apiserver import ApiServer
from tests.fakes.apiserver import FakeApiServer
from tests.lab import cases
from tests.scenarios.world import LOCAL_ADDRESSES, World


def objects(name: str) -> list[dict[str, Any]]:
    """The objects of a case, as an API server has them."""
    with tempfile.TemporaryDirectory() as folder:
        _, manifests = cases.write(name, "iptables", Path(folder))
        return [
            found
            for file in sorted(manifests.iterdir())
            for found in yaml.safe_load_all(file.read_text())
            if found
        ]


async def from_server(found: list[dict[str, Any]]) -> Hub:
    """What is known of objects that an API server serves."""
    hub = Hub("bench-node")
    node_known = asyncio.Event()
    hub.on_node.append(lambda _: node_known.set())
    async with FakeApiServer() as server:
        for obj in found:
            server.store.put(obj)
        running = asyncio.ensure_future(ApiServer(hub, "bench-node", master=server.url).run())
        try:
            async with asyncio.timeout(30):
                await hub.lists_complete.wait()
                await node_known.wait()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    return hub


@pytest.mark.parametrize("name", cases.NAMES)
async def test_plans_are_the_same(name: str) -> None:
    world = World.of_case(name, "iptables")
    hub = await from_server(objects(name))
    nodes = {n.family: n for n in host.host(world.config, "bench-node", hub.node, supported=FAMILIES).nodes}
    assert hub.state.services.keys() == world.hub.state.services.keys()
    for family in FAMILIES:
        node = nodes[family].with_addresses(LOCAL_ADDRESSES[family])
        assert node == world.nodes[family]
        plans = [hub.state.plan(key, node) for key in hub.state.services]
        assert {p.key: p for p in plans if p} == {p.key: p for p in world.plans(family)}
