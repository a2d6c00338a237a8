"""Many nodes in one process: a daemon each, on a host in memory (compare kubemark's hollow nodes)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.app import App
from kubeproxy.backends.base import Driver
from kubeproxy.backends.fake import MODE, FakeDriver
from kubeproxy.config.load import load
from kubeproxy.machine.base import Machine
from kubeproxy.machine.fake import FakeMachine
from kubeproxy.model.node import NodeConfig
from tests.fakes.cluster import wire


class Hollow(App):
    """A daemon of one node.

    Attributes:
        drivers: its drivers, one an IP family.
    """

    def __init__(self, name: str, address: str, server: str, **flags: Any) -> None:
        given = {
            "hostname-override": name,
            "master": server,
            "healthz-port": 0,
            "metrics-port": 0,
            **flags,
        }
        self.drivers: list[FakeDriver] = []
        super().__init__(
            load(given, "linux"), FakeMachine(("127.0.0.1", address)), mode=replace(MODE, open=self._made)
        )

    def _made(self, _: Machine, __: NodeConfig) -> Driver:
        self.drivers.append(FakeDriver())
        return self.drivers[-1]


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
