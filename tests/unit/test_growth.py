"""What a change costs grows with what changes, and no faster than the object, in every mode.

Counted are the bytecode instructions of our own code, from an object that is told to the backend's input and the flows that are
to be looked at; what stands in for the kernel does not count. So these tests do not depend on the machine.
"""

import asyncio
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import kubeproxy
from kubeproxy.api import types
from kubeproxy.backends.fake_tables import FakeTables
from kubeproxy.backends.localhost import Localhost
from kubeproxy.backends.nftables.driver import NFTablesDriver
from kubeproxy.backends.nftables.mode import MODE
from kubeproxy.backends.userspace.driver import Led
from kubeproxy.backends.userspace.listening import Listening
from kubeproxy.model import maglev
from kubeproxy.model.flows import Fronts
from kubeproxy.model.plan import Key
from kubeproxy.netlink.nft.fake import FakeNftKernel
from kubeproxy.netlink.nft.messages import NftMessage
from kubeproxy.relay.values import Listener
from tests.fakes.cluster import NODE, Proxy, annotated, endpoints, service
from tests.fakes.relay import FakeRelay
from tests.unit.backends.iptables import rig as iptables
from tests.unit.backends.ipvs import rig as ipvs

KEY: Key = ("default", "big")
HERE = replace(NODE, address="127.0.0.1")
DIVIDES = replace(NODE, balancing=MODE.balancing)
Events = list[types.Service | types.EndpointSlice]


class Operations:
    """Counts the instructions that our code executes, for a `with` block."""

    _ours = kubeproxy.__file__.removesuffix("__init__.py")

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        # Python 3.12 reports instructions only if some frame asked for them before tracing began.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _called(self, frame: FrameType, _event: str, _argument: Any) -> Callable[..., Any] | None:
        name = frame.f_code.co_filename
        if not name.startswith(self._ours) or "fake" in name.removeprefix(self._ours):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._executed

    def _executed(self, _frame: FrameType, event: str, _argument: Any) -> Callable[..., Any]:
        self.count += event == "opcode"
        return self._executed


class Sink(FakeNftKernel):
    """A kernel that takes everything and keeps nothing."""

    def commit(self, messages: Sequence[NftMessage]) -> None:
        """See `Kernel`."""


class SinkTables(FakeTables):
    """Tables that take everything and keep nothing."""

    def restore(self, table: str, lines: Iterable[str]) -> None:
        """See `Tables`."""
        for _ in lines:
            pass


class DeafRelay(FakeRelay):
    """A relay without sockets."""

    def open(self, sock: Any, listener: Listener) -> int:
        sock.close()
        return 0

    def change(self, number: int, listener: Listener) -> None:
        pass

    def close(self, number: int) -> None:
        pass


def _localhost() -> Proxy:
    node = replace(HERE, localhost_relay=True)
    return Proxy(Localhost(NFTablesDriver(Sink(), node), DeafRelay()), node)


def _listening() -> Proxy:
    return Proxy(Listening(DeafRelay(), lambda: [HERE.address]), HERE)


MODES: dict[str, Callable[[], Proxy]] = {
    "iptables": lambda: iptables.Rig(SinkTables("legacy")),
    "iptables-nft": lambda: iptables.Rig(SinkTables("nf_tables")),
    "nftables": lambda: Proxy(NFTablesDriver(Sink(), DIVIDES), DIVIDES),
    "nftables and localhost": _localhost,
    "ipvs": ipvs.Rig,
    "userspace": lambda: Proxy(Led(NFTablesDriver(Sink(), HERE), DeafRelay(), lambda _: HERE.address), HERE),
    "userspace without rules": _listening,
}


def addresses(net: str, count: int) -> list[str]:
    """So many addresses, whose order as text is theirs."""
    return [f"{net}.{100 + i // 100}.{100 + i % 100}" for i in range(count)]


def cluster(
    *,
    ranges: int = 2,
    ports: int = 2,
    ends: int = 3,
    slices: int = 1,
    external_ips: int = 1,
    load_balancer_ips: int = 1,
    sticky: bool = False,
    changed: str = "",
    **annotations: str,
) -> Events:
    """A Service with everything, as large as is said.

    Args:
        ranges: source ranges; the node's own, and every second one nested in another.
        ports: TCP and UDP by turns, each with a node port.
        ends: endpoints of each slice.
        slices: EndpointSlices.
        external_ips: external IPs.
        load_balancer_ips: load balancer IPs.
        sticky: with session affinity.
        changed: the address in place of the last endpoint of the last slice.
        annotations: of the Service.
    """
    protocols = ("TCP", "UDP")
    named = [types.ServicePort(80 + i, f"p{i}", protocols[i % 2], 30000 + i) for i in range(ports)]
    nets = [f"198.{16 + (i >> 8)}.{i & 255}.{128 * (i % 2)}/{25 - i % 2}" for i in range(ranges - 1)]
    found: Events = [
        annotated(
            service(
                KEY[1],
                "10.96.0.1",
                type="LoadBalancer",
                ports=named,
                external_ips=tuple(addresses("203.1", external_ips)),
                balancer=addresses("203.2", load_balancer_ips),
                load_balancer_source_ranges=("127.0.0.0/8", *nets),
                session_affinity="ClientIP" if sticky else "None",
            ),
            **annotations,
        )
    ]
    for number in range(slices):
        all_ = addresses(f"10.{100 + number // 200}", slices * ends)[number * ends :][:ends]
        if changed and number == slices - 1:
            all_[-1] = changed
        piece = endpoints(KEY[1], *all_, name=f"slice-{number}", local=all_[:1])
        served = tuple(types.EndpointPort(p.name, 8080, p.protocol) for p in named)
        found.append(replace(piece, ports=served))
    return found


class Run:
    """A proxy with what follows a sync, and what each step of it cost."""

    def __init__(self, mode: str) -> None:
        self._proxy = MODES[mode]()
        self._fronts = Fronts()
        assert not self._proxy.full()

    def cost(self, *events: types.Service | types.EndpointSlice) -> int:
        """Tells objects, and brings them to the kernel; returns the operations."""
        with Operations() as operations:
            self._proxy.tell(*events)
            self._finish()
        return operations.count

    def end(self) -> int:
        """The Service goes."""
        with Operations() as operations:
            self._proxy.gone("Service", KEY[1])
            self._finish()
        return operations.count

    def _finish(self) -> None:
        self._proxy.partial()
        self._fronts.set(KEY, self._proxy.applied.get(KEY))
        while self._fronts.next_listing():
            pass
        self._fronts.settled()


@pytest.fixture(autouse=True, scope="module")
def _in_this_thread() -> Iterator[None]:
    async def inline(work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return work(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "to_thread", inline)
        yield


DIMENSIONS = ("ranges", "ports", "ends", "slices", "external_ips", "load_balancer_ips")
N = 20


def costs(mode: str, **size: Any) -> Sequence[int]:
    """What a Service costs that comes, one of whose endpoints and one of whose ranges is replaced, and that goes."""
    maglev.table.cache_clear()
    run = Run(mode)
    came = cluster(**size)
    other = cluster(**size, changed="10.99.0.1")
    wider = cluster(**{**size, "ranges": size.get("ranges", 2) + 1})
    return run.cost(*came), run.cost(other[-1]), run.cost(wider[0]), run.end()


@pytest.mark.parametrize("sticky", [False, True])
@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("mode", MODES)
def test_twice_as_large_is_at_most_twice_the_work(mode: str, dimension: str, sticky: bool) -> None:
    size: dict[str, Any] = {"sticky": sticky}
    once, twice = (costs(mode, **size, **{dimension: n}) for n in (N, 2 * N))
    for what, one, two in zip(("came", "endpoint", "range", "went"), once, twice, strict=True):
        assert two < 2.2 * one, f"{what}: {one} operations for {N} {dimension}, {two} for {2 * N}"


@pytest.mark.parametrize("dimension", ["ends", "ports", "external_ips"])
@pytest.mark.parametrize(
    "annotations",
    [
        {"weights": "address:10.100.100.100=3, *=2"},
        {"balancing": "maglev", "maglev_table_size": "251"},
    ],
)
def test_division_of_connections(annotations: dict[str, str], dimension: str) -> None:
    once, twice = (costs("nftables", **annotations, **{dimension: n}) for n in (10, 20))
    for what, one, two in zip(("came", "endpoint", "range", "went"), once, twice, strict=True):
        assert two < 2.2 * one, f"{what}: {one} operations for 10 {dimension}, {two} for 20"


@pytest.mark.parametrize("mode", MODES)
def test_a_change_of_an_endpoint_does_nothing_for_ranges(mode: str) -> None:
    few, many = (costs(mode, ranges=n)[1] for n in (10, 10 + N))
    # To find out which ones are of the family.
    assert many - few < 20 * N


@settings(max_examples=8)
@given(st.sampled_from(sorted(MODES)), st.fixed_dictionaries({d: st.integers(1, 6) for d in DIMENSIONS}), st.sampled_from(DIMENSIONS))  # fmt: skip
def test_whatever_else_is_there_growth_is_linear(mode: str, size: dict[str, int], dimension: str) -> None:
    """What n and 2n more cost: where growth is linear, the second is twice the first."""
    base, once, twice = (costs(mode, **{**size, dimension: size[dimension] + n}) for n in (0, 15, 30))
    for zero, one, two in zip(base, once, twice, strict=True):
        assert two - zero < 2.4 * (one - zero) + 3000
