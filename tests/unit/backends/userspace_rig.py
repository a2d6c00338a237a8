"""The drivers of userspace mode on a kernel and a host in memory."""

import asyncio
from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from kubeproxy.backends.base import Driver
from kubeproxy.backends.localhost import Localhost
from kubeproxy.backends.nftables.driver import NFTablesDriver
from kubeproxy.backends.nftables.steps import TableSteps
from kubeproxy.backends.shared.listeners import HeldListeners
from kubeproxy.backends.userspace.driver import Led
from kubeproxy.backends.userspace.listening import Listening
from kubeproxy.model.node import NodeConfig
from kubeproxy.netlink.nft.fake import FakeNftKernel
from tests.fakes.cluster import Proxy
from tests.fakes.faults import Faults, FaultyRelay
from tests.unit.backends.nftables.rig import NODES
from tests.unit.backends.test_relayed_properties import Ports, local

LOCAL = (*local(NODES[0]), "10.96.0.200", *(f"10.96.0.{i}" for i in range(1, 6)))


class UserspaceRig(Proxy):
    """A proxy whose driver leads to a relay by rules, or has it listen on the Services' addresses."""

    def __init__(self, *, rules: bool) -> None:
        self._rules = rules
        node = replace(NODES[0], localhost_relay=rules, listens=not rules)
        node = node.with_addresses(("127.0.0.1", "192.0.2.1") if rules else LOCAL)
        super().__init__(self._driver(node), node)

    def _driver(self, node: NodeConfig) -> Driver:
        kernel: Any = FakeNftKernel()
        relay = FaultyRelay(Faults(), Ports().bind)
        if not self._rules:
            return Listening(relay, lambda: LOCAL)
        return Localhost(
            Led(NFTablesDriver(kernel, node), relay, lambda node: node.address), relay, shared=True
        )

    def everything(self) -> object:
        """What is held, as commands."""
        return sorted(self.commands())

    def commands(self) -> list[str]:
        """What is held: rules as commands, then sockets."""
        backend: Any = self.backend
        return list(_commands(asyncio.run(backend.read())))


def _commands(held: Any) -> Iterator[str]:
    if isinstance(held, HeldListeners):
        if held.rules is not None:
            yield from _commands(held.rules)
        for listener in held.listeners:
            yield from listener.lines()
    else:
        yield from TableSteps(commits=(held.made,)).lines()
