"""ctnetlink with the real kernel: what is listed is what `conntrack` prints, and only what was listed is deleted."""

import socket
import subprocess
from pathlib import Path

import pytest

from kubeproxy.api.addresses import unpack
from kubeproxy.model.flows import Place, place
from kubeproxy.netlink import conntrack
from kubeproxy.netlink.conntrack import SCTP, UDP, ConntrackFlow
from tests.kernel.test_netlink import unprivileged
from tests.lab import flows, netns
from tests.lab.flows import Entry
from tests.machines import MACHINE

V4, V6 = socket.AF_INET, socket.AF_INET6
CLIENT, CLIENT6 = "198.51.100.7", "2001:db8::7"
VIP, POD, OTHER = ("10.96.0.10", 53), ("10.244.1.11", 5353), ("10.244.1.12", 5353)
ANYONE = ("", 0)
TABLE = [
    Entry((CLIENT, 1001), VIP, POD),
    Entry((CLIENT, 1002), VIP, OTHER),
    Entry((CLIENT, 1003), VIP),
    Entry((CLIENT, 1004), ("10.96.0.10", 54), POD),
    Entry((CLIENT, 1005), ("10.96.0.11", 53), POD),
    Entry((CLIENT, 1006), ("192.0.2.1", 30053), POD),
    Entry((CLIENT, 1001), VIP, POD, flows.TCP),
    Entry((CLIENT, 1001), VIP, POD, flows.SCTP),
    Entry((CLIENT, 1007), VIP, POD, zone=7),
    Entry((CLIENT, 1008), VIP, POD, zone=8, way=True),
    Entry((CLIENT6, 1001), ("fd00:10::a", 53), ("fd00:1::b", 5353)),
    Entry((CLIENT6, 1001), ("fd00:10::a", 53), ("fd00:1::b", 5353), flows.SCTP),
    Entry((CLIENT6, 1002), ("fd00:10::b", 54), ("fd00:1::c", 5353)),
]


def listed(space: str, family: int, protocol: int, **what: Place) -> list[Entry]:
    """What is listed, without its client's side."""
    with netns.inside(space):
        found = list(
            conntrack.flows(
                MACHINE,
                family,
                protocol,
                destination=what.get("destination", b""),
                source=what.get("source", b""),
            )
        )
    return sorted(_entry(flow) for flow in found)


def _entry(flow: ConntrackFlow) -> Entry:
    front, backend = ((unpack(at[:-2]), int.from_bytes(at[-2:])) for at in (flow.destination, flow.source))
    return Entry(ANYONE, front, backend, flow.protocol, flow.zone)


def expected(*numbers: int) -> list[Entry]:
    """Entries of the table, as they are listed."""
    return sorted(
        e._replace(client=ANYONE, backend=e.backend or e.front, way=False, waiting=False)
        for e in (TABLE[number] for number in numbers)
    )


def lines(space: str, *arguments: str) -> list[str]:
    """What the system's program prints."""
    with netns.inside(space):
        command = ["conntrack", "-L", "-o", "id", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.fixture
def table(space: str) -> str:
    flows.add(space, TABLE)
    return space


@pytest.mark.parametrize(
    ("family", "protocol", "what", "numbers"),
    [
        (V4, UDP, {}, [0, 1, 2, 3, 4, 5, 8, 9]),
        (V4, SCTP, {}, [7]),
        (V6, UDP, {}, [10, 12]),
        (V6, SCTP, {}, [11]),
        (V4, UDP, {"destination": place(*VIP)}, [0, 1, 2, 8, 9]),
        (V4, UDP, {"destination": place("", 53)}, [0, 1, 2, 4, 8, 9]),
        (V4, UDP, {"destination": place("", 30053)}, [5]),
        (V4, UDP, {"source": place(*POD)}, [0, 3, 4, 5, 8, 9]),
        (V4, UDP, {"destination": place(*VIP), "source": place(*POD)}, [0, 8, 9]),
        (V4, UDP, {"destination": place(*VIP), "source": place(*VIP)}, [2]),
        (V4, SCTP, {"source": place(*OTHER)}, []),
        (V6, UDP, {"destination": place("fd00:10::a", 53)}, [10]),
        (V6, UDP, {"destination": place("fd00:10::b", 53)}, [10]),  # only ports are compared
        (V6, UDP, {"source": place("fd00:1::b", 5353)}, [10, 12]),
        (V6, UDP, {"source": place("fd00:1::b", 5354)}, []),
        (V6, SCTP, {"source": place("fd00:1::b", 5354)}, [11]),  # nor is SCTP's port
    ],
)
def test_the_kernel_lists_what_is_asked_for(table: str, family: int, protocol: int, what, numbers) -> None:
    assert listed(table, family, protocol, **what) == expected(*numbers)


def test_a_kernel_that_does_not_know_the_filter_lists_more(
    table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conntrack, "_BY_NUMBER", 1 << 30)
    assert listed(table, V4, UDP, destination=place("", 30053)) == expected(0, 1, 2, 3, 4, 5, 8, 9)
    assert listed(table, V6, SCTP) == expected(11)


@pytest.mark.parametrize(("family", "protocol"), [(V4, UDP), (V4, SCTP), (V6, UDP), (V6, SCTP)])
def test_a_kernel_that_lays_out_its_messages_otherwise_is_understood(
    table: str, monkeypatch: pytest.MonkeyPatch, family: int, protocol: int
) -> None:
    known = listed(table, family, protocol)
    other = {each: layout._replace(length=0) for each, layout in conntrack._LAYOUTS.items()}
    monkeypatch.setattr(conntrack, "_LAYOUTS", other)
    assert listed(table, family, protocol) == known != []


def test_flows_without_ports_are_passed_over(space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with netns.inside(space):
        subprocess.run(
            ["nft", "add table t; add chain t c { type filter hook output priority 0; ct state new; }"],
            check=True,
        )
        with socket.socket(V4, socket.SOCK_RAW, socket.IPPROTO_ICMP) as ping:
            ping.sendto(bytes.fromhex("0800f7fd00010001"), ("127.0.0.1", 0))
    assert len(lines(space, "-p", "icmp")) == 1
    monkeypatch.setattr(conntrack, "_BY_NUMBER", 1 << 30)
    assert listed(space, V4, UDP) == []
    assert listed(space, V4, socket.IPPROTO_ICMP) == []


def test_exactly_what_was_listed_is_deleted(table: str) -> None:
    with netns.inside(table):
        todo = list(conntrack.flows(MACHINE, V4, UDP, destination=place(*VIP), source=place(*POD)))
        assert conntrack.delete(MACHINE, todo) == 3, "those in a zone, too"
        assert conntrack.delete(MACHINE, todo) == 0, "they are gone already"
    assert listed(table, V4, UDP) == expected(1, 2, 3, 4, 5)
    assert len(lines(table)) == len(TABLE) - 3
    with netns.inside(table):
        assert conntrack.delete(MACHINE, list(conntrack.flows(MACHINE, V6, SCTP))) == 1
    assert listed(table, V6, UDP) == expected(10, 12)
    assert listed(table, V6, SCTP) == []


def test_a_flow_that_came_in_its_place_is_not_deleted(table: str) -> None:
    with netns.inside(table):
        todo = list(conntrack.flows(MACHINE, V4, UDP, destination=place("", 30053)))
        assert conntrack.delete(MACHINE, todo) == 1
        # Its memory goes to another flow; an id is of a place in memory and an original tuple.
        flows.add(table, [Entry((CLIENT, i), VIP, POD) for i in range(2000, 2100)] + [TABLE[5]])
        assert conntrack.delete(MACHINE, todo) == 0
    assert listed(table, V4, UDP, destination=place("", 30053)) == expected(5)


def test_thousands(space: str) -> None:
    """More than the kernel tells, or is told, at a time; and some are deleted by others meanwhile."""
    flows.add(space, [Entry((CLIENT, i), VIP, POD if i % 2 else OTHER) for i in range(1, 5001)])
    with netns.inside(space):
        assert conntrack.usage(MACHINE).entries == 5000
        todo = list(conntrack.flows(MACHINE, V4, UDP, source=place(*POD)))
        assert len(todo) == 2500
        assert conntrack.delete(MACHINE, todo[::10]) == 250
        assert conntrack.delete(MACHINE, todo) == 2250
        assert conntrack.usage(MACHINE).entries == 2500
        assert sum(1 for _ in conntrack.flows(MACHINE, V4, UDP)) == 2500


def test_usage(table: str) -> None:
    with netns.inside(table):
        entries, most = conntrack.usage(MACHINE)
    assert entries == len(TABLE)
    assert most == int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())


@pytest.mark.parametrize(
    "what",
    [
        "conntrack.usage(MACHINE)",
        "list(conntrack.flows(MACHINE, 2, 17))",
        "conntrack.delete(MACHINE, [conntrack.ConntrackFlow(17, b'', b'', M)])",
    ],
)
def test_without_the_right_to_it(space: str, what: str) -> None:
    """The message is that of a flow 1.2.3.4:5 > 10.96.0.10:53."""
    original = flows._tuple(flows.TUPLE_ORIG, UDP, ("1.2.3.4", 5), VIP)
    code = (
        f"from kubeproxy.netlink import conntrack; M = memoryview({bytes((2, 0, 0, 0)) + original!r}); {what}"
    )
    done = unprivileged(space, code)
    assert "Operation not permitted" in done.stderr
