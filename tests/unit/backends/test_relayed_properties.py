"""Whatever happened before, and whichever Service came first, the sockets of userspace mode end as those of a fresh start."""

import asyncio
import errno
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kubeproxy.api.addresses import FAMILIES, IPV4
from kubeproxy.backends.base import Driver
from kubeproxy.backends.localhost import Localhost
from kubeproxy.backends.userspace.driver import Led
from kubeproxy.backends.userspace.listening import Listening
from kubeproxy.machine.base import Machine
from kubeproxy.model.node import NodeConfig
from kubeproxy.relay import sockets
from tests import strategies
from tests.fakes.cluster import Proxy
from tests.fakes.relay import FakeRelay
from tests.unit.backends.test_relayed import Rules

nodes = st.sampled_from(FAMILIES).flatmap(strategies.nodes)


class Ports:
    """The ports of a host in memory. A socket on all addresses and one on a single address exclude each other."""

    def __init__(self) -> None:
        self._taken: set[tuple[str, int, bool]] = set()
        self._next = 40000

    def bind(self, machine: Machine, address: str, ports: sockets.Span, *, udp: bool) -> "Socket":
        """See `sockets.bind`."""
        port = ports[0]
        if ports == (0, 0):
            self._next += 1
            port = self._next
        here = {taken for taken in self._taken if taken[1:] == (port, udp)}
        wild = "0.0.0.0" if ":" not in address else "::"
        if here and (address == wild or here & {(address, port, udp), (wild, port, udp)}):
            raise OSError(errno.EADDRINUSE, "Address already in use")
        self._taken.add((address, port, udp))
        return Socket(self._taken, address, port, udp=udp)


class Socket:
    """A socket of those ports."""

    def __init__(self, taken: set[tuple[str, int, bool]], address: str, port: int, *, udp: bool) -> None:
        self._taken, self._at = taken, (address, port, udp)
        self.type = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM

    def getsockname(self) -> tuple[str, int]:
        return self._at[:2]

    def close(self) -> None:
        self._taken.discard(self._at)


@pytest.fixture(scope="module", autouse=True)
def world() -> Iterator[None]:
    """Threads run at once."""

    async def at_once(work: Callable[..., Any], *args: Any, **more: Any) -> Any:
        return work(*args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "to_thread", at_once)
        yield


def local(node: NodeConfig) -> list[str]:
    """The host has all addresses that Services may name."""
    family = node.family
    external = [ip for ip in strategies.EXTERNAL_IPS if (":" in ip) == (family != IPV4)]
    return sorted({node.address, *strategies.CLUSTER_IPS[family], *external})


def listening(node: NodeConfig) -> tuple[Driver, FakeRelay]:
    relay = FakeRelay()
    return Listening(relay, lambda: local(node)), relay


def led(node: NodeConfig) -> tuple[Driver, FakeRelay]:
    relay = FakeRelay()
    return Localhost(Led(Rules(), relay, lambda _: node.address), relay, shared=True), relay


def held(relay: FakeRelay) -> object:
    """What listens; the ports of the relay's own choice say nothing."""
    return sorted(
        ((address, port if port < 40000 else 0, udp), repr(listener))
        for (address, port, udp), listener in relay.open_now.items()
    )


@settings(max_examples=100)
@given(st.one_of(strategies.histories(), strategies.contests()), nodes, st.sampled_from([listening, led]))
def test_the_end_is_that_of_a_fresh_start(
    history: list[list[strategies.Event]],
    node: NodeConfig,
    backend: Callable[[NodeConfig], tuple[Driver, FakeRelay]],
) -> None:
    node = replace(node, localhost_relay=True, listens=backend is listening)
    node = node.with_addresses(local(node))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sockets, "bind", Ports().bind)
        made, relay = backend(node)
        proxy = Proxy(made, node)
        assert not proxy.full()
        for batch in history:
            for event in batch:
                proxy.hear(event)
            proxy.partial()
        patch.setattr(sockets, "bind", Ports().bind)
        made, fresh = backend(node)
        other = Proxy(made, node)
        other.state = proxy.state
        assert not other.full()
    assert held(relay) == held(fresh)
