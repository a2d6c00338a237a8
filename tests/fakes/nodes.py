"""Many nodes in one process: a daemon each, on a host in memory, with drivers that remember plans (compare kubemark's hollow nodes)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from kubeproxy import host as hosts
from kubeproxy.api import types
from kubeproxy.app import App
from kubeproxy.backends.base import Backend, Change, Failures
from kubeproxy.config.load import load
from kubeproxy.machine.fake import Fake
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import Key, ServicePlan
from tests.fakes.cluster import wire


class Remembering:
    """A driver whose kernel is a table of plans.

    Attributes:
        plans: what is programmed.
        loads: how often all was loaded.
        applied: the Services of each partial sync.
    """

    def __init__(self) -> None:
        self.plans: dict[Key, ServicePlan] = {}
        self.loads = 0
        self.applied: list[list[Key]] = []

    async def sync(self, node: NodeConfig, changes: Sequence[Change], *, full: bool) -> Failures:
        if full:
            self.loads += 1
            self.plans = {}
        else:
            self.applied.append([change.key for change in changes])
        for change in changes:
            if change.after is None:
                self.plans.pop(change.key, None)
            else:
                self.plans[change.key] = change.after
        return {}

    async def intact(self) -> bool:
        return True

    def watch(self, disturbed: Callable[[str], None]) -> bool:
        return False

    async def close(self) -> None:
        """Holds nothing."""


class Hollow(App):
    """A daemon of one node.

    Attributes:
        name: the node.
        drivers: its drivers, one an IP family.
    """

    def __init__(self, name: str, address: str, server: str, **flags: Any) -> None:
        given = {
            "hostname-override": name,
            "master": server,
            "proxy-mode": "nftables",
            "healthz-port": 0,
            "metrics-port": 0,
            **flags,
        }
        super().__init__(load(given, "linux"), Fake(("127.0.0.1", address)))
        self.name = name
        self.drivers: list[Remembering] = []

    async def _open(self, host: hosts.Host) -> list[tuple[NodeConfig, Backend]]:
        self.drivers = [Remembering() for _ in host.nodes]
        return [(node, driver) for node, driver in zip(host.nodes, self.drivers, strict=True)]


def node(name: str, address: str) -> dict[str, Any]:
    """A Node object."""
    return {
        "kind": "Node",
        "metadata": {"name": name},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }


def served(obj: types.Object) -> dict[str, Any]:
    """An object as an API server has it: labels that are null are not there."""
    found = wire(obj)
    labels = found["metadata"]["labels"] or {}
    found["metadata"]["labels"] = {name: value for name, value in labels.items() if value is not None}
    return found


def address(number: int) -> str:
    """The address of a node."""
    return f"192.168.{number >> 8}.{number & 255}"


@contextlib.asynccontextmanager
async def running(apps: Sequence[App]) -> AsyncIterator[None]:
    """The daemons run; at the end each must still run, and end well."""
    tasks = [asyncio.create_task(app.run()) for app in apps]
    try:
        yield
        for task, app in zip(tasks, apps, strict=True):
            assert not task.done(), task
            app.end(0)
        assert set(await asyncio.gather(*tasks)) == {0}
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
