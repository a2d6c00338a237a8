"""TCP clients that began before their Service came are served at their next retransmission; all others stay untouched."""

import contextlib
import selectors
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kubeproxy.api import types
from kubeproxy.api.addresses import IPV4, unpack
from kubeproxy.flows import FlowCleaner
from kubeproxy.model.flows import place
from kubeproxy.model.node import NodeConfig
from kubeproxy.model.plan import PortPlan, ServicePlan
from kubeproxy.model.select import Endpoint
from kubeproxy.netlink import conntrack, wire
from kubeproxy.reconcile.ledger import Ledger
from tests.fakes.cluster import endpoints, service
from tests.kernel.daemons import PATIENCE, Station, ask, until
from tests.lab import flows, netns
from tests.lab.flows import Entry
from tests.lab.topology import EP11, EP11_6, EP12, LOCAL, NODE_NAME, REMOTE, Lab
from tests.machines import MACHINE

VIP, VIP6, EXTERNAL, BALANCER = "10.96.0.10", "fd00:10:96::a", "203.0.113.10", "203.0.113.20"
OLD_VIP = "10.96.0.20"
NODE_PORT = 30080
FRONTS = [
    ("client", VIP, 80),
    ("node", VIP, 80),
    ("rpod", EXTERNAL, 80),
    ("out", BALANCER, 80),
    ("out", "192.0.2.1", NODE_PORT),
    ("client", VIP6, 80),
]
NO_RESETS = """\
table inet lab-resets {
	chain output {
		type filter hook output priority -400;
		tcp flags & rst == rst drop
	}
	chain input {
		type filter hook input priority 0;
		ct state new
	}
}
"""
"""The node tracks connections, and does not refuse them, so that who asks for a node port waits, too."""


@pytest.fixture(params=["iptables", "nftables", "userspace"])
def station(lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Station]:
    lab.run("node", "nft", "-f", "-", given=NO_RESETS)
    yield Station(lab, tmp_path, mode=request.param)
    lab.run("node", "nft", "delete", "table", "inet", "lab-resets")


def web(*ips: str) -> types.Service:
    """A Service with every kind of front."""
    return service(
        "web",
        *(ips or (VIP, VIP6)),
        type="LoadBalancer",
        ports=[types.ServicePort(80, node_port=NODE_PORT)],
        balancer=[BALANCER],
        external_ips=(EXTERNAL,),
    )


def behind(*addresses: str, name: str = "web") -> types.EndpointSlice:
    slice_ = f"{name}-6" if ":" in addresses[0] else f"{name}-4"
    return endpoints(name, *addresses, name=slice_, local=(*LOCAL, EP11_6), node=NODE_NAME)


class Caller:
    """A client that has sent its SYN and waits, as long as it takes."""

    def __init__(self, lab: Lab, role: str, address: str, port: int) -> None:
        self.front = role, address, port
        with lab.inside(role):
            self._socket = socket.socket(
                socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM
            )
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            self._socket.connect((address, port))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def waits(self) -> bool:
        """Whether it is still without an answer."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_WRITE)
            return not selector.select(0)

    def answer(self) -> str:
        """Who answers in the end."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            assert selector.select(PATIENCE), f"{self.front} is never answered"
        try:
            return self._socket.recv(256).decode().split(" ")[0]
        except OSError as e:
            return type(e).__name__


@contextlib.contextmanager
def calling(lab: Lab, *fronts: tuple[str, str, int]) -> Iterator[list[Caller]]:
    """A client of each front, whose SYN is tracked."""
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(Caller(lab, *front)) for front in fronts]
        for family in ("ipv4", "ipv6"):
            wanted = [f for f in fronts if (":" in f[1]) == (family == "ipv6")]
            until(lambda: len(waiting(lab, family)) >= len(wanted))  # noqa: B023
        yield callers


def waiting(lab: Lab, family: str = "ipv4") -> list[str]:
    """The tracked connections that wait for an answer, with their ids."""
    command = ("conntrack", "-L", "-f", family, "-p", "tcp", "--state", "SYN_SENT", "-o", "id")
    return lab.run("node", *command).splitlines()


def test_who_called_before_the_service_came_is_answered(station: Station) -> None:
    """Their first SYN went nowhere; bystanders who wait, or talk, at other places go on doing so."""
    lab = station.lab
    other = service("old", OLD_VIP)
    station.folder.put(other, behind(EP12, name="old"))
    with station.running():
        assert ask(lab, "client", OLD_VIP) == EP12
        with calling(lab, *FRONTS) as callers, Caller(lab, "client", "10.96.0.99", 80) as bystander:
            until(lambda: "dst=10.96.0.99" in " ".join(waiting(lab)))
            (before,) = (line for line in waiting(lab) if "dst=10.96.0.99" in line)
            assert all(caller.waits() for caller in callers)
            station.folder.put(web(), behind(EP11), behind(EP11_6))
            assert [caller.answer() for caller in callers] == [*[EP11] * 5, EP11_6]
            (after,) = (line for line in waiting(lab) if "dst=10.96.0.99" in line)
            assert before.rpartition("id=")[2] == after.rpartition("id=")[2]
            assert bystander.waits()


def test_who_called_before_the_daemon_started_is_answered(station: Station) -> None:
    station.folder.put(web(), behind(EP11), behind(EP11_6))
    with calling(station.lab, *FRONTS) as callers, station.running():
        assert [caller.answer() for caller in callers] == [*[EP11] * 5, EP11_6]


def test_who_was_dropped_before_there_was_a_local_endpoint_is_answered(station: Station) -> None:
    """What is dropped is not tracked, so the next retransmission meets the rules anyway."""
    spec = web(VIP).spec
    assert spec is not None
    local = replace(web(VIP), spec=replace(spec, external_traffic_policy="Local"))
    station.folder.put(local, behind(REMOTE))
    with station.running():
        assert ask(station.lab, "client", VIP) == REMOTE
        with Caller(station.lab, "out", BALANCER, 80) as caller:
            assert caller.waits()
            station.folder.put(behind(EP11))
            assert caller.answer() == EP11


class Loop:
    """A control loop without any: the test writes its ledger."""

    def __init__(self) -> None:
        self.node = NodeConfig()
        self.family = IPV4
        self.ledger = Ledger(IPV4)

    def in_kernel(self, plan: ServicePlan) -> ServicePlan:
        return plan


_ADDRESSES = (VIP, "10.96.0.11", EXTERNAL, BALANCER, "203.0.113.77", "127.0.0.1", "10.244.1.11")
_PLACES = st.tuples(st.sampled_from(_ADDRESSES), st.sampled_from((80, 81, NODE_PORT)))
_BACKENDS = st.one_of(st.none(), st.just((EP11, 8080)), st.just((EP12, 8080)), _PLACES)
_TABLE = st.lists(st.tuples(_PLACES, _BACKENDS, st.booleans(), st.sampled_from((0, 0, 5))), max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=_TABLE, full=st.booleans())
def test_of_any_table_only_clients_who_wait_at_the_front_are_forgotten(
    space: str, *, table: list[tuple[tuple[str, int], tuple[str, int] | None, bool, int]], full: bool
) -> None:
    entries = [
        Entry(("198.51.100.7", 1000 + i), front, backend, flows.TCP, zone, waiting=wait)
        for i, (front, backend, wait, zone) in enumerate(table)
    ]
    port = PortPlan(
        "shop/web", "TCP", 80, VIP, external_ips=(EXTERNAL,), load_balancer_ips=(BALANCER,),
        cluster=(Endpoint(EP11, 8080),),
    )  # fmt: skip
    fronts = {(VIP, 80), (EXTERNAL, 80), (BALANCER, 80)}
    forgotten = {
        entry.client
        for entry in entries
        if entry.front in fronts
        and entry.waiting
        and (entry.backend or entry.front) != (EP11, 8080)
        and not ((entry.backend or entry.front) == entry.front and entry.zone)
    }
    plan = ServicePlan("shop", "web", (port,))
    loop = Loop()
    cleaner = FlowCleaner(MACHINE, loop)  # type: ignore[arg-type]
    flows.add(space, entries)
    with netns.inside(space):
        loop.ledger.want(plan.key, plan)
        if full:
            loop.ledger.loaded({})
        else:
            loop.ledger.applied(loop.ledger.due())
        cleaner.clean()
        left = list(conntrack.flows(MACHINE, socket.AF_INET, flows.TCP))
        clients = {_client(flow) for flow in left}
        conntrack.delete(MACHINE, left)
    assert clients == {entry.client for entry in entries} - forgotten
    assert cleaner.deleted == len(forgotten)


def _client(flow: conntrack.ConntrackFlow) -> tuple[str, int]:
    original = wire.attributes(wire.attributes(flow.message[4:])[1])
    addresses, ports = wire.attributes(original[1]), wire.attributes(original[2])
    return unpack(bytes(addresses[1])), int.from_bytes(ports[2])


def test_who_is_answered_after_the_list_was_made_is_not_forgotten(space: str) -> None:
    """The kernel cannot delete by state, so each connection is looked at once more."""
    front = (VIP, 80)
    flows.add(
        space, [Entry(("198.51.100.7", port), front, None, flows.TCP, waiting=True) for port in (1, 2, 3)]
    )
    with netns.inside(space):
        listed = list(
            conntrack.flows(MACHINE, socket.AF_INET, flows.TCP, destination=place(*front), unanswered=True)
        )
        assert len(listed) == 3
        conntrack.delete(MACHINE, [flow for flow in listed if _client(flow)[1] != 1])
    flows.add(space, [Entry(("198.51.100.7", 2), front, None, flows.TCP)])
    with netns.inside(space):
        assert conntrack.delete_unanswered(MACHINE, listed) == 1
        (left,) = conntrack.flows(MACHINE, socket.AF_INET, flows.TCP)
    assert (_client(left)[1], left.unanswered) == (2, False)


def test_the_kernel_lists_only_who_was_not_answered(space: str) -> None:
    flows.add(
        space,
        [Entry(("198.51.100.7", port), (VIP, 80), None, flows.TCP, waiting=port == 1) for port in (1, 2)],
    )
    with netns.inside(space):
        listed = list(conntrack.flows(MACHINE, socket.AF_INET, flows.TCP, unanswered=True))
        assert [_client(flow)[1] for flow in listed] == [1]
        assert len(list(conntrack.flows(MACHINE, socket.AF_INET, flows.TCP))) == 2


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_who_waits_for_an_endpoint_that_is_removed_is_served_by_another(
    lab: Lab, tmp_path: Path, mode: str
) -> None:
    """As when a node fails: its endpoints answer nothing until they are removed."""
    lab.run("ep12", "nft", "-f", "-", given=SILENT)
    station = Station(lab, tmp_path, mode=mode)
    station.folder.put(web(), behind(EP12))
    try:
        with station.running(), contextlib.ExitStack() as stack:
            callers = [stack.enter_context(Caller(lab, *front)) for front in FRONTS[:5]]
            until(lambda: sum(f"src={EP12} " in line for line in waiting(lab)) == len(callers))
            station.folder.put(behind(EP11, EP12))
            station.folder.put(behind(EP11))
            assert [caller.answer() for caller in callers] == [EP11] * len(callers)
    finally:
        lab.run("ep12", "nft", "delete", "table", "inet", "lab-silent")


SILENT = """\
table inet lab-silent {
	chain input {
		type filter hook input priority 0;
		tcp flags syn drop
	}
}
"""
"""An endpoint that answers nobody who calls."""
